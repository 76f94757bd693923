"""What belongs to the two stages: the frozen part of the second, and how the network trains in the first."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Collection, Optional, Sequence, Union

from torch import nn

from ..data.intensity import HU
from ..data.transforms import three
from ..networks.base import DenoisingNetwork
from ..networks.checkpoint import CHANGE_NO_WEIGHT, load_strictly, load_tensors, read_settings
from ..networks.high_resolution import override_settings
from ..networks.layers import check_patches, check_reflection, token_grid
from ..networks.prdit import PRDiT

# Settings of the network that the local branch depends on
_LOCAL_SETTINGS = ("hidden_size", "in_channels", "norm", "parametrization", "num_predictions")


def _local_grid(settings: dict) -> tuple[int, int]:
    return (settings["local_patch_size"] or settings["patch_size"], settings["local_stride"] or settings["stride"])


def require_process(ckpt_path: Union[str, Path], settings: dict, process: Optional[dict]) -> None:
    """Raises a ValueError in one line when weights were trained with another process than this run's, if it is told."""
    theirs = settings.get("process", {})
    for name, value in (process or {}).items():
        if theirs.get(name, None if name == "name" else value) != value:
            what = "the process" if name == "name" else name
            raise ValueError(f"{ckpt_path} was trained with {what} {theirs.get(name)}, this run has {value}")


def volumes_of(data: dict) -> dict[str, Any]:
    """What the network sees, from a weights' JSON or of a run, so that equal sizes are equal: one number or three."""
    return {
        "grid": [int(side) for side in three(data["grid"])],
        "field_of_view_mm": [float(size) for size in three(data["field_of_view_mm"])],
        "hu_window": [float(bound) for bound in data["hu_window"]],
        "intensity": data.get("intensity", HU),
    }


# what to say where weights that a stack of configs stands on are missing
_NEEDED = {
    "local_ckpt": "stage 2 needs stage 1's weights at {}: train stage 1 with the same ckpt_dir first",
    "residual_ckpt": "a new local denoiser needs residual_ckpt, the weights whose transformer stays",
    "finetune_from": "fine-tuning needs finetune_from, the weights to start from",
}


def data_of(ckpt_path: Union[None, str, Path], setting: str) -> dict[str, Any]:
    """What weights have learnt to see: 'grid', 'field_of_view_mm', 'hu_window', 'intensity'.

    Args:
        ckpt_path: the weights, with their JSON beside them.
        setting: that names them: 'local_ckpt', 'residual_ckpt' or 'finetune_from'.

    Raises:
        ValueError: in one line, when they are missing.
    """
    if ckpt_path is None or (setting == "local_ckpt" and not Path(ckpt_path).is_file()):
        raise ValueError(_NEEDED[setting].format(ckpt_path))
    return volumes_of(read_settings(ckpt_path, required=["data"])["data"])


def _facts(data: dict) -> dict[str, Any]:
    """What volumes of two stages must have in common; a stage may have another grid at the same size of a voxel."""
    facts = volumes_of(data)
    sides, size = facts.pop("grid"), facts.pop("field_of_view_mm")
    return {**facts, "voxels (mm)": [round(length / side, 4) for length, side in zip(size, sides)]}


def _differences(settings: dict, data: Optional[dict]) -> list[str]:
    """In what the volumes of weights, by their JSON, differ from those of this run; None is not compared."""
    if data is None:
        return []
    there, here = _facts(settings["data"]), _facts(data)
    return [f"{name} {there[name]} there, {here[name]} here" for name in here if there[name] != here[name]]


def start_from(
    network: PRDiT,
    ckpt_path: Union[None, str, Path],
    process: Optional[dict] = None,
    required: bool = False,
    data: Optional[dict] = None,
) -> PRDiT:
    """Puts trained weights into a new network of the same sizes; None leaves it as it is.

    Args:
        network: the new one.
        ckpt_path: trained weights, with their JSON beside them, or None.
        process: of this run, as it will be stored with the weights; None checks nothing.
        required: refuses to start from nothing.
        data: of this run; None checks nothing. Another grid or field of view is for the weights to learn.

    Raises:
        ValueError: in one line, when the weights are missing, or of another network, process, HU window or intensity.
    """
    if required and ckpt_path is None:
        raise ValueError(_NEEDED["finetune_from"])
    if ckpt_path is not None:
        settings = _require_same_network(network, ckpt_path, process)
        facts = [fact for fact in _differences(settings, data) if not fact.startswith("voxels")]
        if facts:
            raise ValueError(f"{ckpt_path} was trained on other volumes: {'; '.join(facts)}")
        load_strictly(network, load_tensors(ckpt_path), ckpt_path)
    return network


