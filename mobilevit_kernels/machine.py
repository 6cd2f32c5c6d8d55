"""What a measurement has to say about where it was made: processor, GPU, versions, commit."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

__all__ = ["cpu_name", "describe", "indexed", "package_version"]


def cpu_name() -> str:
    """The processor's name and its number of cores."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        models = [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        name = models[0].split(":", 1)[1].strip() if models else name
    return f"{name}, {os.cpu_count()} cores"


def package_version(package: str) -> str | None:
    """An installed package's version, or None."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def indexed(device: torch.device | str) -> torch.device:
    """``device`` as the tensors on it name it: "cuda" is the current one of the CUDA devices."""
    device = torch.device(device)
    if str(device) == "cuda" and torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return device


def describe(device: torch.device) -> dict[str, Any]:
    """Device, driver, versions, commit and date, as in a result file's ``meta``.

    The commit is the package's own; where it lies in no repository, ``MVK_COMMIT`` names it.
    """
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    tracked = _output("git", "ls-files", "--error-unmatch", Path(__file__).name) is not None
    commit = _output("git", "rev-parse", "HEAD") if tracked else None  # not that of a repository around site-packages
    dirty = None if commit is None else bool(_output("git", "status", "--porcelain", "--untracked-files=no"))
    driver = _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader") if gpu else None
    return {
        "gpu": gpu,
        "device": gpu or cpu_name(),
        "driver": driver.splitlines()[0] if driver else None,
        "cuda": torch.version.cuda,
        "torch": torch.__version__,
        "triton": package_version("triton"),
        "timm": package_version("timm"),
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
        "commit": commit or os.environ.get("MVK_COMMIT") or "unknown",
        "dirty": dirty,
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }


def _output(*command: str) -> str | None:
    """What a command prints, or None where it fails."""
    here = Path(__file__).parent
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20, cwd=here)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
