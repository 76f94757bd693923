"""How much memory sampling needs, and the batch and chunks that fit a card."""

from __future__ import annotations

import math
import weakref
from functools import partial
from typing import Any, Iterable, Optional, Sequence, Union

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from ..hardware import DRIVER_GB, GB
from ..networks.base import DenoisingNetwork
from ..networks.card import Card
from ..networks.checkpoint import space_of
from ..networks.guidance import Guidance, Guided
from ..networks.kinds import build_network
from ..networks.local_denoiser import LocalDenoiser
from ..networks.residual_dit import Attention, ResidualDiT
from ..schedulers import CosineSineScheduler
from ..settings import usable_device, whole_number
from ..spaces import HUWindow, Space
from .generator import network_at_times
from .inferer import uses_bf16
from .items import sides_of

BATCHES = (32, 16, 8, 4, 2, 1)
CHUNKS = tuple(2**i for i in range(17, 8, -1))  # patches of the local denoiser in one go
USABLE = 0.85  # the rest is for what the allocator cannot use


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of tensors that are made inside and live at one time; `peak` is the most of them.

    Args:
        known: tensors from before, which do not count.
    """

    def __init__(self, known: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self.known = {tensor.untyped_storage()._cdata for tensor in known}
        self.now = self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Optional[dict] = None) -> Any:
        output = func(*args, **(kwargs or {}))
        for one in tree_iter(output):
            storage = one.untyped_storage() if isinstance(one, Tensor) else None
            if storage is not None and storage._cdata not in self.known:
                self.known.add(storage._cdata)
                self.now += storage.nbytes()
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self._gone, storage._cdata, storage.nbytes())
        return output

    def _gone(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.now -= size


class FusedAttention(TorchFunctionMode):
    """Attention in memory linear in the tokens, as the fused kernels have it: only the output is made, without values."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Optional[dict] = None) -> Any:
        if func is F.scaled_dot_product_attention:
            return torch.empty_like(args[0])
        return func(*args, **(kwargs or {}))


class Sampling:
    """A network that samples without memory: its calls are made on PyTorch's meta device, and their tensors counted.

    Args:
        network: settings of `build_network`.
        bf16: weights and activations in bfloat16.
        num_calls: network calls per volume; what the network makes of their times is kept.
        guided: with layer-skip guidance, from the first block on.
        space: of the network; None is that of voxels.
    """

    def __init__(
        self, network: dict, bf16: bool = True, num_calls: int = 1, guided: bool = False, space: Optional[Space] = None
    ) -> None:
        with torch.device("meta"):
            self.network = build_network(**network).to(torch.bfloat16 if bf16 else torch.float32).eval()
        self.channels, self.guided, self.space = self.network.settings["in_channels"], guided, space or HUWindow()
        timed = isinstance(self.network, DenoisingNetwork)
        kept = self.network.modulations(torch.zeros(1, device="meta")) if timed else []
        self.held = sum(one.nbytes for one in self.network.parameters()) + num_calls * sum(one.nbytes for one in kept)
        for layer in self.network.modules():
            if isinstance(layer, Attention):
                layer.short, layer.use_xformers = 0, False
            elif isinstance(layer, LocalDenoiser):
                setattr(layer, "predict_tokens", partial(_last_chunk, layer))
            elif isinstance(layer, ResidualDiT):
                layer.blocks = layer.blocks[:2]  # all others are as the second one, and nothing of a block is kept

    @torch.no_grad()
    def peak_gb(self, grid: Sequence[int], batch_size: int = 1, chunk_tokens: int = 0) -> float:
        """Calculated peak of a network call, in GB (10^9 bytes), without what the driver takes.

        Counted are the weights, what they make of the times of all calls, the sample and a solver's memory of the same
        size, and all tensors of a call that live at one time.

        Args:
            grid: voxels along each axis.
            batch_size: volumes at a time.
            chunk_tokens: see `LocalDenoiser`; 0 is all patches.
        """
        for layer in self.network.modules():
            if isinstance(layer, LocalDenoiser):
                layer.chunk_tokens = chunk_tokens
        latent = getattr(self.network, "latent_size", None)
        shape = self.space.shape(self.channels, grid) if latent is None else (latent,)
        x, time = torch.empty(batch_size, *shape, device="meta"), torch.zeros(1, device="meta")
        (call,) = network_at_times(self._guided(), time, shape[1:])
        with FusedAttention(), LiveBytes([*self.network.parameters(), x]) as live:
            call(x)
        return (self.held + 2 * x.nbytes + live.peak) / GB

    def _guided(self) -> Any:
        if not self.guided:
            return self.network
        return Guided(self.network, Guidance(1.0, 0, math.inf), CosineSineScheduler().path)


