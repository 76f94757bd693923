"""What a network sees of a volume in HU, and the way back."""

from __future__ import annotations

from typing import Sequence

from torch import Tensor, nn


class Space(nn.Module):
    """Encodes volumes in HU (B, C, X, Y, Z) to what a network sees, and decodes what it draws.

    A module, so that one with weights of its own goes where the network goes.
    """

    def encode(self, hu: Tensor) -> Tensor:
        """Volumes in HU, (B, C, X, Y, Z) -> what the network sees, float32."""
        raise NotImplementedError

    def decode(self, sample: Tensor) -> Tensor:
        """What a network drew -> volumes in HU, (B, C, X, Y, Z), float32."""
        raise NotImplementedError

    def shape(self, channels: int, grid: Sequence[int]) -> tuple[int, ...]:
        """Of one encoded volume of these channels and voxels, without the batch."""
        raise NotImplementedError


class HUWindow(Space):
    """A window of HU becomes [-1, 1], and everything beyond it its ends.

    Args:
        low: HU of -1.
        high: HU of 1.
    """

    def __init__(self, low: float = -1000.0, high: float = 1000.0) -> None:
        super().__init__()
        self.low, self.high = float(low), float(high)

    def encode(self, hu: Tensor) -> Tensor:
        return (hu - self.low).div_(self.high - self.low).mul_(2).sub_(1).clamp_(-1, 1)

    def decode(self, sample: Tensor) -> Tensor:
        return (sample.clamp(-1, 1) + 1) * (0.5 * (self.high - self.low)) + self.low

    def shape(self, channels: int, grid: Sequence[int]) -> tuple[int, ...]:
        return (channels, *grid)
