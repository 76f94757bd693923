"""`prdit doctor`: what is installed and what there is to run on, with what to mend."""

from __future__ import annotations

import json
import platform
import sys
from importlib.metadata import PackageNotFoundError, version

from packaging.requirements import Requirement

from .table import CONFIGS


def examine() -> int:
    """Prints what it finds, a line each; the number of faults."""
    metadata = json.loads((CONFIGS / "metadata.json").read_text())
    needed = {"torch": metadata["pytorch_version"], "monai": metadata["monai_version"]}
    needed |= {"numpy": metadata["numpy_version"], **metadata["required_packages_version"]}
    faults = _packages(needed)
    print(f"Python {platform.python_version()}, bundle {metadata['version']} in {CONFIGS.parent}")
    faults += _machine()
    for fault in faults:
        print(f"to mend: {fault}")
    if not faults:
        print("all is well; prdit demo makes four volumes")
    return len(faults)


def _packages(needed: dict[str, str]) -> list[str]:
    """Prints the versions that matter most; packages that are missing or not those that were tested."""
    found, faults = {}, []
    for name, tested in needed.items():
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            faults.append(f'{name} is not installed: pip install "{name}=={tested}"')
            continue
        if not Requirement(f"{name}>={tested}").specifier.contains(found[name].partition("+")[0], prereleases=True):
            faults.append(f'{name} {found[name]} is older than tested: pip install "{name}>={tested}"')
    print(", ".join(f"{name} {found[name]}" for name in ("torch", "monai", "numpy") if name in found))
    if sys.version_info < (3, 11):
        faults.append("Python 3.11 or newer is needed")
    return faults


def _machine() -> list[str]:
    """Prints device, memory and disk; what is wrong with them."""
    try:
        import torch
    except ImportError as error:
        return [f"PyTorch cannot be loaded: {str(error).splitlines()[0]}"]
    from ..hardware import CPU_ONLY, GB, device_name, free_disk, idle_gpu, memory_bytes
    from ..inferers.inferer import has_fast_bf16

    faults = []
    device = torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    memory, host = memory_bytes(device), memory_bytes("cpu")
    how = "bfloat16" if has_fast_bf16(device) else "float32"
    print(f"runs on {device_name(device)}, in {how}" + (f", with {host / GB:.0f} GB of host memory" if host else ""))
    for index in range(1, torch.cuda.device_count() if device.type == "cuda" else 0):
        print(f"and {device_name(f'cuda:{index}')}: --gpus {torch.cuda.device_count()}")
    place, free = free_disk(".")
    print(f"{free / GB:.0f} GB free in {place}")
    if idle_gpu():
        faults.append(CPU_ONLY)
    elif torch.version.cuda and device.type == "cpu":
        faults.append("PyTorch is built for CUDA, but finds no GPU: is the driver installed? (nvidia-smi)")
    if memory is not None and memory < 2 * GB:
        faults.append(f"{memory / GB:.1f} GB of memory; sampling at 64³ takes about 1 GB, training more")
    if free < GB:
        faults.append(f"only {free / GB:.1f} GB are free in {place}")
    return faults
