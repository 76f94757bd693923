"""High resolution: a trained network at a lower grid inside every step, and a local refiner (paper section 3.4)."""

from __future__ import annotations

from typing import List, Optional, Sequence, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .base import DenoisingNetwork
from .kinds import build_network, kind
from .layers import pad_volume, token_grid
from .local_denoiser import LocalDenoiser
from .residual_dit import Guide


def downsample_nearest(x: Tensor, factor: int) -> Tensor:
    """Takes the first voxel of each block, (B, C, D, H, W) -> (B, C, D / f, ...): white noise keeps its variance.

    It is PyTorch's 'nearest', as in the authors' code. The voxel lies (f - 1) / 2 voxels before the block's centre.

    Raises:
        ValueError: when the factor does not divide a side.
    """
    for side in x.shape[2:]:
        if side % factor != 0:
            raise ValueError(f"every side must be a multiple of the factor {factor}, got {list(x.shape[2:])}")
    return x[:, :, ::factor, ::factor, ::factor].contiguous()


def upsample_nearest(noise: Tensor, factor: int) -> Tensor:
    """Repeats each voxel over its block, (B, C, d, h, w) -> (B, C, d f, ...): noise keeps its variance."""
    return F.interpolate(noise, size=[factor * side for side in noise.shape[2:]], mode="nearest")


def upsample_trilinear(signal: Tensor, factor: int) -> Tensor:
    """Interpolates between the centres of blocks, (B, C, d, h, w) -> (B, C, d f, ...), as averaging placed them."""
    size = [factor * side for side in signal.shape[2:]]
    return F.interpolate(signal, size=size, mode="trilinear", align_corners=False)


def upsample_prediction(prediction: Tensor, factor: int) -> Tensor:
    """(noise, signal) of the low grid on the high one, (B, 2C, d, h, w) -> (B, 2C, d f, h f, w f) (section 3.4)."""
    noise, signal = prediction.chunk(2, dim=1)
    return torch.cat([upsample_nearest(noise, factor), upsample_trilinear(signal, factor)], dim=1)


def cut_windows(x: Tensor, starts: Sequence[Sequence[int]], sides: Sequence[int]) -> Tensor:
    """One window of each volume, (B, C, D, H, W) -> (B, C, *sides); starts are (B, 3)."""
    pieces = []
    for volume, start in zip(x, starts):
        index = (slice(None), *(slice(first, first + side) for first, side in zip(start, sides)))
        pieces.append(volume[index])
    return torch.stack(pieces)


