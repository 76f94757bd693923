"""The autoencoder of 3D-LDM (Khader et al. 2023): convolutions, a codebook of latents, and two patch discriminators."""

from __future__ import annotations

import math
from typing import Any, Optional

import torch
import torch.distributed
import torch.nn.functional as F
from monai.networks.nets import PatchDiscriminator
from torch import Tensor, nn

from .kinds import kind

CODE_SIZE = 8  # numbers of a latent
_GROUPS, _EPS = 32, 1e-6
_DECAY, _SMOOTHING, _COMMITMENT = 0.99, 1e-7, 0.25


def _conv(before: int, after: int, size: int = 3, stride: int = 1) -> nn.Conv3d:
    return nn.Conv3d(before, after, size, stride, (size - 1) // 2, padding_mode="replicate")


def _doubling(before: int, after: int) -> nn.Sequential:
    """A transposed convolution of twice the sides, whose input is padded by replication."""
    return nn.Sequential(nn.ReplicationPad3d(1), nn.ConvTranspose3d(before, after, 4, 2, 3))


class _ResBlock(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        parts = [nn.GroupNorm(_GROUPS, channels, _EPS), nn.SiLU(), _conv(channels, channels)]
        again = [nn.GroupNorm(_GROUPS, channels, _EPS), nn.SiLU(), _conv(channels, channels)]
        self.layers = nn.Sequential(*parts, *again)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


class Codebook(nn.Module):
    """Nearest codes, which follow the latents by moving averages. Everything is in float32.

    The first training batch gives the first codes. After each step a code that stands for less than one latent is
    overwritten by a latent of the batch.

    Args:
        num_codes: at most about a quarter of a batch's latents; of more, many codes are always overwritten.
    """

    def __init__(self, num_codes: int) -> None:
        super().__init__()
        for name, start in (("codes", torch.randn(num_codes, CODE_SIZE)), ("counts", torch.zeros(num_codes)),
                            ("sums", torch.zeros(num_codes, CODE_SIZE)), ("started", torch.tensor(False))):  # fmt: skip
            self.register_buffer(name, start)
        self.codes: Tensor
        self.counts: Tensor
        self.sums: Tensor
        self.started: Tensor

    @torch.autocast("cuda", enabled=False)
    @torch.autocast("cpu", enabled=False)
    def forward(self, latents: Tensor) -> Tensor:
        """(B, 8, X, Y, Z) -> the codes next to them, of the same shape."""
        flat = latents.detach().float().movedim(1, -1).reshape(-1, CODE_SIZE)
        if self.training:
            self._start(flat)
        index = torch.cat([torch.cdist(part, self.codes).argmin(1) for part in flat.split(8192)])
        found = self.codes[index].reshape(*latents.shape[:1], *latents.shape[2:], CODE_SIZE).movedim(-1, 1)
        if self.training:
            self._follow(flat, index)
        return found

    def _drawn(self, flat: Tensor) -> Tensor:
        """As many latents as there are codes, repeated with a little noise where there are fewer; the same on all ranks."""
        short = math.ceil(len(self.codes) / len(flat))
        many = flat.repeat(short, 1)
        if short > 1:
            many = many + 0.01 / math.sqrt(CODE_SIZE) * torch.randn_like(many)
        drawn = many[torch.randperm(len(many), device=flat.device)[: len(self.codes)]]
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.broadcast(drawn, 0)
        return drawn

    def _start(self, flat: Tensor) -> None:
        """Before the first step alone, without asking a GPU whether it is the first."""
        drawn = self._drawn(flat)
        for buffer, first in ((self.codes, drawn), (self.sums, drawn), (self.counts, torch.ones_like(self.counts))):
            buffer.copy_(torch.where(self.started, buffer, first))
        self.started.fill_(True)

    def _follow(self, flat: Tensor, index: Tensor) -> None:
        counts = torch.zeros_like(self.counts).index_add_(0, index, torch.ones_like(flat[:, 0]))
        sums = torch.zeros_like(self.sums).index_add_(0, index, flat)
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(counts)
            torch.distributed.all_reduce(sums)
        self.counts.lerp_(counts, 1 - _DECAY)
        self.sums.lerp_(sums, 1 - _DECAY)
        total = self.counts.sum()
        smoothed = (self.counts + _SMOOTHING) / (total + len(self.counts) * _SMOOTHING) * total
        self.codes.copy_(torch.where(self.counts[:, None] < 1, self._drawn(flat), self.sums / smoothed[:, None]))


class VQGAN(nn.Module):
    """Encoder, codebook, decoder; volumes in [-1, 1].

    Args:
        factor: voxels of a volume along one latent, a power of two.
        channels: features at the full grid.
        num_codes: of the codebook.
    """

    def __init__(self, factor: int = 4, channels: int = 16, num_codes: int = 1024) -> None:
        super().__init__()
        halvings = int(math.log2(factor)) if factor > 1 else 0
        if halvings < 1 or 2**halvings != factor:
            raise ValueError(f"factor must be 2, 4, 8 or 16, got {factor}")
        if channels < 1 or 2 * channels % _GROUPS:
            raise ValueError(f"channels must be a multiple of {_GROUPS // 2}, got {channels}")
        self.settings: dict[str, Any] = {"kind": "vq_gan", "factor": factor, "channels": channels, "num_codes": num_codes,
                                         "in_channels": 1, "num_predictions": 1}  # fmt: skip
        self.factor, widest = factor, channels * factor
        encoder: list[nn.Module] = [_conv(1, channels)]
        decoder: list[nn.Module] = [nn.Conv3d(CODE_SIZE, widest, 1), nn.GroupNorm(_GROUPS, widest, _EPS), nn.SiLU()]
        for level in range(halvings):
            before, after = channels * 2**level, channels * 2 ** (level + 1)
            encoder += [_conv(before, after, 4, 2), _ResBlock(after)]
            up = widest // 2**level
            decoder += [_doubling(widest if not level else 2 * up, up), _ResBlock(up), _ResBlock(up)]
        encoder += [nn.GroupNorm(_GROUPS, widest, _EPS), nn.SiLU(), nn.Conv3d(widest, CODE_SIZE, 1)]
        self.encoder, self.codebook = nn.Sequential(*encoder), Codebook(num_codes)
        self.decoder = nn.Sequential(*decoder, _conv(2 * channels, 1))

    def strides(self) -> list[int]:
        """Numbers that must divide every side of a volume."""
        return [self.factor]

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Volumes (B, 1, X, Y, Z) -> reconstructions, and the commitment of the encoder to its codes."""
        latents = self.encoder(x)
        codes = self.codebook(latents)
        commitment = _COMMITMENT * F.mse_loss(latents.float(), codes)
        straight = latents + (codes - latents).detach().to(latents.dtype)
        return self.decoder(straight), commitment

    def scale(self) -> tuple[Tensor, Tensor]:
        """Smallest and largest number of the codebook, which latents are scaled by."""
        return self.codebook.codes.min(), self.codebook.codes.max()


class Discriminators(nn.Module):
    """One of whole volumes and one of single axial slices; each gives its features, the logits last.

    `steps` counts the steps of training; before `start` of them the discriminators play no part.
    """

    def __init__(self, start: int = 5000) -> None:
        super().__init__()
        given: dict[str, Any] = {"channels": 64, "in_channels": 1, "num_layers_d": 3, "padding": 2, "bias": True}
        self.volumes, self.slices = PatchDiscriminator(3, **given), PatchDiscriminator(2, **given)
        self.start, self.steps = start, 0

    def get_extra_state(self) -> int:
        return self.steps

    def set_extra_state(self, state: int) -> None:
        self.steps = state


@kind("vq_gan")
def build_vq_gan(
    factor: int = 4, channels: int = 16, num_codes: int = 1024, in_channels: int = 1, num_predictions: int = 1,
    num_train_timesteps: Optional[int] = None,
) -> VQGAN:  # fmt: skip
    """Builds a `VQGAN`, which has no times."""
    if (in_channels, num_predictions) != (1, 1):
        raise ValueError(f"an autoencoder takes volumes of one channel, got in_channels {in_channels}")
    return VQGAN(factor, channels, num_codes)
