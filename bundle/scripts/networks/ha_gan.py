"""HA-GAN (Sun et al. 2022): one latent vector to a whole volume of low resolution, and to slabs of high resolution."""

from __future__ import annotations

import math
from typing import Any, Optional

import torch
from torch import Tensor, nn
from torch.nn.functional import leaky_relu
from torch.nn.utils.parametrizations import spectral_norm

from .kinds import kind

GROUPS = 8  # of every GroupNorm
SHRINK = 4  # of the features and the low volume over the volume, along each axis
SLABS = 8  # slabs in a volume, along z
_SLOPE = 0.2  # of LeakyReLU


def _stage(before: int, after: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv3d(before, after, 3, padding=1), nn.GroupNorm(GROUPS, after), nn.ReLU())


def _doubled() -> nn.Upsample:
    return nn.Upsample(scale_factor=2, mode="nearest")


class HAGenerator(nn.Module):
    """Generator: common features A at a quarter of the sides; a small head makes the volume at that size, another one the
    volume from A, or a slab of it from a slab of A. Only whole volumes are sampled.

    A slab's convolutions see zeros at its cut faces in training, and its neighbours in sampling, and GroupNorm takes its
    numbers from the slab, or from the whole: so slabs differ between both. It is inherent in the method.

    Args:
        side: voxels of a volume along each axis: 32, 64, 128 or 256.
        channels: c; the features are 16c at 4^3, and 2c in A.
        latent_size: numbers that a volume is drawn from.

    Raises:
        ValueError: in one line, for another side, or where GroupNorm cannot divide the features.
    """

    def __init__(self, side: int, channels: int = 32, latent_size: int = 1024) -> None:
        super().__init__()
        if side not in (32, 64, 128, 256):
            raise ValueError(f"HA-GAN needs a grid of 32, 64, 128 or 256 voxels along every axis, got {side}")
        if channels < 1 or channels % (2 * GROUPS):
            raise ValueError(f"channels must be a multiple of {2 * GROUPS}, got {channels}")
        self.settings: dict[str, Any] = {"kind": "ha_gan", "side": side, "channels": channels, "latent_size": latent_size,
                                         "in_channels": 1, "num_predictions": 1}  # fmt: skip
        self.side, self.latent_size, c = side, latent_size, channels
        self.start = nn.Linear(latent_size, 16 * c * 4**3)
        widths, doublings = [16 * c, 16 * c, 16 * c, 8 * c, 4 * c, 2 * c], int(math.log2(side)) - 4
        layers: list[nn.Module] = []
        for number, (before, after) in enumerate(zip(widths, widths[1:])):
            layers += [_doubled()] if 1 <= number <= doublings else []
            layers.append(_stage(before, after))
        self.common = nn.Sequential(*layers)
        self.low = nn.Sequential(_stage(2 * c, c), _stage(c, c // 2), nn.Conv3d(c // 2, 1, 3, padding=1), nn.Tanh())
        self.high = nn.Sequential(
            _doubled(), _stage(2 * c, c), _doubled(), nn.Conv3d(c, 1, 3, padding=1), nn.Tanh()
        )  # fmt: skip

    def strides(self) -> list[int]:
        """Numbers that must divide every side of a volume."""
        return [self.side]

    def features(self, latent: Tensor) -> Tensor:
        """(B, latent_size) -> A, (B, 2c, S/4, S/4, S/4)."""
        return self.common(self.start(latent).unflatten(1, (-1, 4, 4, 4)))

    def forward(self, latent: Tensor, timesteps: Optional[Tensor] = None, context: Optional[Tensor] = None) -> Tensor:
        """(B, latent_size) -> volumes (B, 1, S, S, S)."""
        return self.high(self.features(latent.to(self.start.weight.dtype))).float()

    def both(self, latent: Tensor, slab: int) -> tuple[Tensor, Tensor]:
        """For training: the low volume (B, 1, S/4, ...), and the slab (B, 1, S, S, S/8) that starts at the voxel `slab`."""
        features = self.features(latent)
        first = slab // SHRINK
        part = features[..., first : first + self.side // SLABS // SHRINK]
        return self.low(features), self.high(part)


class HADiscriminator(nn.Module):
    """One logit of a slab of a volume, which knows where it starts, and of the whole low volume, (high + low) / 2.

    Layers in front are left out below 128^3 and added at 256^3, so that both paths end at 4^3.
    """

    def __init__(self, side: int, channels: int = 32) -> None:
        super().__init__()
        c, self.last_start = channels, side - side // SLABS
        flat = {"kernel_size": (4, 4, 2), "stride": 2, "padding": (1, 1, 0)}
        cube = {"kernel_size": 4, "stride": 2, "padding": 1}
        first = int(math.log2(256 // side))  # layers that are left out
        widths = [c // 2, c, 2 * c, 4 * c, 8 * c, 16 * c, 4 * c]  # after each layer of 256^3
        kernels: list[dict[str, Any]] = [cube, cube, cube, flat, flat]
        kernels += [{"kernel_size": (4, 4, 1), "stride": (2, 2, 1), "padding": (1, 1, 0)}, {"kernel_size": (4, 4, 1)}]
        self.high = self._path(widths[first:], kernels[first:])
        self.joined = nn.ModuleList([spectral_norm(nn.Linear(4 * c + 1, 2 * c)), spectral_norm(nn.Linear(2 * c, 1))])
        self.low = self._path([c, 2 * c, 4 * c, 8 * c, 1][first:], [cube, cube, cube, cube, {"kernel_size": 4}][first:])

    @staticmethod
    def _path(widths: list[int], kernels: list[dict[str, Any]]) -> nn.ModuleList:
        pairs = zip([1, *widths], widths, kernels)
        return nn.ModuleList([spectral_norm(nn.Conv3d(before, after, **given)) for before, after, given in pairs])

    def forward(self, low: Tensor, slab: Tensor, start: int) -> Tensor:
        """Low volumes (B, 1, S/4, ...) and slabs (B, 1, S, S, S/8) that start at a voxel -> logits (B, 1)."""
        for layer in self.high:
            slab = leaky_relu(layer(slab), _SLOPE)
        where = torch.full((len(slab), 1), start / self.last_start, device=slab.device, dtype=slab.dtype)
        high = self.joined[1](leaky_relu(self.joined[0](torch.cat([slab.flatten(1), where], dim=1)), _SLOPE))
        for number, layer in enumerate(self.low):
            low = layer(low if not number else leaky_relu(low, _SLOPE))
        return 0.5 * (high + low.flatten(1))


@kind("ha_gan")
def build_ha_gan(
    side: int, channels: int = 32, latent_size: int = 1024, in_channels: int = 1, num_predictions: int = 1,
    num_train_timesteps: int = 1000,
) -> HAGenerator:  # fmt: skip
    """Builds an `HAGenerator`, which has no times."""
    if (in_channels, num_predictions) != (1, 1):
        raise ValueError(
            f"HA-GAN draws volumes of one channel, got in_channels {in_channels}, {num_predictions} predictions"
        )
    return HAGenerator(side, channels, latent_size)
