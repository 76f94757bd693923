"""What a training run starts from: a new network, or trained weights with a part of them frozen."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Optional, Sequence, Union

import torch
from torch import nn

from ..data.geometry import three
from ..inferers.items import grid_of
from ..networks.base import DenoisingNetwork
from ..networks.card import Card, Seen, read_card
from ..networks.checkpoint import load_network, load_strictly, load_tensors
from ..networks.guidance import is_stage_1
from ..networks.high_resolution import HighResolutionPRDiT, build_high_resolution
from ..networks.kinds import build_network, override_settings
from ..networks.latent_unet import LatentDiffusion
from ..networks.layers import check_patches, check_reflection, token_grid
from ..networks.prdit import PRDiT, build_prdit, built_if_it_fits

Device = Union[str, torch.device]

# what to say where weights that a stack of configs stands on are missing
_NEEDED = {
    "local_ckpt": "stage 2 needs stage 1: there is no local_ckpt {}; train stage 1 with the same ckpt_dir first",
    "residual_ckpt": "a new local denoiser needs residual_ckpt, the weights whose transformer stays",
    "finetune_from": "fine-tuning needs finetune_from, the weights to start from",
    "distill_from": "distillation needs distill_from, the weights to start from",
    "autoencoder_ckpt": "latents need an autoencoder: there is no autoencoder_ckpt {}; train train_autoencoder.yaml first",
    "backbone_ckpt": "high resolution needs backbone_ckpt, the weights of the lower grid",
}


def start_from(ckpt_path: Union[None, str, Path], setting: str, process: Optional[dict] = None) -> Card:
    """The card of the weights that a run starts from or stands on.

    Args:
        ckpt_path: the weights, with their JSON beside them.
        setting: that names them: 'local_ckpt', 'residual_ckpt', 'finetune_from', 'distill_from' or 'backbone_ckpt'.
        process: of this run, as it will be stored with the weights; None checks nothing.

    Raises:
        ValueError: in one line, when they are missing, were trained with another process, are fine-tuned without their
            discriminator, or are stage 1 that is to draw in few calls.
    """
    if ckpt_path is None or (setting in ("local_ckpt", "autoencoder_ckpt") and not Path(ckpt_path).is_file()):
        raise ValueError(_NEEDED[setting].format(ckpt_path))
    card = read_card(ckpt_path, required=["data", "process"])
    if setting in ("finetune_from", "distill_from") and card.kind in ("ha_gan", "vq_gan"):
        raise ValueError(f"{ckpt_path} is of a GAN, which cannot be trained on without its discriminator")
    if setting == "distill_from" and is_stage_1(card.network):
        raise ValueError(
            f"{ckpt_path} is of stage 1, which draws no anatomy in any number of calls: give weights of stage 2"
        )
    for name, value in (process or {}).items():
        if card.process.get(name, None if name == "name" else value) != value:
            what = "the process" if name == "name" else name
            raise ValueError(f"{ckpt_path} was trained with {what} {card.process.get(name)}, this run has {value}")
    return card


def seen_of(data: dict) -> dict[str, Any]:
    """What the network sees, from a run's config, so that equal sizes are equal: one number or three."""
    sizes = [float(size) for size in three(data["field_of_view_mm"])]
    whole = {**data, "grid": [int(side) for side in three(data["grid"])], "field_of_view_mm": sizes}
    return Seen.model_validate({**whole, "hu_window": [float(bound) for bound in data["hu_window"]]}).plain()


def require_same_volumes(start: Optional[Card], data: dict, voxels: bool = True, factor: int = 1) -> None:
    """Refuses to train weights on, or beside weights of, volumes of another HU window, intensity or size of a voxel.

    Another grid at the same size of a voxel is for a stage to learn; at high resolution the voxels are smaller by the factor,
    and the field of view is that of the backbone.

    Args:
        start: the weights, if any.
        data: of this run: 'grid', 'field_of_view_mm', 'hu_window', 'intensity'.
        voxels: whether the size of a voxel counts; fine-tuning learns another one.
        factor: of the grid over that of the weights, at high resolution.

    Raises:
        ValueError: in one line.
    """
    if start is None or start.data is None:
        return
    there, here = start.data, Seen.model_validate(seen_of(data))
    facts = {"hu_window": (there.hu_window, here.hu_window), "intensity": (there.intensity, here.intensity)}
    if factor > 1:
        facts["grid"] = (high_resolution_grid(start, factor), here.grid)
        facts["field_of_view_mm"] = (there.sizes_mm, here.sizes_mm)
    elif voxels:
        facts["voxels (mm)"] = (there.voxels_mm, here.voxels_mm)
    at = f" (with the factor {factor})" if factor > 1 else ""
    differ = [f"{name} {one} there, {other} here" for name, (one, other) in facts.items() if one != other]
    if differ:
        raise ValueError(f"{start.path} was trained on other volumes{at}: {'; '.join(differ)}")


def new_network(device: Device = "cpu", **settings: Any) -> Any:
    """A network with random weights, a PRDiT where no other 'kind' is named; settings of its builder.

    Raises:
        ValueError: in one line, see the builder and `built_if_it_fits`.
    """
    return built_if_it_fits(build_network, **settings).to(device)


def finetuned_network(start: Card, device: Device = "cpu", **settings: Any) -> Any:
    """Trained weights of any kind, all of them to be trained on; settings are those that change no weight."""
    return load_network(start, **settings).to(device)