def _require_same_network(
    network: PRDiT, ckpt_path: Union[str, Path], process: Optional[dict], but: Collection[str] = ()
) -> dict:
    """The JSON of weights; a ValueError in one line when they are of another process or network, `but` aside."""
    settings = read_settings(ckpt_path)
    require_process(ckpt_path, settings, process)
    theirs, ours = (override_settings(one, CHANGE_NO_WEIGHT) for one in (settings["network"], network.settings))
    for name, value in ours.items():
        if theirs.get(name, value) != value and name not in but:
            raise ValueError(f"{ckpt_path} is of another network: {name} {theirs[name]} there, {value} here")
    return settings


def with_frozen_residual(
    network: PRDiT, residual_ckpt: Union[None, str, Path], process: Optional[dict] = None, data: Optional[dict] = None
) -> PRDiT:
    """Puts the transformer of trained weights beside a new local denoiser, and freezes it with the shared time layer.

    The local denoiser may have other patches than theirs. It starts at zero, so that the network starts as its
    transformer alone; afterwards all of it can be fine-tuned.

    Args:
        network: of depth 1 or more.
        residual_ckpt: weights of both stages, with their JSON beside them.
        process: of this run; None checks nothing.
        data: of this run; None checks nothing.

    Raises:
        ValueError: in one line, when the weights are not told, are missing, have no transformer, or do not fit.
    """
    if network.residual is None:
        raise ValueError("a new local denoiser needs a transformer beside it: set depth to 1 or more")
    if residual_ckpt is None:
        raise ValueError(_NEEDED["residual_ckpt"])
    settings = _require_same_network(network, residual_ckpt, process, but=("local_patch_size", "local_stride"))
    facts = _differences(settings, data)
    if facts:
        raise ValueError(f"{residual_ckpt} was trained on other volumes: {'; '.join(facts)}")
    frozen = nn.ModuleDict({"time": network.time, "residual": network.residual})
    state = {name: value for name, value in load_tensors(residual_ckpt).items() if not name.startswith("local.")}
    load_strictly(frozen, state, residual_ckpt)
    frozen.requires_grad_(False)
    return network


def with_frozen_local(
    network: PRDiT, local_ckpt: Union[str, Path], process: Optional[dict] = None, data: Optional[dict] = None
) -> PRDiT:
    """Puts the weights of stage 1 into a stage-2 network and freezes them (design 2.2).

    Frozen are the local denoiser with its time head, and the shared time layer.

    Args:
        network: of depth 1 or more.
        local_ckpt: stage 1's weights, with their JSON beside them.
        process: of this run; None checks nothing.
        data: of this run; None checks nothing.

    Raises:
        ValueError: in one line, when there is no stage 1 or it does not fit.
    """
    if network.residual is None:
        raise ValueError("stage 2 needs a depth of 1 or more")
    if not Path(local_ckpt).is_file():
        raise ValueError(_NEEDED["local_ckpt"].format(local_ckpt))
    settings = read_settings(local_ckpt)
    require_process(local_ckpt, settings, process)
    # num_predictions is missing where the weights are older than flow matching
    theirs, ours = {"num_predictions": 2, **settings["network"]}, network.settings
    facts = [
        f"{name} {theirs[name]} there, {ours[name]} here" for name in _LOCAL_SETTINGS if theirs[name] != ours[name]
    ]
    if _local_grid(theirs) != _local_grid(ours):
        facts.append(f"patch size and stride {_local_grid(theirs)} there, {_local_grid(ours)} here")
    facts += _differences(settings, data)
    if facts:
        raise ValueError(f"stage 1 in {local_ckpt} does not fit stage 2: {'; '.join(facts)}")
    frozen = nn.ModuleDict({"time": network.time, "local": network.local})
    load_strictly(frozen, load_tensors(local_ckpt), local_ckpt)
    frozen.requires_grad_(False)
    return network


def require_grid(network: DenoisingNetwork, grid: Sequence[int]) -> None:
    """Refuses a grid that the network cannot see, in stage 1 also one that stage 2 could not.

    Raises:
        ValueError: in one line, when a stride does not divide a side, or a side is too short for the patches.
    """
    sizes = [(network.settings["patch_size"], network.settings["stride"])]
    if isinstance(network, PRDiT):
        sizes.insert(0, _local_grid(network.settings))
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
