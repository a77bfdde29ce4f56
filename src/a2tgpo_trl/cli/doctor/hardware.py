"""The machine: what needs nothing but torch to be told."""

import os
import platform
import shutil
from pathlib import Path

from .findings import Finding

GB = 10**9


def look() -> list[Finding]:
    """System, processor, memory, disk, and what torch can compute on."""
    return [
        Finding("system", f"{platform.system()} {platform.release()}, {platform.machine()}"),
        Finding("cpu", _cpu()),
        Finding("memory", _memory()),
        Finding("disk", f"{free(Path.cwd())} free in the working folder"),
        *_devices(),
    ]


def _cpu() -> str:
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    torch = _torch()
    threads = f", torch computes on {torch.get_num_threads()} threads" if torch else ""
    return f"{os.cpu_count()} cores, {usable} of them for this process{threads}"


def _memory() -> str:
    try:
        import psutil
    except ImportError:
        return "unknown, psutil is not installed"
    memory = psutil.virtual_memory()
    return f"{memory.available / GB:.1f} of {memory.total / GB:.1f} GB free"


def free(folder: Path) -> str:
    """Room on the disk of a folder."""
    return f"{shutil.disk_usage(folder).free / GB:.1f} GB"


def _devices() -> list[Finding]:
    torch = _torch()
    if torch is None:
        return [Finding("device", "unknown", note="torch cannot be imported")]
    if torch.cuda.is_available():
        return [_cuda(torch, index) for index in range(torch.cuda.device_count())]
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if accelerator is not None:
        return [Finding("device", f"{torch.accelerator.device_count()} × {accelerator.type}")]
    unused = shutil.which("nvidia-smi") and "an NVIDIA driver is here, and torch "
    why = (
        "is a build without CUDA"
        if torch.version.cuda is None
        else f"has CUDA {torch.version.cuda} and finds no device"
    )
    return [Finding("device", "the CPU alone", note=f"{unused}{why}" if unused else "")]


def _cuda(torch, index: int) -> Finding:
    try:
        free, total = torch.cuda.mem_get_info(index)
        properties = torch.cuda.get_device_properties(index)
    except (RuntimeError, AssertionError) as error:  # a card that fails, or that is another process's alone
        reason = " ".join(str(error).split())
        return Finding(
            f"device {index}", "fails", False, reason, "nvidia-smi   # what the driver says of it", required=True
        )
    built = f"CUDA {torch.version.cuda}" if torch.version.cuda else f"ROCm {torch.version.hip}"
    value = f"{properties.name}, {free / GB:.1f} of {total / GB:.1f} GB free"
    return Finding(f"device {index}", f"{value}, compute capability {properties.major}.{properties.minor}, {built}")


def _torch():
    try:
        import torch
    except (Exception, SystemExit):  # whatever a broken build raises
        return None
    return torch