class HighResolutionPRDiT(DenoisingNetwork):
    """PRDiT with an arrow up: a network of a lower grid, its prediction upsampled, plus what a local denoiser adds.

    Args:
        backbone: of the lower grid; a PRDiT, or one of these, which makes a chain.
        refiner: local denoiser of the high grid.
        factor: voxels of the high grid along one of the low grid.
        time_size: length of the refiner's own time features.
        parametrization: 'none' adds the refiner's output (a, b) to the upsampled prediction (noise, signal), as in the
            paper. 'skip' first gives it what they leave unexplained of the volume, r = x_t - cos(theta) signal
            - sin(theta) noise: noise + sin(theta) r + cos(theta) a, signal + cos(theta) r - sin(theta) b. At (a, b) = 0
            these are the closest noise and signal that make up x_t, so that fine detail need not be copied by weights.
        num_train_timesteps: T, used by 'skip' alone.

    Raises:
        ValueError: when the parametrization is unknown.
    """

    def __init__(
        self,
        backbone: DenoisingNetwork,
        refiner: LocalDenoiser,
        factor: int,
        time_size: int,
        parametrization: str = "none",
        num_train_timesteps: int = 1000,
    ) -> None:
        super().__init__(time_size, parametrization, num_train_timesteps)
        self.factor, self.backbone, self.refiner = factor, backbone, refiner

    def modulations(self, times: Tensor) -> List[Tensor]:
        """(6, B, C p**3) of the refiner, then those of the backbone."""
        return [self.refiner.modulations(self._time_features(times))] + self.backbone.modulations(times)

    def combine(self, x: Tensor, times: Tensor, upsampled: Tensor, raw: Tensor) -> Tensor:
        """The prediction (B, 2C, D, H, W) from x_t, the upsampled prediction, and what the refiner gave."""
        if not self.skip:
            return upsampled + raw
        theta = self._angles(times)
        noise, signal = upsampled.chunk(2, dim=1)
        unexplained = x - theta.cos() * signal - theta.sin() * noise
        return upsampled + self._skip(unexplained, times, raw, 1.0)

    def predict(
        self,
        x: Tensor,
        times: Tensor,
        modulations: List[Tensor],
        positions: Optional[Tensor] = None,
        guide: Optional[Guide] = None,
    ) -> Tensor:
        """As `forward`; `positions` and `guide` are the backbone's."""
        low = self.backbone.predict(downsample_nearest(x, self.factor), times, modulations[1:], positions, guide)
        raw = self.refiner.denoise(x.to(self.time.weight.dtype), modulations[0]).to(x.dtype)
        return self.combine(x, times, upsample_prediction(low, self.factor), raw)

    @torch.jit.unused
    def positions(self, spatial_shape: List[int]) -> Optional[Tensor]:
        """The backbone's."""
        return self.backbone.positions(token_grid(spatial_shape, self.factor))

    @torch.jit.unused
    def strides(self) -> List[int]:
        return [self.refiner.stride] + [self.factor * stride for stride in self.backbone.strides()]

    @torch.jit.unused
    def require_process(self, num_train_timesteps: int) -> None:
        super().require_process(num_train_timesteps)
        self.backbone.require_process(num_train_timesteps)

    @torch.jit.unused
    def forward_parts(self, x: Tensor, timesteps: Optional[Tensor] = None) -> Tuple[Tensor, Tensor]:
        """The upsampled prediction of the backbone and what the refiner adds, each (B, 2C, D, H, W)."""
        upsampled = upsample_prediction(self.backbone(downsample_nearest(x, self.factor), timesteps), self.factor)
        return upsampled, self(x, timesteps) - upsampled

    @torch.jit.unused
    def forward_windows(
        self, x: Tensor, timesteps: Tensor, starts: Sequence[Sequence[int]], sides: Sequence[int]
    ) -> Tuple[Tensor, Tensor]:
        """The prediction in one window of each volume, for training: the refiner needs no more than its patches.

        The backbone sees whole volumes, without autograd where it is frozen.

        Args:
            x: noisy volumes, (B, C, D, H, W).
            timesteps: (B,).
            starts: (B, 3), multiples of the refiner's stride and of the factor.
            sides: of the windows, likewise.

        Returns:
            As `forward` inside the windows (B, 2C, *sides), and the backbone's prediction there (B, 2C, *sides / f).
        """
        times, factor, halo = self._times(x, timesteps), self.factor, self.refiner.halo
        trained = any(parameter.requires_grad for parameter in self.backbone.parameters())
        with torch.set_grad_enabled(trained and torch.is_grad_enabled()):
            low = self.backbone(downsample_nearest(x, factor), times)
        padded = pad_volume(x, self.refiner.patch_size, self.refiner.stride).to(self.time.weight.dtype)
        patches = cut_windows(padded, starts, [side + 2 * halo for side in sides])
        raw = self.refiner(patches, self._time_features(times), padded=True).to(x.dtype)
        # one voxel around the window, for interpolation; beyond the volume the border's value, as there
        corners, inner = [[first // factor for first in start] for start in starts], [side // factor for side in sides]
        low = cut_windows(F.pad(low, [1] * 6, mode="replicate"), corners, [side + 2 for side in inner])
        f = factor
        upsampled = upsample_prediction(low, f)[..., f:-f, f:-f, f:-f]
        prediction = self.combine(cut_windows(x, starts, sides), times, upsampled, raw)
        return prediction, low[..., 1:-1, 1:-1, 1:-1]


@kind("high_resolution")
def build_high_resolution(
    backbone: dict,
    factor: int = 2,
    hidden_size: int = 768,
    patch_size: int = 12,
    stride: int = 8,
    parametrization: str = "none",
    norm: str = "layer",
    chunk_tokens: int = 0,
    num_train_timesteps: int = 1000,
) -> HighResolutionPRDiT:
    """Builds a high-resolution network from plain numbers and words, which are what a checkpoint stores about it.

    Args:
        backbone: settings of the network of the low grid: of `build_prdit`, or of this function.
        factor: voxels of the high grid along one of the low grid, 2 or more.
        hidden_size: features of the refiner's own time embedding.
        patch_size: side of the refiner's patches, in voxels of the high grid.
        stride: distance of the refiner's patches.
        parametrization: 'none' or 'skip', see `HighResolutionPRDiT`; the backbone has its own.
        norm: 'layer' or 'rms', of the refiner.
        chunk_tokens: see `LocalDenoiser`, of the refiner.
        num_train_timesteps: T of the process.

    Raises:
        ValueError: when sizes do not fit, or the backbone predicts a velocity.
    """
    settings = {"kind": "high_resolution", **locals()}
    del settings["num_train_timesteps"]  # the process's
    if not isinstance(factor, int) or factor < 2:
        raise ValueError(f"factor must be a whole number, 2 or more, got {factor}")
    low = build_network(**backbone, num_train_timesteps=num_train_timesteps)
    channels, num_predictions = low.settings["in_channels"], low.settings["num_predictions"]
    if num_predictions != 2:
        raise ValueError("high resolution upsamples noise and signal apart: a network of flow matching has neither")
    refiner = LocalDenoiser(channels, 2 * channels, patch_size, stride, hidden_size, norm, chunk_tokens)
    network = HighResolutionPRDiT(low, refiner, factor, hidden_size, parametrization, num_train_timesteps)
    network.settings = {**settings, "backbone": low.settings, "in_channels": channels, "num_predictions": 2}
    return network
