"""The hardware of this machine and the versions of packages, without names of hosts, users or folders."""

from __future__ import annotations

import os
import platform
import re
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil
import torch

from ..version import __version__

RUNTIME_PACKAGES = ("onnxruntime", "openvino")


def describe_machine(device: torch.device | str = "cpu") -> dict[str, str | float | None]:
    """Flat and ready for JSON; memory in GB (10^9 bytes); for a CUDA device the GPU's name too."""
    found: dict[str, str | float | None] = {
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "transformers": version("transformers"),
        "mask2former-dinov3": __version__,
    }
    found |= {name: number for name in RUNTIME_PACKAGES if (number := _version_of(name))}
    return found | ({"gpu": torch.cuda.get_device_name(device)} if torch.device(device).type == "cuda" else {})


def cpu_model() -> str:
    """The name of the CPU, as far as the system says it."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        found = re.search(r"^model name\s*: (.+)$", cpuinfo.read_text(), re.MULTILINE)
        if found:
            return found[1]
    return platform.processor() or platform.machine()


def _version_of(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
