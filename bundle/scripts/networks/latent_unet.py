"""The U-Net of 3D-LDM (Khader et al. 2023): convolutions within axial slices, attention within them and along z."""

from __future__ import annotations

import math
from typing import Any, Optional, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..spaces import HUWindow
from .kinds import build_network, kind
from .vq_gan import CODE_SIZE, VQGAN

_GROUPS, _HEADS, _HEAD_SIZE = 8, 8, 32
_BUCKETS, _FARTHEST = 32, 32  # of the relative bias along z, as in T5


class _Norm(nn.Module):
    """LayerNorm over the channels with a gain alone, (..., C)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], self.gain, None, 1e-5)


class RelativeBias(nn.Module):
    """A number for each head and distance along z, in buckets that widen with the distance; shared by all layers."""

    def __init__(self) -> None:
        super().__init__()
        self.values = nn.Embedding(_BUCKETS, _HEADS)

    def forward(self, length: int) -> Tensor:
        """(heads, length, length)."""
        place = torch.arange(length, device=self.values.weight.device)
        distance = place[:, None] - place[None]  # of a query over a key
        half, exact = _BUCKETS // 2, _BUCKETS // 4
        far = distance.abs().clamp(min=1).float()
        wide = exact + (far.div(exact).log() / math.log(_FARTHEST / exact) * (half - exact)).long().clamp(
            max=half - exact - 1
        )
        bucket = half * (distance < 0) + torch.where(distance.abs() < exact, distance.abs(), wide)
        return self.values(bucket).permute(2, 0, 1)


def rotated(x: Tensor) -> Tensor:
    """Rotary code of the place, (..., length, head size): pairs of neighbours turn by their place (Su et al. 2021)."""
    size = x.shape[-1]
    rates = 10_000 ** (-torch.arange(0, size, 2, device=x.device, dtype=torch.float32) / size)
    angles = (torch.arange(x.shape[-2], device=x.device)[:, None] * rates).repeat_interleave(2, dim=-1).to(x.dtype)
    turned = torch.stack([-x[..., 1::2], x[..., ::2]], dim=-1).flatten(-2)
    return x * angles.cos() + turned * angles.sin()


class Attention(nn.Module):
    """Multi-head attention of sequences (N, L, C), as a residual; along z with rotary code and relative bias."""

    def __init__(self, channels: int, along_z: bool) -> None:
        super().__init__()
        self.norm, self.along_z = _Norm(channels), along_z
        self.qkv = nn.Linear(channels, 3 * _HEADS * _HEAD_SIZE, bias=False)
        self.output = nn.Linear(_HEADS * _HEAD_SIZE, channels, bias=False)

    def forward(self, x: Tensor, bias: Optional[Tensor] = None) -> Tensor:
        q, k, v = self.qkv(self.norm(x)).unflatten(-1, (3, _HEADS, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        if self.along_z:
            q, k = rotated(q), rotated(k)
        mask = None if bias is None else bias[None].to(q.dtype)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)  # (N, heads, L, head size)
        return x + self.output(y.transpose(1, 2).flatten(2))


class LinearAttention(nn.Module):
    """Attention whose work is linear in the positions, of sequences (N, L, C), as a residual."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = _Norm(channels)
        self.qkv = nn.Linear(channels, 3 * _HEADS * _HEAD_SIZE, bias=False)
        self.output = nn.Linear(_HEADS * _HEAD_SIZE, channels)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm(x)).unflatten(-1, (3, _HEADS, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        context = k.softmax(dim=-2).transpose(-1, -2) @ v  # (N, heads, head size, head size)
        y = (q.softmax(dim=-1) * _HEAD_SIZE**-0.5) @ context
        return x + self.output(y.transpose(1, 2).flatten(2))


def in_slices(attention: nn.Module, x: Tensor) -> Tensor:
    """Attention over the positions of each axial slice, (B, C, X, Y, Z)."""
    batch, channels, width, height, depth = x.shape
    rows = x.permute(0, 4, 2, 3, 1).reshape(batch * depth, width * height, channels)
    return attention(rows).reshape(batch, depth, width, height, channels).permute(0, 4, 2, 3, 1)


def along_z(attention: nn.Module, x: Tensor, bias: Tensor) -> Tensor:
    """Attention along z at each place of a slice, (B, C, X, Y, Z)."""
    batch, channels, width, height, depth = x.shape
    rows = x.permute(0, 2, 3, 4, 1).reshape(batch * width * height, depth, channels)
    return attention(rows, bias).reshape(batch, width, height, depth, channels).permute(0, 4, 1, 2, 3)


class Block(nn.Module):
    """Two convolutions within slices, the first scaled and shifted by the time, beside a skip."""

    def __init__(self, before: int, after: int, time_size: int = 0) -> None:
        super().__init__()
        self.time = nn.Linear(time_size, 2 * after) if time_size else None
        self.conv1 = nn.Conv3d(before, after, (3, 3, 1), padding=(1, 1, 0))
        self.norm1 = nn.GroupNorm(_GROUPS, after)
        self.conv2 = nn.Conv3d(after, after, (3, 3, 1), padding=(1, 1, 0))
        self.norm2 = nn.GroupNorm(_GROUPS, after)
        self.skip = nn.Conv3d(before, after, 1) if before != after else nn.Identity()

    def forward(self, x: Tensor, time: Optional[Tensor] = None) -> Tensor:
        h = self.norm1(self.conv1(x))
        if self.time is not None and time is not None:
            scale, shift = self.time(F.silu(time))[:, :, None, None, None].chunk(2, dim=1)
            h = h * (1 + scale) + shift
        return F.silu(self.norm2(self.conv2(F.silu(h)))) + self.skip(x)


class Level(nn.Module):
    """Two blocks, then attention within slices and along z; `resampling` halves or doubles x and y."""

    def __init__(self, before: int, after: int, time_size: int, resampling: Optional[nn.Module]) -> None:
        super().__init__()
        self.block1, self.block2 = Block(before, after, time_size), Block(after, after, time_size)
        self.slices, self.depth = LinearAttention(after), Attention(after, along_z=True)
        self.resampling = resampling if resampling is not None else nn.Identity()

    def forward(self, x: Tensor, time: Tensor, bias: Tensor) -> Tensor:
        x = self.block2(self.block1(x, time), time)
        return along_z(self.depth, in_slices(self.slices, x), bias)


class LatentUNet(nn.Module):
    """Predicts the noise of latents.

    Args:
        in_channels: of the latents.
        channels: features of the first level; published is the side of the latents.
        multipliers: features of each level over those of the first. z is never halved.
    """

    def __init__(self, in_channels: int = 8, channels: int = 16, multipliers: tuple[int, ...] = (1, 2, 4, 8)) -> None:
        super().__init__()
        self.channels, time_size = channels, 4 * channels
        widths = [channels, *(multiplier * channels for multiplier in multipliers)]
        self.first = nn.Conv3d(in_channels, channels, (7, 7, 1), padding=(3, 3, 0))
        self.first_depth = Attention(channels, along_z=True)
        self.time = nn.Sequential(nn.Linear(channels, time_size), nn.GELU(), nn.Linear(time_size, time_size))
        self.bias = RelativeBias()
        kernel = {"kernel_size": (4, 4, 1), "stride": (2, 2, 1), "padding": (1, 1, 0)}
        pairs, last = list(zip(widths, widths[1:])), len(multipliers) - 1
        self.down = nn.ModuleList([
            Level(before, after, time_size, nn.Conv3d(after, after, **kernel) if number < last else None)  # type: ignore[arg-type]
            for number, (before, after) in enumerate(pairs)
        ])  # fmt: skip
        self.middle1, self.middle2 = (Block(widths[-1], widths[-1], time_size) for _ in range(2))
        self.middle_slices, self.middle_depth = (Attention(widths[-1], z) for z in (False, True))
        self.up = nn.ModuleList([
            Level(2 * after, before, time_size, nn.ConvTranspose3d(before, before, **kernel) if number < last else None)  # type: ignore[arg-type]
            for number, (before, after) in enumerate(reversed(pairs))
        ])  # fmt: skip
        self.last = nn.Sequential(Block(2 * channels, channels), nn.Conv3d(channels, in_channels, 1))

    def time_features(self, times: Tensor) -> Tensor:
        """(B,) -> (B, 4 channels), of sines, then cosines."""
        half = self.channels // 2
        rates = torch.exp(-math.log(10_000) / (half - 1) * torch.arange(half, device=times.device))
        angles = times[:, None] * rates
        return self.time(torch.cat([angles.sin(), angles.cos()], dim=-1).to(self.first.weight.dtype))

    def forward(self, x: Tensor, times: Tensor) -> Tensor:
        """Latents (B, C, X, Y, Z) at times (B,) -> noise of the same shape."""
        time, bias = self.time_features(times.float()), self.bias(x.shape[-1])
        first = self.first(x.to(self.first.weight.dtype))
        h, skips = along_z(self.first_depth, first, bias), []
        for level in self.down:
            h = level(h, time, bias)
            skips.append(h)
            h = level.resampling(h)  # type: ignore[operator]
        h = along_z(self.middle_depth, in_slices(self.middle_slices, self.middle1(h, time)), bias)
        h = self.middle2(h, time)
        for level in self.up:
            h = level(torch.cat([h, skips.pop()], dim=1), time, bias)
            h = level.resampling(h)  # type: ignore[operator]
        return self.last(torch.cat([h, first], dim=1)).to(x.dtype)


class LatentSpace(HUWindow):
    """The window, then the latents of an autoencoder before they meet its codebook, scaled so that its smallest and largest
    number are -1 and 1. Decoded are the codes next to them.

    Args:
        hu_window: see `HUWindow`.
        autoencoder: frozen, in float32.
    """

    encoding, bounded = "latents", True

    def __init__(self, hu_window: Sequence[float], autoencoder: VQGAN) -> None:
        super().__init__(*hu_window)
        self.autoencoder: VQGAN = autoencoder.eval().requires_grad_(False)

    def train(self, mode: bool = True) -> LatentSpace:
        return super().train(False)  # its codebook stays

    @torch.no_grad()
    def encode(self, hu: Tensor) -> Tensor:
        low, high = self.autoencoder.scale()
        return 2 * (self.autoencoder.encoder(super().encode(hu)) - low) / (high - low) - 1

    @torch.no_grad()
    def decode(self, sample: Tensor) -> Tensor:
        low, high = self.autoencoder.scale()
        codes = self.autoencoder.codebook(0.5 * (sample.float() + 1) * (high - low) + low)
        return super().decode(self.autoencoder.decoder(codes))

    def constrain(self, signal: Tensor) -> Tensor:
        return signal.clamp(-1, 1)

    def shape(self, channels: int, grid: Sequence[int]) -> tuple[int, ...]:
        return (CODE_SIZE, *(side // self.autoencoder.factor for side in grid))


class LatentDiffusion(nn.Module):
    """A `LatentUNet` with the frozen autoencoder of its latents, so that one file is the whole generator."""

    encoding = "latents"

    def __init__(self, autoencoder: VQGAN, channels: int = 16, multipliers: Sequence[int] = (1, 2, 4, 8)) -> None:
        super().__init__()
        if channels % _GROUPS or channels < 4 or not multipliers or min(multipliers) < 1:
            raise ValueError(
                f"channels must be a multiple of {_GROUPS} and multipliers 1 or more, got {channels} and {list(multipliers)}"
            )
        self.settings: dict[str, Any] = {"kind": "latent", "autoencoder": autoencoder.settings, "channels": channels,
                                         "multipliers": list(multipliers), "in_channels": 1, "num_predictions": 1}  # fmt: skip
        self.autoencoder = autoencoder.requires_grad_(False)
        self.unet = LatentUNet(CODE_SIZE, channels, tuple(multipliers))

    def train(self, mode: bool = True) -> LatentDiffusion:
        super().train(mode)
        self.autoencoder.eval()  # its codebook stays
        return self

    def strides(self) -> list[int]:
        """Numbers that must divide every side of a volume."""
        return [self.autoencoder.factor * 2 ** (len(self.settings["multipliers"]) - 1)]

    def forward(self, x: Tensor, timesteps: Optional[Tensor] = None, context: Optional[Tensor] = None) -> Tensor:
        """Noisy latents (B, 8, X, Y, Z) at times (B,) or (1,) -> their noise."""
        if context is not None:
            raise ValueError("the network takes no context")
        times = torch.zeros(1, device=x.device) if timesteps is None else timesteps.to(x.device).float().reshape(-1)
        return self.unet(x, times.expand(len(x)))


@kind("latent")
def build_latent_diffusion(
    autoencoder: dict, channels: int = 16, multipliers: Sequence[int] = (1, 2, 4, 8), in_channels: int = 1,
    num_predictions: int = 1, num_train_timesteps: int = 300,
) -> LatentDiffusion:  # fmt: skip
    """Builds a `LatentDiffusion`; T is the process's."""
    if (in_channels, num_predictions) != (1, 1):
        raise ValueError(f"a latent network draws volumes of one channel, got in_channels {in_channels}")
    return LatentDiffusion(build_network(**autoencoder), channels, multipliers)
