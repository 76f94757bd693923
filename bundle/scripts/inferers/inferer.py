"""MONAI's diffusion inferer with mixed precision on any device."""

from __future__ import annotations

from typing import Any, Optional, Union

import torch
from monai.inferers import DiffusionInferer
from torch import Tensor, nn


def has_fast_bf16(device: torch.device) -> bool:
    """Whether bf16 matrix products are faster than fp32 there: CUDA from Ampere on, CPUs with AVX512-BF16 or AMX."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def uses_bf16(device: torch.device, bf16: Optional[bool] = None) -> bool:
    """What the setting `bf16` says; where it is None, whether the device is faster with it."""
    return has_fast_bf16(device) if bf16 is None else bf16


def computed_in(device: Union[str, torch.device], bf16: Optional[bool] = None) -> dict[str, str]:
    """What numbers depend on beside the settings: 'precision', 'bf16' or 'float32', and 'device', its kind."""
    device = torch.device(device)
    return {"precision": "bf16" if uses_bf16(device, bf16) else "float32", "device": device.type}


class AutocastDiffusionInferer(DiffusionInferer):
    """Training and validation forward under autocast; MONAI's engines know autocast for CUDA alone.

    Args:
        scheduler: the process.
        bf16: False for float32; None for what the device is faster with.
    """

    def __init__(self, scheduler: nn.Module, bf16: Optional[bool] = None) -> None:
        super().__init__(scheduler)
        self.bf16 = bf16

    def __call__(self, inputs: Tensor, diffusion_model: nn.Module, *args: Any, **kwargs: Any) -> Tensor:
        enabled = uses_bf16(inputs.device, self.bf16)
        with torch.autocast(inputs.device.type, torch.bfloat16, enabled=enabled):
            return super().__call__(inputs, diffusion_model, *args, **kwargs).float()
