"""The precision that a device computes in."""

from __future__ import annotations

from typing import Optional, Union

import torch


def has_fast_bf16(device: torch.device) -> bool:
    """Whether bf16 matrix products are faster than fp32 there: CUDA from Ampere on, CPUs with AVX512-BF16 or AMX."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    has = torch.cpu.get_capabilities()
    return has.get("avx512_bf16", False) or has.get("amx_tile", False)


def uses_bf16(device: torch.device, bf16: Optional[bool] = None) -> bool:
    """What the setting `bf16` says; where it is None, whether the device is faster with it."""
    return has_fast_bf16(device) if bf16 is None else bf16


def use_tf32(device: Union[str, torch.device], tf32: bool = False) -> None:
    """What the setting `tf32` says, of this process: matrix products of float32 on NVIDIA GPUs alone."""
    if torch.device(device).type == "cuda":
        torch.set_float32_matmul_precision("high" if tf32 else "highest")


def computed_in(device: Union[str, torch.device], bf16: Optional[bool] = None, tf32: bool = False) -> dict[str, str]:
    """What numbers depend on beside the settings: 'precision' of products, 'bf16', 'tf32' or 'float32', and 'device', its
    kind.
    """
    device = torch.device(device)
    float32 = "tf32" if tf32 and device.type == "cuda" else "float32"
    return {"precision": "bf16" if uses_bf16(device, bf16) else float32, "device": device.type}


def autocast(device: torch.device, bf16: Optional[bool] = None) -> torch.autocast:
    """Mixed precision on any device, where `uses_bf16`; MONAI's engines know it for CUDA alone."""
    return torch.autocast(device.type, torch.bfloat16, enabled=uses_bf16(device, bf16))