def _last_chunk(local: LocalDenoiser, patches: Tensor, modulation: Tensor) -> Tensor:
    """The peak of all chunks is in the last one, when the outputs of those before it are there; so it is made alone."""
    batch, tokens, _ = patches.shape
    chunk = min(max(local.chunk_tokens // batch, 1) if local.chunk_tokens else tokens, tokens)
    before = patches.new_empty(batch, tokens - chunk, local.output.out_features)
    last = local._denoise(patches[:, :chunk], modulation)
    return torch.cat([before, last], dim=1) if chunk < tokens else last


def memory_plan(
    card: Card,
    grid: Union[None, int, Sequence[int]] = None,
    memory_gb: Optional[float] = None,
    batch_size: Optional[int] = None,
    chunk_tokens: Optional[int] = None,
    bf16: Optional[bool] = None,
    device: Union[str, torch.device] = "cpu",
    num_inference_steps: int = 1,
    guided: bool = False,
) -> dict[str, int]:
    """The batch and the chunks to sample with.

    Args:
        card: of the weights.
        grid: to sample; None is that of the weights.
        memory_gb: of the card; the largest batch that is calculated to fit, and chunks where not even one volume fits.
            None takes one volume at a time.
        batch_size: given by the user.
        chunk_tokens: given by the user; 0 is all patches.
        bf16: see `inference_network`.
        device: where it runs.
        num_inference_steps: network calls per volume.
        guided: with layer-skip guidance.

    Returns:
        'batch_size' and 'chunk_tokens'.

    Raises:
        ValueError: in one line, when nothing fits, or a number is out of range.
    """
    for name, value, least in (("batch_size", batch_size, 1), ("chunk_tokens", chunk_tokens, 0)):
        if value is not None:
            whole_number(name, value, least)
    if memory_gb is not None and (not isinstance(memory_gb, (int, float)) or not memory_gb > 0):
        raise ValueError(f"memory_gb must be more than 0, got {memory_gb}")
    if memory_gb is None:
        return {"batch_size": batch_size or 1, "chunk_tokens": chunk_tokens or 0}
    num_calls = whole_number("num_inference_steps", num_inference_steps, 1)
    assert card.data is not None
    sides = sides_of(grid, card.data.grid)
    fast = uses_bf16(usable_device(device), bf16)
    peak, limit = math.inf, USABLE * memory_gb - DRIVER_GB
    sampling = Sampling(card.network, fast, num_calls, guided, space_of(card))
    # whole volumes come first, then ever smaller chunks, and of these the largest batch
    for chunk in (0, *CHUNKS) if chunk_tokens is None else (chunk_tokens,):
        batches = BATCHES if batch_size is None else (batch_size,)
        peak = sampling.peak_gb(sides, batches[-1], chunk)
        if peak <= limit:
            fitting = next(batch for batch in batches if sampling.peak_gb(sides, batch, chunk) <= limit)
            return {"batch_size": fitting, "chunk_tokens": chunk}
    raise ValueError(
        f"a volume of {list(sides)} needs about {(peak + DRIVER_GB) / USABLE:.1f} GB with this network, memory_gb is "
        f"{memory_gb}: choose a smaller grid, batch_size or chunk_tokens"
    )
