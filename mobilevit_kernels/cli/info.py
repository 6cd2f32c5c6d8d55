"""``info``: devices, backends, versions."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Any

import click
import torch

from mobilevit_kernels import __version__, registry
from mobilevit_kernels.cli import _common

__all__ = ["cpu_name", "gather", "info"]

_PACKAGES = ("torch", "triton", "timm", "transformers", "safetensors", "numpy")


@click.command()
@_common.json_option
def info(as_json: bool) -> None:
    """Show what can run on this machine: devices, backends with the reason where one is missing, versions."""
    data = gather()
    if as_json:
        _common.print_json(data)
        return
    _common.print_table("versions", ["package", "version"], list(data["versions"].items()))
    _common.print_table(
        "\ndevices",
        ["device", "name", "capability", "memory"],
        [(d["device"], d["name"], d["capability"], d["memory"]) for d in data["devices"]],
    )
    _common.print_table(
        "\nbackends",
        ["backend", "available", "reason"],
        [(name, "yes" if s["available"] else "no", s["reason"]) for name, s in data["backends"].items()],
    )


def cpu_name() -> str:
    """The processor's name and its number of cores."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        models = [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        name = models[0].split(":", 1)[1].strip() if models else name
    return f"{name}, {os.cpu_count()} cores"


def gather() -> dict[str, Any]:
    """Versions, devices and backend statuses as plain data."""
    versions = {"mobilevit_kernels": __version__, "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "not installed"
    versions["cuda (torch)"] = torch.version.cuda or "none"
    devices = [
        {
            "device": "cpu",
            "name": cpu_name(),
            "capability": torch.backends.cpu.get_cpu_capability(),
            "memory": "",
        }
    ]
    for i in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(i)
        devices.append(
            {
                "device": f"cuda:{i}",
                "name": properties.name,
                "capability": f"{properties.major}.{properties.minor}",
                "memory": f"{properties.total_memory / 2**30:.0f} GiB",
            }
        )
    statuses = {
        name: {"available": status.available, "reason": status.reason} for name, status in registry.backends().items()
    }
    return {"versions": versions, "devices": devices, "backends": statuses}
