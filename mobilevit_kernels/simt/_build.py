"""Compiles the simulator's library with g++ into the cache folder; nothing but a compiler is needed."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from mobilevit_kernels import native
from mobilevit_kernels.cache import cache_folder, make_folder

__all__ = ["build", "find_compiler", "is_built"]

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
    command, objects, library = _targets(sanitize)
    make_folder(library.parent)
    with (library.parent / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # of several processes one compiles, the others wait for it
        missing = {target: unit for target, unit in objects.items() if not target.exists()}
        if len(missing) > 1:
            text = f"mobilevit_kernels: compiling the host simulator, {len(missing)} files, a minute or two, once"
            print(text, file=sys.stderr, flush=True)
        with ThreadPoolExecutor(jobs or os.cpu_count()) as pool:
            list(pool.map(lambda item: _run([*command, "-x", "c++", "-c", str(item[1])], item[0]), missing.items()))
        if not library.exists():
            _run([*command, "-shared", *map(str, objects)], library)
    return library


def is_built() -> bool:
    """Whether the library is there as :func:`build` would make it."""
    return _targets(None)[2].exists()


def _targets(sanitize: bool | None) -> tuple[list[str], dict[Path, Path], Path]:
    """The compiler's command, the object files with the sources that they are of, and the library."""
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
    folder = cache_folder() / "simt"
    objects = {}
    for unit in sorted(path for path in sources.rglob("*") if path.suffix in (".cu", ".cpp")):
        if unit.name == "bindings.cpp":
            continue
        digest = headers.copy()
        digest.update(unit.read_bytes())
        objects[folder / f"{unit.stem}-{digest.hexdigest()[:20]}.o"] = unit
    names = hashlib.sha256("".join(target.name for target in objects).encode())
    return command, objects, folder / f"libsimt-{names.hexdigest()[:20]}.so"


def _run(command: list[str], target: Path) -> None:
    """Runs a compiler; the result appears under its name only when it is complete, whoever else is compiling."""
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        output = Path(scratch) / target.name
        done = subprocess.run([*command, "-o", str(output)], capture_output=True, text=True)
        if done.returncode != 0:
            raise RuntimeError(f"compiling the simulator failed:\n{' '.join(command)}\n{done.stderr}")
        os.replace(output, target)
