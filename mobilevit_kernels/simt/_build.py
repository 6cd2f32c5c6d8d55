"""Compiles the simulator's library with g++ into the cache folder; nothing but a compiler is needed."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from mobilevit_kernels import native
from mobilevit_kernels.cache import cache_folder

__all__ = ["build", "find_compiler"]

_FLAGS = ["-DMVK_SIMT", "-std=c++17", "-O2", "-fPIC", "-ffp-contract=off", "-Wall", "-Wextra", "-Wno-unknown-pragmas"]
_SANITIZE = ["-O0", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-g1"]


def find_compiler() -> str | None:
    """``CXX``, else g++, where it is there."""
    compiler = os.environ.get("CXX", "g++")
    return shutil.which(compiler.split()[0]) and compiler


def build(sanitize: bool | None = None, jobs: int | None = None) -> Path:
    """Compiles what has changed since the last time.

    Args:
        sanitize: with AddressSanitizer and UBSan; None: where MVK_SIMT_SANITIZE is 1. The process that loads such a
            library has to preload libasan.
        jobs: compilers at once; None: one a core.

    Returns:
        The shared library.

    Raises:
        RuntimeError: no compiler, no sources, or the compiler's errors.
    """
    sources = native.source_folder()
    compiler = find_compiler()
    if sources is None or compiler is None:
        raise RuntimeError("the simulator needs g++ and the kernels' sources; see mobilevit_kernels.backends()['simt']")
    if sanitize is None:
        sanitize = os.environ.get("MVK_SIMT_SANITIZE") == "1"
    command = [*compiler.split(), *_FLAGS, *(_SANITIZE if sanitize else [])]
    headers = hashlib.sha256(" ".join(command).encode())
    for header in sorted(path for path in sources.rglob("*") if path.suffix in (".h", ".cuh")):
        headers.update(header.read_bytes())
    units = sorted(
        path for path in sources.rglob("*") if path.suffix in (".cu", ".cpp") and path.name != "bindings.cpp"
    )

    folder = cache_folder() / "simt"
    folder.mkdir(parents=True, exist_ok=True)

    def compile_unit(unit: Path) -> Path:
        digest = headers.copy()
        digest.update(unit.read_bytes())
        target = folder / f"{unit.stem}-{digest.hexdigest()[:20]}.o"
        if not target.exists():
            _run([*command, "-x", "c++", "-c", str(unit)], target)
        return target

    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # of several processes one compiles, the others wait for it
        with ThreadPoolExecutor(jobs or os.cpu_count()) as pool:
            objects = list(pool.map(compile_unit, units))
        names = hashlib.sha256("".join(unit.name for unit in objects).encode())
        target = folder / f"libsimt-{names.hexdigest()[:20]}.so"
        if not target.exists():
            _run([*command, "-shared", *map(str, objects)], target)
    return target


def _run(command: list[str], target: Path) -> None:
    """Runs a compiler; the result appears under its name only when it is complete, whoever else is compiling."""
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        output = Path(scratch) / target.name
        done = subprocess.run([*command, "-o", str(output)], capture_output=True, text=True)
        if done.returncode != 0:
            raise RuntimeError(f"compiling the simulator failed:\n{' '.join(command)}\n{done.stderr}")
        os.replace(output, target)
