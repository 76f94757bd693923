"""What a network sees of a volume in HU, and the way back."""

from __future__ import annotations

import math
from typing import Sequence

import torch
from torch import Tensor, nn

SUBBANDS = 8  # of a wavelet transform in three dimensions


class Space(nn.Module):
    """Encodes volumes in HU (B, C, X, Y, Z) to what a network sees, and decodes what it draws.

    A module, so that one with weights of its own goes where the network goes.
    """

    encoding: str  # its name in `SPACES`
    bounded = False  # whether `constrain` does anything

    def encode(self, hu: Tensor) -> Tensor:
        """Volumes in HU, (B, C, X, Y, Z) -> what the network sees, float32."""
        raise NotImplementedError

    def decode(self, sample: Tensor) -> Tensor:
        """What a network drew -> volumes in HU, (B, C, X, Y, Z), float32."""
        raise NotImplementedError

    def constrain(self, signal: Tensor) -> Tensor:
        """The nearest of what encoded volumes can be, for what is predicted in each step of sampling."""
        return signal

    def shape(self, channels: int, grid: Sequence[int]) -> tuple[int, ...]:
        """Of one encoded volume of these channels and voxels, without the batch."""
        raise NotImplementedError


class HUWindow(Space):
    """A window of HU becomes [-1, 1], and everything beyond it its ends.

    Args:
        low: HU of -1.
        high: HU of 1.
    """

    encoding = "voxels"

    def __init__(self, low: float = -1000.0, high: float = 1000.0) -> None:
        super().__init__()
        self.low, self.high = float(low), float(high)

    def encode(self, hu: Tensor) -> Tensor:
        return (hu - self.low).div_(self.high - self.low).mul_(2).sub_(1).clamp_(-1, 1)

    def decode(self, sample: Tensor) -> Tensor:
        return (sample.clamp(-1, 1) + 1) * (0.5 * (self.high - self.low)) + self.low

    def shape(self, channels: int, grid: Sequence[int]) -> tuple[int, ...]:
        return (channels, *grid)


class Haar(HUWindow):
    """The window, then one level of the orthonormal Haar transform: 8 subbands of half the sides (WDM-3D).

    Along each axis low = (a + b) / sqrt 2 and high = (a - b) / sqrt 2; the subbands are in the order LLL, LLH, LHL, ...,
    HHH. LLL is divided by 3, which brings it to about [-1, 1]; the others stay as they are.

    Args:
        low: HU of -1.
        high: HU of 1.
    """

    encoding, bounded = "haar", True

    def encode(self, hu: Tensor) -> Tensor:
        return self.transform(super().encode(hu))

    def decode(self, sample: Tensor) -> Tensor:
        return super().decode(self.inverse(sample))

    def constrain(self, signal: Tensor) -> Tensor:
        """Subbands of voxels within [-1, 1]."""
        return self.transform(self.inverse(signal).clamp_(-1, 1))

    def shape(self, channels: int, grid: Sequence[int]) -> tuple[int, ...]:
        return (SUBBANDS * channels, *(side // 2 for side in grid))

    @staticmethod
    def transform(volume: Tensor) -> Tensor:
        """(B, C, D, H, W) -> (B, 8C, D/2, H/2, W/2), LLL of all channels first."""
        bands = volume[:, None]  # (B, subbands, C, D, H, W)
        for axis in (3, 4, 5):
            even, odd = bands.unflatten(axis, (-1, 2)).unbind(axis + 1)
            bands = torch.stack([even + odd, even - odd], dim=2).flatten(1, 2) * math.sqrt(0.5)
        bands[:, 0] /= 3
        return bands.flatten(1, 2)

    @staticmethod
    def inverse(sample: Tensor) -> Tensor:
        """(B, 8C, D/2, H/2, W/2) -> (B, C, D, H, W)."""
        bands = sample.unflatten(1, (SUBBANDS, -1)).clone()
        bands[:, 0] *= 3
        for axis in (5, 4, 3):
            low, high = bands.unflatten(1, (-1, 2)).unbind(2)
            bands = torch.stack([low + high, low - high], dim=axis + 1).flatten(axis, axis + 1) * math.sqrt(0.5)
        return bands[:, 0]


SPACES: dict[str, type[HUWindow]] = {space.encoding: space for space in (HUWindow, Haar)}


def build_space(encoding: str, hu_window: Sequence[float]) -> HUWindow:
    """The space of a network by what it sees of volumes, one of `SPACES`, and its window; ValueError for latents, which an
    autoencoder makes."""
    if encoding not in SPACES:
        raise ValueError(f"encoding {encoding} needs an autoencoder: see docs/baselines.md")
    return SPACES[encoding](*hu_window)
