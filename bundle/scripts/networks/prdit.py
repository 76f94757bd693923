"""PRDiT: the local denoiser plus the global residual (Pixel-Level Residual Diffusion Transformer, ICLR 2026)."""

from __future__ import annotations

import re
from typing import Any, Callable, List, Optional, Tuple, TypeVar

import torch
from torch import Tensor, nn

from ..hardware import GB, memory_bytes
from .base import DenoisingNetwork
from .kinds import kind
from .local_denoiser import LocalDenoiser, NoLocalDenoiser
from .residual_dit import Guide, ResidualDiT, Route

Network = TypeVar("Network", bound=nn.Module)

# hidden size and number of heads of the published sizes
SIZES = {"XS": (192, 6), "S": (384, 6), "B": (768, 12), "L": (1024, 16), "XL": (1152, 16)}


class PRDiT(DenoisingNetwork):
    """Predicts noise and signal of a noisy volume (paper section 3.2): f(x_t, t) = (noise, signal); or the velocity of
    flow matching, for which `num_predictions` of `build_prdit` is 1.

    Args:
        local: stage 1.
        residual: stage 2, or None for stage 1 alone.
        time_size: length of the shared time features.
        parametrization: 'none' gives the branches' sum as it is, as in the paper. 'skip' lets the branches predict
            what is missing from x_t: noise = sin(theta) x_t + cos(theta) a, signal = cos(theta) x_t - sin(theta) b,
            theta = pi/2 t/T, where (a, b) is the branches' sum. Both have the same contract, loss and samplers.
        num_train_timesteps: T, used by 'skip' alone.

    Raises:
        ValueError: when the parametrization is unknown.
    """

    def __init__(
        self,
        local: LocalDenoiser | NoLocalDenoiser,
        residual: Optional[ResidualDiT],
        time_size: int,
        parametrization: str = "none",
        num_train_timesteps: int = 1000,
    ) -> None:
        super().__init__(time_size, parametrization, num_train_timesteps)
        self.local = local
        self.residual = residual

    def modulations(self, times: Tensor) -> List[Tensor]:
        """All that the network makes of times (B,) alone: (6, B, C p**3) of stage 1, then those of stage 2."""
        time = self._time_features(times)
        modulations = [self.local.modulations(time)]
        if self.residual is not None:
            modulations += self.residual.modulations(time)
        return modulations

    def predict(
        self,
        x: Tensor,
        times: Tensor,
        modulations: List[Tensor],
        positions: Optional[Tensor] = None,
        guide: Optional[Guide] = None,
        route: Optional[Route] = None,
    ) -> Tensor:
        """As `forward`, with times (B,) or (1,) and what `modulations` made of them; positions and route are stage 2's."""
        volume = x.to(self.time.weight.dtype)
        raw = self.local.denoise(volume, modulations[0])
        if self.residual is not None:
            raw = raw + self.residual.refine(volume, modulations[1:], positions, guide, route)
        raw = raw.to(x.dtype)
        return self._skip(x, times, raw, 1.0) if self.skip else raw

    @torch.jit.unused
    def positions(self, spatial_shape: List[int]) -> Optional[Tensor]:
        """Stage 2's position code, (1, N, F)."""
        return None if self.residual is None else self.residual.positions(spatial_shape)

    @torch.jit.unused
    def strides(self) -> List[int]:
        return [self.local.stride] + ([] if self.residual is None else [self.residual.stride])

    @torch.jit.unused
    def forward_parts(self, x: Tensor, timesteps: Optional[Tensor] = None) -> Tuple[Tensor, Tensor]:
        """The local and the residual part of the prediction, each (B, 2C, D, H, W); their sum is `forward`."""
        times = self._times(x, timesteps)
        time = self._time_features(times)
        volume = x.to(self.time.weight.dtype)
        local = self.local(volume, time).to(x.dtype)
        residual = torch.zeros_like(local) if self.residual is None else self.residual(volume, time).to(x.dtype)
        if self.skip:
            local, residual = self._skip(x, times, local, 1.0), self._skip(x, times, residual, 0.0)
        return local, residual

    @torch.jit.unused
    def forward_routed(self, x: Tensor, timesteps: Tensor, route: Route) -> Tensor:
        """As `forward`, where not all tokens see all blocks of stage 2, see `ResidualDiT.refine`."""
        times = self._times(x, timesteps)
        return self.predict(x, times, self.modulations(times), route=route)

    @torch.jit.unused
    def forward_local_padded(self, x: Tensor, timesteps: Tensor) -> Tensor:
        """Stage 1 on a piece of a volume that carries its halo of (p - s) / 2 voxels, for training on few patches.

        (B, C, d + p - s, h + p - s, w + p - s) -> (B, 2C, d, h, w)
        """
        times = self._times(x, timesteps)
        raw = self.local(x.to(self.time.weight.dtype), self._time_features(times), padded=True).to(x.dtype)
        halo = self.local.halo
        inner = x[:, :, halo : x.shape[2] - halo, halo : x.shape[3] - halo, halo : x.shape[4] - halo]
        return self._skip(inner, times, raw, 1.0) if self.skip else raw