def global_stage(start: Card, depth: int, device: Device = "cpu", **settings: Any) -> PRDiT:
    """Stage 2: a new transformer beside the local denoiser of stage 1, which is frozen (design 2.2).

    Frozen are the local denoiser with its time head, and the shared time layer.

    Args:
        start: stage 1.
        depth: transformer blocks.
        device: where it trains.
        settings: that change no weight: attention, chunk_tokens, activation_checkpointing.

    Raises:
        ValueError: in one line, when there is no transformer, or the weights are not of stage 1.
    """
    if depth < 1:
        raise ValueError("stage 2 needs a depth of 1 or more")
    network = built_if_it_fits(build_prdit, **_sizes(start, depth=depth, **settings))
    frozen = nn.ModuleDict({"time": network.time, "local": network.local})
    load_strictly(frozen, load_tensors(start.path), start.path)
    frozen.requires_grad_(False)
    return network.to(device)


def new_local_denoiser(start: Card, device: Device = "cpu", **settings: Any) -> PRDiT:
    """A new local denoiser beside the transformer of trained weights, which is frozen with the shared time layer.

    The local denoiser may have other patches than theirs. It starts at zero, so that the network starts as its
    transformer alone; afterwards all of it can be fine-tuned.

    Args:
        start: weights of both stages.
        device: where it trains.
        settings: of `build_prdit`, for the local denoiser; None is as the card has it.

    Raises:
        ValueError: in one line, when the weights have no transformer, or are truncated.
    """
    network = built_if_it_fits(build_prdit, **_sizes(start, **settings, local_denoiser=True))
    if network.residual is None:
        raise ValueError(f"{start.path} has no transformer beside which a new local denoiser could be trained")
    frozen = nn.ModuleDict({"time": network.time, "residual": network.residual})
    state = {name: value for name, value in load_tensors(start.path).items() if not name.startswith("local.")}
    load_strictly(frozen, state, start.path)
    frozen.requires_grad_(False)
    return network.to(device)


def latent_network(start: Card, channels: int, multipliers: Sequence[int], device: Device = "cpu") -> LatentDiffusion:
    """A new network of latents on a frozen autoencoder.

    Raises:
        ValueError: in one line, when the weights are of no autoencoder, or sizes do not fit.
    """
    if start.kind != "vq_gan":
        raise ValueError(
            f"{start.path} holds a network of the kind {start.kind}; autoencoder_ckpt needs an autoencoder"
        )
    return LatentDiffusion(load_network(start), channels, multipliers).to(device)


def _sizes(start: Card, **settings: Any) -> dict[str, Any]:
    """Arguments of `build_prdit` from a card, with settings that are not None in their place."""
    if start.kind != "prdit":
        raise ValueError(f"{start.path} holds a network of the kind {start.kind}; weights of the kind prdit are needed")
    given = {name: value for name, value in settings.items() if value is not None}
    sizes = {**start.network, **given, "num_train_timesteps": start.num_train_timesteps}
    del sizes["kind"]
    return sizes


def high_resolution_network(
    start: Card, refiner: dict, overrides: dict, freeze_backbone: bool = True, device: Device = "cpu"
) -> HighResolutionPRDiT:
    """A new refiner on top of trained weights of a lower grid.

    Args:
        start: those weights; high-resolution weights make a chain.
        refiner: settings of `build_high_resolution`, without the backbone.
        overrides: settings of the backbone that change no weight: attention, activation_checkpointing.
        freeze_backbone: False trains it too.
        device: where it trains.

    Raises:
        ValueError: in one line, when the sizes do not fit.
    """
    backbone = override_settings(start.network, overrides)
    given = {**refiner, "num_train_timesteps": start.num_train_timesteps}
    network = built_if_it_fits(build_high_resolution, backbone, **given)
    load_strictly(network.backbone, load_tensors(start.path), start.path)
    network.backbone.requires_grad_(not freeze_backbone)
    return network.to(device)


def high_resolution_grid(start: Card, factor: int) -> list[int]:
    """The high grid over that of a backbone."""
    assert start.data is not None
    return [factor * side for side in start.data.grid]


def require_grid(network: DenoisingNetwork, grid: Sequence[int]) -> None:
    """Refuses a grid that the network cannot see, in stage 1 also one that stage 2 could not.

    Raises:
        ValueError: in one line, when a stride does not divide a side, or a side is too short for the patches.
    """
    settings = network.settings
    if "stride" not in settings:
        grid_of(None, grid, network)
        if "side" in settings and list(grid) != [settings["side"]] * 3:
            raise ValueError(f"HA-GAN needs as many voxels along every axis, got grid {list(grid)}")
        return
    sizes = [(settings["patch_size"], settings["stride"])]
    if isinstance(network, PRDiT):
        sizes.insert(0, (network.local.patch_size, network.local.stride))
    for patch_size, stride in sizes:
        check_patches(patch_size, stride)
        try:
            check_reflection(list(grid), patch_size, stride)
            token_grid(list(grid), stride)
        except ValueError as error:  # which knows volumes, not settings
            raise ValueError(f"grid does not suit the network: {error}") from None


def parameters_to_train(network: nn.Module) -> list[nn.Parameter]:
    """Parameters that are not frozen."""
    return [parameter for parameter in network.parameters() if parameter.requires_grad]
