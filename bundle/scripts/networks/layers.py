"""Patches, position codes and the small layers that both branches of PRDiT share."""

from __future__ import annotations

import math
from typing import List

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor


def zero_init(layer: nn.Linear) -> nn.Linear:
    """Sets weight and bias to zero, so that a new branch starts as 'no change' (adaLN-Zero, paper Tables 9 and 10)."""
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def token_grid(spatial_shape: List[int], stride: int) -> List[int]:
    """Number of tokens along each axis of a volume.

    Raises:
        ValueError: when a side is not a multiple of the stride.
    """
    for side in spatial_shape:
        if side % stride != 0:
            raise ValueError(f"every side of the volume must be a multiple of the stride {stride}, got {spatial_shape}")
    return [side // stride for side in spatial_shape]


def check_patches(patch_size: int, stride: int) -> None:
    """Raises a ValueError when patches of this size cannot be centred on blocks of this stride."""
    if stride < 1 or patch_size < stride or (patch_size - stride) % 2:
        raise ValueError(
            f"patch_size - stride must be even and not negative, got patch_size {patch_size} and stride {stride}"
        )


def check_reflection(spatial_shape: List[int], patch_size: int, stride: int) -> None:
    """Raises a ValueError when a volume is too small to reflect what its outer patches overlap."""
    if min(spatial_shape) <= (patch_size - stride) // 2:
        raise ValueError(f"a grid of {spatial_shape} is too small for patch_size {patch_size} and stride {stride}")


def pad_volume(volume: Tensor, patch_size: int, stride: int) -> Tensor:
    """Reflects the borders, (B, C, D, H, W) -> (B, C, D + p - s, ...), so that every token sees a whole patch."""
    halo = (patch_size - stride) // 2
    if halo == 0:
        return volume
    check_reflection([volume.shape[2], volume.shape[3], volume.shape[4]], patch_size, stride)
    return F.pad(volume, (halo, halo, halo, halo, halo, halo), mode="reflect")


def patchify(padded: Tensor, patch_size: int, stride: int) -> Tensor:
    """Cuts a padded volume into overlapping patches.

    Args:
        padded: (B, C, D + p - s, H + p - s, W + p - s), see `pad_volume`.

    Returns:
        (B, N, C * p**3): N = D/s * H/s * W/s tokens, the first spatial axis slowest; a patch vector runs over
        channel, then the three axes of the patch, the last one fastest.
    """
    windows = padded.unfold(2, patch_size, stride).unfold(3, patch_size, stride).unfold(4, patch_size, stride)
    windows = windows.permute(0, 2, 3, 4, 1, 5, 6, 7)  # (B, gD, gH, gW, C, p, p, p)
    return windows.flatten(4).flatten(1, 3)


def unpatchify(tokens: Tensor, grid: List[int], stride: int) -> Tensor:
    """Folds non-overlapping predictions to a volume, (B, N, s**3 * C) -> (B, C, D, H, W); the channel runs fastest."""
    channels = tokens.shape[2] // (stride * stride * stride)  # TorchScript makes a float of stride**3
    shape = [tokens.shape[0], grid[0], grid[1], grid[2], stride, stride, stride, channels]
    blocks = tokens.reshape(shape).permute(0, 7, 1, 4, 2, 5, 3, 6)  # (B, C, gD, s, gH, s, gW, s)
    return blocks.reshape(tokens.shape[0], channels, grid[0] * stride, grid[1] * stride, grid[2] * stride)


def pick_tokens(tokens: Tensor, kept: Tensor) -> Tensor:
    """Some of a volume's tokens, (B or 1, N, F) and their numbers (B, K) -> (B, K, F)."""
    index = kept[:, :, None].expand(kept.shape[0], kept.shape[1], tokens.shape[2])
    return tokens.expand(kept.shape[0], tokens.shape[1], tokens.shape[2]).gather(1, index)


def put_tokens(tokens: Tensor, kept: Tensor, new: Tensor) -> Tensor:
    """Tokens (B, N, F) with new ones (B, K, F) in the places `kept` (B, K)."""
    return tokens.scatter(1, kept[:, :, None].expand(new.shape[0], new.shape[1], new.shape[2]), new)


def _axis_code(length: int, num_frequencies: int, device: torch.device) -> Tensor:
    """Code of one axis, (length, 2 * num_frequencies): sines, then cosines, of the token centres in [0, 1]."""
    centres = (torch.arange(length, dtype=torch.float32, device=device) + 0.5) / length
    highest = math.log10(0.95 * length / 2)
    frequencies = 2 * math.pi * torch.logspace(0.0, highest, num_frequencies, device=device)
    angles = centres[:, None] * frequencies[None]
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


def position_code(grid: List[int], size: int, device: torch.device) -> Tensor:
    """Fixed 3D sin-cos code of the token centres, (N, size); last axis first, as x, y, z.

    It is computed for the grid at hand, so any grid works. Where `size` is not a multiple of 6 the rest is zero.
    """
    depth, height, width = grid[0], grid[1], grid[2]
    count = size // 6
    z = _axis_code(depth, count, device)[:, None, None].expand(depth, height, width, 2 * count)
    y = _axis_code(height, count, device)[None, :, None].expand(depth, height, width, 2 * count)
    x = _axis_code(width, count, device)[None, None].expand(depth, height, width, 2 * count)
    return F.pad(torch.cat([x, y, z], dim=-1).flatten(0, 2), (0, size - 6 * count))


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Adaptive layer norm's affine part: x (B, N, F), shift and scale (B, F)."""
    return torch.addcmul(shift[:, None], x, 1 + scale[:, None])


def make_norm(kind: str, size: int) -> nn.Module:
    """The norm that adaLN modulates, without parameters: 'layer' (eps 1e-6), or 'rms' (eps 1e-5), the second published
    variant (design 2.2)."""
    if kind == "layer":
        return nn.LayerNorm(size, elementwise_affine=False, eps=1e-6)
    if kind == "rms":
        return nn.RMSNorm(size, eps=1e-5, elementwise_affine=False)
    raise ValueError(f"norm must be 'layer' or 'rms', got '{kind}'")


class AdaptiveModulation(nn.Module):
    """SiLU and a zero-initialised Linear that give `num_parts` vectors for shift, scale and gate from the time.

    The RMSNorm variant normalises the whole output once more.
    """

    def __init__(self, time_size: int, size: int, num_parts: int, norm: str = "layer") -> None:
        super().__init__()
        self.num_parts = num_parts
        self.linear = zero_init(nn.Linear(time_size, num_parts * size))
        self.norm = make_norm("rms", num_parts * size) if norm == "rms" else nn.Identity()

    def forward(self, time: Tensor) -> List[Tensor]:
        return self.norm(self.linear(F.silu(time))).chunk(self.num_parts, dim=-1)


class SwiGLU(nn.Module):
    """Gated layer with a LayerNorm inside: output(LN(SiLU(gate(x)) * up(x))), (B, N, F) -> (B, N, F).

    Gate and up are one Linear of twice the width: one matrix product instead of two.
    """

    def __init__(self, size: int, hidden_size: int) -> None:
        super().__init__()
        self.gate_up = nn.Linear(size, 2 * hidden_size)
        self.norm = nn.LayerNorm(hidden_size)
        self.output = nn.Linear(hidden_size, size)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        return self.output(self.norm(F.silu(gate) * up))
