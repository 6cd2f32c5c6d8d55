"""``info``: devices, backends, versions."""

from __future__ import annotations

import platform
from typing import Any

import click
import torch

from mobilevit_kernels import __version__, registry
from mobilevit_kernels.cli import _common
from mobilevit_kernels.machine import cpu_name, package_version

__all__ = ["gather", "info"]

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


def gather() -> dict[str, Any]:
    """Versions, devices and backend statuses as plain data."""
    versions = {"mobilevit_kernels": __version__, "python": platform.python_version()}
    versions |= {package: package_version(package) or "not installed" for package in _PACKAGES}
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
