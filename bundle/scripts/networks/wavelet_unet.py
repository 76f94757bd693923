"""The U-Net of WDM-3D (Friedrich et al. 2024), which denoises the eight subbands of a wavelet transform together."""

from __future__ import annotations

from typing import Optional, Sequence

import torch
import torch.nn.functional as F
from monai.networks.nets.diffusion_model_unet import DiffusionUNetResnetBlock, get_timestep_embedding, zero_module
from torch import Tensor, nn

from ..spaces import SUBBANDS
from .kinds import kind

_GROUPS, _EPS = 32, 1e-5  # of every GroupNorm


class _Halved(nn.Module):
    """Averages blocks of 2^3, in any precision: PyTorch's own average has no bfloat16 on a CPU."""

    def forward(self, x: Tensor) -> Tensor:
        for axis in (2, 3, 4):
            x = x.unflatten(axis, (-1, 2)).mean(axis + 1)
        return x


class WaveletUNet(nn.Module):
    """Predicts the clean subbands y_0 from noisy ones, whose skips are averaged with what comes up.

    Two residual blocks a level on the way down, three on the way up, no attention. Before each block on the way up its
    input h becomes (h + skip) / 2, so a block's output has the width of the next skip.

    Args:
        in_channels: channels of the volume; each has 8 subbands.
        channels: features of the first level.
        multipliers: features of each level over those of the first; the last level is the coarsest.

    Raises:
        ValueError: in one line, when GroupNorm cannot divide the features.
    """

    encoding = "haar"

    def __init__(self, in_channels: int = 1, channels: int = 64, multipliers: Sequence[int] = (1, 2, 2, 4)) -> None:
        super().__init__()
        if channels % _GROUPS or channels < 1 or not multipliers or min(multipliers) < 1:
            raise ValueError(
                f"channels must be a multiple of {_GROUPS} and multipliers 1 or more, got {channels} and {list(multipliers)}"
            )
        self.settings = {"kind": "wavelet", "in_channels": in_channels, "channels": channels,
                         "multipliers": list(multipliers), "num_predictions": 1}  # fmt: skip
        self.channels, self.num_levels = channels, len(multipliers)
        bands, time_size = SUBBANDS * in_channels, 4 * channels
        self.time = nn.Sequential(nn.Linear(channels, time_size), nn.SiLU(), nn.Linear(time_size, time_size))
        self.first = nn.Conv3d(bands, channels, 3, padding=1)
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        width, widths = channels, [channels]  # of the skips, from the first on

        def block(out: int, **resampling: bool) -> DiffusionUNetResnetBlock:
            nonlocal width
            made = DiffusionUNetResnetBlock(
                3, width, time_size, out, norm_num_groups=_GROUPS, norm_eps=_EPS, **resampling
            )
            if made.downsample is not None:
                made.downsample = _Halved()
            width = out
            return made

        for level, multiplier in enumerate(multipliers):
            for _ in range(2):
                self.down.append(block(multiplier * channels))
                widths.append(width)
            if level + 1 < len(multipliers):
                self.down.append(block(width, down=True))
                widths.append(width)
        self.middle = nn.ModuleList([block(width), block(width)])
        for level in reversed(range(len(multipliers))):
            for _ in range(3):
                widths.pop()
                self.up.append(block(widths[-1] if widths else channels))
            if level:
                self.up.append(block(width, up=True))
        self.norm = nn.GroupNorm(_GROUPS, channels, _EPS)
        self.last = zero_module(nn.Conv3d(channels, bands, 3, padding=1))

    def strides(self) -> list[int]:
        """Numbers that must divide every side of a volume."""
        return [2**self.num_levels]  # a wavelet transform, and all levels but the first

    def forward(self, x: Tensor, timesteps: Optional[Tensor] = None, context: Optional[Tensor] = None) -> Tensor:
        """Noisy subbands (B, 8C, D, H, W) at times (B,) or (1,) -> clean ones of the same shape."""
        if context is not None:
            raise ValueError("the network takes no context")
        times = torch.zeros(1, device=x.device) if timesteps is None else timesteps.to(x.device).float().reshape(-1)
        weights = self.first.weight.dtype
        time = self.time(get_timestep_embedding(times.expand(len(x)), self.channels).to(weights))  # (B, 4 channels)
        h = self.first(x.to(weights))
        skips = [h]
        for block in self.down:
            h = block(h, time)
            skips.append(h)
        for block in self.middle:
            h = block(h, time)
        for block in self.up:
            h = block(h if block.up else 0.5 * (h + skips.pop()), time)
        return self.last(F.silu(self.norm(h))).to(x.dtype)


@kind("wavelet")
def build_wavelet_unet(
    channels: int,
    multipliers: Sequence[int],
    in_channels: int = 1,
    num_predictions: int = 1,
    num_train_timesteps: int = 1000,
) -> WaveletUNet:
    """Builds a `WaveletUNet`; T is the process's, and there is one prediction, the signal."""
    if num_predictions != 1:
        raise ValueError(f"a network of the kind wavelet makes one prediction, got num_predictions {num_predictions}")
    return WaveletUNet(in_channels, channels, multipliers)
