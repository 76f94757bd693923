"""How much memory sampling needs, and the batch and chunks that fit a card."""

from __future__ import annotations

import math
from typing import Optional, Sequence, Union

import torch

from ..networks.base import DenoisingNetwork
from ..networks.high_resolution import HighResolutionPRDiT, build_network
from ..networks.local_denoiser import LocalDenoiser
from ..networks.prdit import PRDiT
from ..settings import usable_device, whole_number
from .inferer import uses_bf16
from .sampler import sides_of

BATCHES = (32, 16, 8, 4, 2, 1)
CHUNKS = tuple(2**i for i in range(17, 8, -1))  # patches of the local denoiser in one go
RESERVED_GB = 0.7  # CUDA context and kernels
USABLE = 0.85  # the rest is for what the allocator cannot use


def peak_gb(
    network: dict,
    grid: Sequence[int],
    batch_size: int,
    chunk_tokens: int,
    bf16: bool = True,
    num_calls: int = 1,
    guided: bool = False,
) -> float:
    """Calculated peak of one network call while sampling, in GB (10^9 bytes), without what the driver takes.

    Counted are the weights, what they make of the times of all calls, the sample, and the largest set of tensors that
    lives at one time in either branch or in the output, with attention in memory linear in the tokens.

    Args:
        network: settings of `build_network`.
        grid: voxels along each axis.
        batch_size: volumes at a time.
        chunk_tokens: see `LocalDenoiser`; 0 is all patches.
        bf16: weights and activations in bfloat16.
        num_calls: network calls per volume.
        guided: with layer-skip guidance, from the first block on.
    """
    with torch.device("meta"):
        model = build_network(**network)
        modulations = model.modulations(torch.empty(1))
    size = 2 if bf16 else 4
    weights = size * sum(parameter.numel() for parameter in model.parameters())
    weights += size * num_calls * sum(part.numel() for part in modulations)
    voxels = math.prod(grid)
    held = 4 * batch_size * voxels * 2 * model.settings["in_channels"]  # the sample and what a solver remembers
    return (weights + held + _call_bytes(model, batch_size, voxels, chunk_tokens, size, 2 if guided else 1)) / 1e9


def _local_bytes(
    local: LocalDenoiser, channels: int, predicted: int, voxels: float, chunk_tokens: int, size: int
) -> float:
    """Largest set of tensors of a local denoiser on so many voxels (of all volumes), `size` bytes a number."""
    tokens, width = voxels / local.stride**3, channels * local.patch_size**3
    chunk = min(chunk_tokens or tokens, tokens)
    # in the second SwiGLU: the first one's output, the input, gate and up, SiLU of the gate, the product
    return size * (tokens * width + chunk * 6 * width + 2 * voxels * predicted)


def _call_bytes(
    model: DenoisingNetwork, batch_size: int, voxels_each: float, chunk_tokens: int, size: int, paths: int
) -> float:
    """Largest set of tensors of one call; at high resolution the backbone's, or the refiner's and the output's.

    `paths` is how often the transformer's tokens are there, 2 with guidance.
    """
    channels, voxels = model.settings["in_channels"], batch_size * voxels_each
    predicted = channels * model.settings["num_predictions"]
    if isinstance(model, HighResolutionPRDiT):
        low = voxels_each / model.factor**3
        backbone = _call_bytes(model.backbone, batch_size, low, chunk_tokens, size, paths)
        backbone += 4 * batch_size * low * channels
        refiner = _local_bytes(model.refiner, channels, predicted, voxels, chunk_tokens, size)
        output = 4 * voxels * (4 * predicted + (2 * channels if model.skip else 0))
        return max(backbone, 4 * batch_size * low * predicted + max(refiner, output))
    assert isinstance(model, PRDiT)
    output = 4 * voxels * (2 * predicted + 3 * channels)  # the prediction in float32, before and after 'skip'
    local = _local_bytes(model.local, channels, predicted, voxels, chunk_tokens, size)
    residual = 0.0
    if model.residual is not None:
        tokens, width = voxels / model.residual.stride**3, channels * model.residual.patch_size**3
        hidden = model.residual.hidden_size
        embedding = tokens * (width + 9 * hidden) + 8 / size * tokens / batch_size * hidden  # and the position code
        block = paths * tokens * 10 * hidden  # the MLP: its input, the block's input, 4h before and after GELU
        residual = size * (max(embedding, block) + (paths + 1) * voxels * predicted)
    return max(local, residual, output)


def memory_plan(
    settings: dict,
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
        settings: the JSON beside the weights.
        grid: to sample; None is that of the weights.
        memory_gb: of the card; the largest batch that is calculated to fit, and chunks where not even one volume fits.
            None takes one volume at a time.
        batch_size: given by the user.
        chunk_tokens: given by the user; 0 is all patches.
        bf16: see `inference_network`.
        device: where it runs.
        num_inference_steps: network calls per volume.
        guided: see `peak_gb`.

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
    sides = sides_of(grid, settings["data"]["grid"])
    fast = uses_bf16(usable_device(device), bf16)
    peak, limit = math.inf, USABLE * memory_gb - RESERVED_GB
    # whole batches come first, then ever smaller chunks
    for chunk in (0, *CHUNKS) if chunk_tokens is None else (chunk_tokens,):
        for batch in BATCHES if batch_size is None else (batch_size,):
            peak = peak_gb(settings["network"], sides, batch, chunk, fast, num_calls, guided)
            if peak <= limit:
                return {"batch_size": batch, "chunk_tokens": chunk}
    raise ValueError(
        f"a volume of {list(sides)} needs about {(peak + RESERVED_GB) / USABLE:.1f} GB with this network, memory_gb is "
        f"{memory_gb}: choose a smaller grid, batch_size or chunk_tokens"
    )