@kind("prdit")
def build_prdit(
    hidden_size: int,
    num_heads: int,
    depth: int,
    in_channels: int = 1,
    patch_size: int = 12,
    stride: int = 8,
    local_patch_size: Optional[int] = None,
    local_stride: Optional[int] = None,
    norm: str = "layer",
    parametrization: str = "none",
    chunk_tokens: int = 0,
    mlp_ratio: float = 4.0,
    attention: str = "auto",
    activation_checkpointing: bool = False,
    num_predictions: int = 2,
    local_denoiser: bool = True,
    num_train_timesteps: int = 1000,
) -> PRDiT:
    """Builds a PRDiT from plain numbers and words, which are what a checkpoint stores about its network.

    Args:
        hidden_size: features of a token of the transformer, and of the shared time features.
        num_heads: attention heads.
        depth: number of transformer blocks; 0 is stage 1 alone.
        in_channels: channels C of the volume.
        patch_size: side of the patches, in voxels.
        stride: distance of the patches, in voxels.
        local_patch_size: side of the local denoiser's patches where it differs from the transformer's.
        local_stride: distance of the local denoiser's patches where it differs from the transformer's.
        norm: 'layer' or 'rms'.
        parametrization: 'none' or 'skip', see `PRDiT`.
        chunk_tokens: see `LocalDenoiser`.
        mlp_ratio: see `ResidualDiT`.
        attention: see `Attention`.
        activation_checkpointing: see `ResidualDiT`.
        num_predictions: output channels per channel of the volume: 2 for (noise, signal), 1 for a velocity.
        local_denoiser: False leaves stage 1 out (paper Table 4).
        num_train_timesteps: T of the process.

    Raises:
        ValueError: when sizes do not fit each other, or 'skip' is asked of a velocity, which has nothing to skip: it is
            already what 'skip' makes the branches predict.
    """
    settings = {"kind": "prdit", **locals()}
    del settings["num_train_timesteps"]  # the process's
    if depth < 0 or in_channels < 1 or hidden_size < 1:
        raise ValueError(
            f"depth must be 0 or more, in_channels and hidden_size 1 or more, got {depth}, {in_channels}, {hidden_size}"
        )
    if num_predictions not in (1, 2):
        raise ValueError(f"num_predictions must be 2 (noise, signal) or 1 (velocity), got {num_predictions}")
    if parametrization == "skip" and num_predictions != 2:
        raise ValueError("parametrization 'skip' is for (noise, signal); a velocity network needs 'none'")
    out_channels = num_predictions * in_channels
    if not local_denoiser and not depth:
        raise ValueError("without a local denoiser a network needs a depth of 1 or more")
    sizes = (local_patch_size or patch_size, local_stride or stride, hidden_size, norm, chunk_tokens)
    local = (
        LocalDenoiser(in_channels, out_channels, *sizes) if local_denoiser else NoLocalDenoiser(out_channels, stride)
    )
    residual = None
    if depth:
        residual = ResidualDiT(
            in_channels, out_channels, patch_size, stride, hidden_size, depth, num_heads, mlp_ratio, norm, attention,
            activation_checkpointing,
        )  # fmt: skip
    network = PRDiT(local, residual, hidden_size, parametrization, num_train_timesteps)
    network.settings = settings
    return network


def preset_settings(name: str, **overrides: Any) -> dict:
    """The settings of `build_prdit` for a published size: PRDiT-XS, S, B, L or XL, '/', and the depth (0: stage 1 alone).

    Overrides of None override nothing. ValueError in one line for another name.
    """
    match = re.fullmatch(r"(?:PRDiT-)?([A-Z]+)/([0-9]+)", name)
    if match is None or match[1] not in SIZES:
        raise ValueError(f"preset must be PRDiT-SIZE/DEPTH with SIZE of {', '.join(SIZES)}, got '{name}'")
    hidden_size, num_heads = SIZES[match[1]]
    given = {name: value for name, value in overrides.items() if value is not None}
    return {"hidden_size": hidden_size, "num_heads": num_heads, "depth": int(match[2]), **given}


def built_if_it_fits(build: Callable[..., Network], *args: Any, **settings: Any) -> Network:
    """What `build` makes of the settings, unless its weights alone are more than the memory of this machine.

    PyTorch would fill the memory for minutes, and the system end the process, or another one.

    Raises:
        ValueError: in one line.
    """
    with torch.device("meta"):  # takes no memory
        size = sum(one.numel() * one.element_size() for one in build(*args, **settings).parameters())
    memory = memory_bytes("cpu")
    if memory is not None and size > memory:
        raise ValueError(
            f"the weights of a network of these sizes take {size / GB:,.0f} GB, but this machine has {memory / GB:,.0f} GB; "
            "lower hidden_size, depth or the patches"
        )
    return build(*args, **settings)
