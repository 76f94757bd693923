"""What a run is asked for: the volumes with their seeds, and a grid that the weights can draw."""

from __future__ import annotations

import sys
from typing import Any, Mapping, Sequence, Union

import ignite.distributed as idist

from ..networks.base import DenoisingNetwork
from ..networks.card import Card
from ..networks.guidance import is_stage_1
from ..settings import whole_number

LARGEST_SEED = 2**63 - 1  # of a tensor of seeds


def seed_list(num_samples: int, seed: int) -> list[dict[str, int]]:
    """The data set of generation: one item per volume, its seed.

    Raises:
        ValueError: when num_samples is less than 1, or a seed is negative or more than PyTorch takes.
    """
    count = whole_number("num_samples", num_samples, 1)
    first = whole_number("seed", seed, 0, LARGEST_SEED - count + 1)
    return [{"seed": first + i} for i in range(count)]


def sides_of(grid: Union[None, int, Sequence[int]], trained: Sequence[int]) -> list[int]:
    """Three sides of a volume in voxels: those of the weights, of a cube, or as given; ValueError in one line."""
    sides = list(trained) if grid is None else list(grid) if isinstance(grid, (list, tuple)) else [grid] * 3
    if len(sides) != 3:
        raise ValueError(f"grid must be one or three numbers of voxels, got {grid}")
    return [whole_number("grid", side, 1) for side in sides]


def grid_of(grid: Union[None, int, Sequence[int]], trained: Sequence[int], network: DenoisingNetwork) -> list[int]:
    """The grid to sample: the one the weights were trained for, or another one that the network's strides allow.

    Raises:
        ValueError: when the strides do not divide it.
    """
    sides = sides_of(grid, trained)
    strides = network.strides()
    if any(side % stride for side in sides for stride in strides):
        raise ValueError(f"grid must be three multiples of the strides {strides}, got {sides}")
    return sides


def require_drawing(card: Card, allow_stage_1: bool = False) -> None:
    """Refuses weights that draw no volumes, and of stage 1 unless they are wanted; ValueError in one line."""
    if card.kind == "vq_gan":
        raise ValueError(
            f"{card.path} is of an autoencoder, which draws nothing: train train_latent.yaml and sample its latent.pt"
        )
    if not allow_stage_1 and is_stage_1(card.network):
        raise ValueError(
            f"{card.path} is of stage 1, which draws noise without anatomy: train stage 2 and sample its model.pt, or set "
            "allow_stage_1 to true"
        )


def check_weights(
    card: Card, grid: Sequence[int], allow_stage_1: bool = False, sampling: Mapping[str, Any] = {}
) -> None:
    """`require_drawing`, and a warning of a grid or a sampler that the weights are not made for.

    Args:
        card: of the weights.
        grid: to sample.
        allow_stage_1: whether volumes without anatomy are wanted.
        sampling: the sampler, see `sampler_settings`.
    """
    require_drawing(card, allow_stage_1)
    if idist.get_rank() == 0:
        _tell_sampler(card.sampling, sampling)
    trained = card.data.grid if card.data else None
    if trained is not None and list(grid) != trained and idist.get_rank() == 0:
        print(
            f"warning: the weights know a grid of {trained} alone; do not expect anatomy at {list(grid)}, see "
            "docs/high_resolution.md for larger grids",
            file=sys.stderr,
        )


def _tell_sampler(made_for: Mapping[str, Any], sampling: Mapping[str, Any]) -> None:
    """Warns of what differs from the sampler that weights are made for; fitted steps are one of theirs."""
    if sampling.get("schedule") is not None:
        return
    differ = [name for name, value in made_for.items() if name in sampling and sampling[name] != value]
    for name in ["solver"] if "solver" in differ else differ:  # all else is of the solver
        what = "{} network calls a volume" if name == "num_inference_steps" else f"{name} {{}}"
        print(
            f"warning: the weights are made for {what.format(made_for[name])}, asked for is {sampling[name]}",
            file=sys.stderr,
        )
