"""Training of the high-resolution refiner (paper section 3.4, A.8)."""

from __future__ import annotations

from pathlib import Path
from typing import Union

from ..networks.checkpoint import load_strictly, load_tensors, read_settings
from ..networks.high_resolution import HighResolutionPRDiT, build_high_resolution, override_settings
from ..networks.layers import token_grid
from ..networks.prdit import built_if_it_fits
from .stages import require_process, volumes_of


def high_resolution_grid(backbone: dict, factor: int) -> list[int]:
    """The high grid over that of a backbone, whose JSON is given."""
    return [factor * side for side in volumes_of(backbone["data"])["grid"]]


def high_resolution_network(
    backbone_ckpt: Union[str, Path],
    refiner: dict,
    overrides: dict,
    process: dict,
    data: dict,
    freeze_backbone: bool = True,
) -> HighResolutionPRDiT:
    """A new refiner on top of trained weights of a lower grid.

    Args:
        backbone_ckpt: those weights, with their JSON beside them; high-resolution weights make a chain.
        refiner: settings of `build_high_resolution`, without the backbone.
        overrides: settings of the backbone that change no weight: attention, activation_checkpointing.
        process: of this run.
        data: of this run: 'grid', 'field_of_view_mm', 'hu_window', 'intensity'.
        freeze_backbone: False trains it too.

    Raises:
        ValueError: in one line, when the backbone is of another size, process or data, or missing.
    """
    settings = read_settings(backbone_ckpt)
    require_process(backbone_ckpt, settings, process)
    network = built_if_it_fits(build_high_resolution, override_settings(settings["network"], overrides), **refiner)
    ours, theirs = volumes_of(data), volumes_of(settings["data"])
    wanted = high_resolution_grid(settings, network.factor)
    if ours["grid"] != wanted:
        raise ValueError(
            f"{backbone_ckpt} is of the grid {theirs['grid']}: with the factor {network.factor} the grid must be "
            f"{wanted}, got {ours['grid']}"
        )
    token_grid(wanted, network.refiner.stride)
    for name in ("field_of_view_mm", "hu_window", "intensity"):
        if ours[name] != theirs[name]:
            raise ValueError(f"{backbone_ckpt} was trained with {name} {theirs[name]}, this run has {ours[name]}")
    load_strictly(network.backbone, load_tensors(backbone_ckpt), backbone_ckpt)
    network.backbone.requires_grad_(not freeze_backbone)
    return network
