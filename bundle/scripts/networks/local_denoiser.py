"""Stage 1: an MLP that denoises overlapping 3D patches one by one (paper section 3.1)."""

from __future__ import annotations

import torch
import torch.nn as nn
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from .layers import (
    AdaptiveModulation,
    SwiGLU,
    check_patches,
    make_norm,
    modulate,
    pad_volume,
    patchify,
    token_grid,
    unpatchify,
    zero_init,
)


class LocalDenoiser(nn.Module):
    """Predicts the inner s**3 voxels of each p**3 patch from that patch and the time alone.

    Args:
        in_channels: channels of the volume.
        out_channels: channels of the prediction.
        patch_size: side p of the patches, in voxels.
        stride: side s of what a patch predicts; p - s must be even and not negative.
        time_size: length of the shared time features.
        norm: 'layer' or 'rms', the two published variants.
        chunk_tokens: most patches (times batch) in one go, which bounds the activation memory; 0 is no bound. While
            training, a chunk's activations are computed again in the backward pass.

    Raises:
        ValueError: when patch size and stride do not fit.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        patch_size: int,
        stride: int,
        time_size: int,
        norm: str = "layer",
        chunk_tokens: int = 0,
    ) -> None:
        super().__init__()
        check_patches(patch_size, stride)
        self.patch_size, self.stride, self.chunk_tokens = patch_size, stride, chunk_tokens
        self.halo = (patch_size - stride) // 2  # voxels that a patch sees beyond what it predicts
        width = in_channels * patch_size**3
        self.time_head = nn.Linear(time_size, width)
        self.modulation = AdaptiveModulation(width, width, 6, norm)
        self.norm1 = make_norm(norm, width)
        self.block1 = SwiGLU(width, width)
        self.norm2 = make_norm(norm, width)
        self.block2 = SwiGLU(width, width)
        self.output = zero_init(nn.Linear(width, out_channels * stride**3))

    def _denoise(self, patches: Tensor, modulation: Tensor) -> Tensor:
        """(B, N, C p**3) patches and (6, B, C p**3) modulation -> (B, N, s**3 C_out)."""
        z = self.block1(modulate(self.norm1(patches), modulation[0], modulation[1]))
        z = self.block2(modulate(self.norm2(z), modulation[2], modulation[3]))
        return self.output(modulate(z + patches, modulation[4], modulation[5]))

    def modulations(self, time: Tensor) -> Tensor:
        """Shifts and scales of all layers, (6, B, C p**3), from the shared time features (B, time_size)."""
        return torch.stack(self.modulation(self.time_head(time)))

    def predict_tokens(self, patches: Tensor, modulation: Tensor) -> Tensor:
        """Denoises patches, (B, N, C p**3) and modulation (6, B or 1, C p**3) -> (B, N, s**3 C_out)."""
        chunk = self.chunk_tokens // patches.shape[0] if self.chunk_tokens > 0 else patches.shape[1]
        if chunk >= patches.shape[1]:
            return self._denoise(patches, modulation)
        outputs = []
        for part in patches.split(max(chunk, 1), dim=1):
            if not torch.jit.is_scripting() and torch.is_grad_enabled():
                outputs.append(checkpoint(self._denoise, part, modulation, use_reentrant=False))
            else:
                outputs.append(self._denoise(part, modulation))
        return torch.cat(outputs, dim=1)

    def forward(self, x: Tensor, time: Tensor, padded: bool = False) -> Tensor:
        """(B, C, D, H, W) -> (B, C_out, D, H, W).

        Args:
            x: noisy volume.
            time: shared time features, (B, time_size).
            padded: x already has the halo on every side; the output is then smaller by it.
        """
        return self.denoise(x, self.modulations(time), padded)

    def denoise(self, x: Tensor, modulation: Tensor, padded: bool = False) -> Tensor:
        """As `forward`, with what `modulations` made of the time."""
        beyond = 2 * self.halo if padded else 0
        grid = token_grid([x.shape[2] - beyond, x.shape[3] - beyond, x.shape[4] - beyond], self.stride)
        # the padded volume is not kept while the patches are denoised
        patches = patchify(x if padded else pad_volume(x, self.patch_size, self.stride), self.patch_size, self.stride)
        return unpatchify(self.predict_tokens(patches, modulation), grid, self.stride)


class NoLocalDenoiser(nn.Module):
    """Nothing in the place of stage 1: the network is its transformer alone (paper Table 4, w/o local denoiser)."""

    def __init__(self, out_channels: int, stride: int) -> None:
        super().__init__()
        self.out_channels, self.patch_size, self.stride, self.halo = out_channels, stride, stride, 0

    def modulations(self, time: Tensor) -> Tensor:
        """None, (6, B, 0)."""
        return time.new_zeros(6, time.shape[0], 0)

    def forward(self, x: Tensor, time: Tensor, padded: bool = False) -> Tensor:
        """Zeros, (B, C_out, D, H, W)."""
        return self.denoise(x, self.modulations(time), padded)

    def denoise(self, x: Tensor, modulation: Tensor, padded: bool = False) -> Tensor:
        return x.new_zeros(x.shape[0], self.out_channels, x.shape[2], x.shape[3], x.shape[4])
