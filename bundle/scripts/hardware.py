"""What there is to run on, in words: device, memory, disk."""

from __future__ import annotations

import os
import re
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Mapping, Optional, Union

import ignite.distributed as idist
import torch

from .words import bytes_in_words

GB = 1e9
DRIVER_GB = 0.7  # of a GPU's memory: CUDA context and kernels
PROGRAM = "Python and PyTorch"
_CONTROL_GROUP = "/sys/fs/cgroup/memory.max"  # what a container may take
CPU_ONLY = (
    "this PyTorch is built for the CPU alone, but there is an NVIDIA GPU: install the CUDA build (https://pytorch.org), "
    "which is many times faster"
)


def device_name(device: Union[str, torch.device]) -> str:
    """A device with what it is, such as `cuda:0 (NVIDIA H100, 80 GB)`, and the processes that share the work."""
    device, processes = torch.device(device), idist.get_world_size()
    name, model = str(device), ""
    if device.type == "cuda":
        facts = torch.cuda.get_device_properties(device)
        model = f"{facts.name}, {facts.total_memory / GB:.0f} GB"
    elif device.type == "cpu":
        name, model = f"{len(_cores())} CPU cores", _cpu_model()
    return name + (f" ({model})" if model else "") + (f", {processes} processes" if processes > 1 else "")


def _cores() -> set[int]:
    """Cores that this process may use."""
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    found = re.search(r"^model name\s*: (.+)$", info.read_text(), re.M) if info.is_file() else None
    return " ".join(found[1].split()) if found else ""


def idle_gpu() -> bool:
    """Whether an NVIDIA GPU is there that this PyTorch, built for the CPU, cannot use."""
    driver = Path("/proc/driver/nvidia/gpus")
    return torch.version.cuda is None and (
        driver.is_dir() and any(driver.iterdir()) or bool(shutil.which("nvidia-smi"))
    )


def machine_memory() -> Optional[int]:
    """Bytes of memory that this process may take at most; None where the system does not tell."""
    limits = []
    if hasattr(os, "sysconf"):  # not on Windows
        limits.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    with suppress(OSError, ValueError), open(_CONTROL_GROUP) as file:  # no such group, or its limit is 'max'
        limits.append(int(file.read()))
    with suppress(ImportError):
        import resource

        limits.append(resource.getrlimit(resource.RLIMIT_AS)[0])
    return min((limit for limit in limits if limit > 0), default=None)


def memory_bytes(device: Union[str, torch.device]) -> Optional[float]:
    """Memory of a GPU, or of this machine; None where the system does not say."""
    device = torch.device(device)
    if device.type == "cuda":
        return float(torch.cuda.get_device_properties(device).total_memory)
    return machine_memory()


def resident_bytes() -> float:
    """Memory that this process has now; 0 where the system does not say."""
    try:
        return float(os.sysconf("SC_PAGE_SIZE")) * int(Path("/proc/self/statm").read_text().split()[1])
    except (AttributeError, ValueError, OSError):
        return 0.0


def free_disk(folder: Union[str, Path]) -> tuple[Path, float]:
    """Bytes that are free where a folder is, or would be made; and the part of its path that is there."""
    there = Path(folder).absolute()
    while not there.exists():
        there = there.parent
    return there, float(shutil.disk_usage(there).free)


def tell_needs(
    device: Union[str, torch.device],
    on_device: Mapping[str, float],
    on_host: Mapping[str, float],
    disk: float,
    folder: Union[str, Path],
    work: str = "",
) -> None:
    """Prints what a run would need, and what there is.

    Args:
        device: where it runs.
        on_device: bytes of its memory by what they are for.
        on_host: bytes of the memory of this machine; on a CPU they are added to those of the device.
        disk: bytes that it writes.
        folder: where to.
        work: another line.
    """
    place, free = free_disk(folder)
    if work:
        print(work)
    if torch.device(device).type == "cpu":
        _tell_memory("memory", "cpu", {**on_device, **on_host})
    else:
        _tell_memory(f"memory on {device}", device, {**on_device, "the driver": DRIVER_GB * GB})
        _tell_memory("memory of this machine", "cpu", on_host)
    print(f"writes at most {bytes_in_words(disk)} (calculated); {free / GB:.0f} GB are free in {place}")
    print("dry run: nothing was written")


def _tell_memory(name: str, device: Union[str, torch.device], parts: Mapping[str, float]) -> None:
    there = memory_bytes(device)
    print(
        f"needs {bytes_in_words(sum(parts.values()))} of {name} (calculated)"
        + (f", there are {bytes_in_words(there)}" if there else "")
        + ": "
        + ", ".join(f"{bytes_in_words(number)} for {what}" for what, number in parts.items() if number >= 1e6)
    )
