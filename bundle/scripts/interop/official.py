"""Checkpoints of the authors' code, read and written by parameter names and shapes alone."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Optional, Sequence, Union

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import require_writable
from ..files import remove_leftovers, sha256_of
from ..inferers.items import grid_of
from ..networks.base import DenoisingNetwork
from ..networks.card import description_path, require_free
from ..networks.checkpoint import is_plain, load_tensors, save_weights
from ..networks.kinds import build_network
from ..networks.prdit import SIZES
from ..overlap import check_places
from ..schedulers import build_scheduler
from .official_names import official_names


def official_state_dict(network: DenoisingNetwork) -> dict[str, Tensor]:
    """Exports a network under the authors' parameter names."""
    state, own = dict[str, Tensor](), network.state_dict()
    for name, theirs in official_names(network).items():
        state.update(zip(theirs, (part.clone() for part in own[name].chunk(len(theirs)))))
    return state


def _is_stage_3(state: dict[str, Tensor]) -> bool:
    return any(name.startswith(("base.", "sr.", "t_embedder_sr.")) for name in state)


def _bare_state(checkpoint: dict) -> dict[str, Tensor]:
    """Finds the weights in a checkpoint of the authors' code; the averaged ones are preferred, as in sampling."""
    for key in ("ema", "model", "state_dict"):
        if isinstance(checkpoint.get(key), dict):
            checkpoint = checkpoint[key]
            break
    state = {str(name).removeprefix("module."): value for name, value in checkpoint.items()}
    required = ["t_embedder.mlp.0.weight", "coarse.mlp_denoise.linear_final.weight"]
    if _is_stage_3(state):
        required = [f"base.{name}" for name in required] + [
            "t_embedder_sr.mlp.0.weight",
            "sr.mlp_denoise.linear_final.weight",
        ]
    for name in required:
        if getattr(state.get(name), "ndim", 0) != 2:
            raise ValueError(f"this is no PRDiT checkpoint of the authors' code: '{name}' is missing")
    if not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError("this is no PRDiT checkpoint of the authors' code: it holds more than tensors")
    # The fixed position code is computed, not loaded.
    return {name: value for name, value in state.items() if not name.endswith("pos_embed")}


def _is_cube(value: int) -> bool:
    return round(value ** (1 / 3)) ** 3 == value


def _cube_root(value: int, what: str) -> int:
    if not _is_cube(value):
        raise ValueError(f"{what} of the checkpoint, {value}, is no cube: only one input channel is known there")
    return round(value ** (1 / 3))


def official_settings(
    state: dict[str, Tensor], num_heads: Optional[int] = None, norm: str = "layer", factor: int = 2
) -> dict:
    """Reads the settings of `build_network` off the shapes of a state dict with the authors' names.

    The factor of a stage 3 is not in the shapes.

    Raises:
        ValueError: when the number of heads is unknown for this hidden size, or the outputs are neither (noise, signal)
            nor one velocity.
    """
    if _is_stage_3(state):
        base = {name.removeprefix("base."): value for name, value in state.items() if name.startswith("base.")}
        outputs, width = state["sr.mlp_denoise.linear_final.weight"].shape
        return {
            "backbone": official_settings(base, num_heads, norm),
            "factor": factor,
            "hidden_size": state["t_embedder_sr.mlp.0.weight"].shape[0],
            "patch_size": _cube_root(width, "the patch width"),
            "stride": _cube_root(outputs // 2, "the output width"),
            "norm": norm,
        }
    hidden_size = state["t_embedder.mlp.0.weight"].shape[0]
    heads = num_heads or dict(SIZES.values()).get(hidden_size)
    if heads is None:
        raise ValueError(f"num_heads must be given: hidden size {hidden_size} is none of the published ones")
    outputs, width = state["coarse.mlp_denoise.linear_final.weight"].shape
    # in_channels 1: one or two output channels of s**3 voxels each; twice a cube is never a cube
    fitting = [count for count in (2, 1) if outputs % count == 0 and _is_cube(outputs // count)]
    if not fitting:
        raise ValueError(f"the checkpoint predicts {outputs} values per patch: neither (noise, signal) nor a velocity")
    blocks = {int(match[1]) for name in state if (match := re.match(r"fine\.blocks\.(\d{1,9})\.", name))}
    if blocks != set(range(len(blocks))):
        raise ValueError(f"the checkpoint has {len(blocks)} transformer blocks, but the last one is {max(blocks)}")
    mlp = state.get("fine.blocks.0.mlp.fc1.weight")
    return {
        "hidden_size": hidden_size,
        "num_heads": heads,
        "depth": len(blocks),
        "patch_size": _cube_root(width, "the patch width"),
        "stride": _cube_root(outputs // fitting[0], "the output width"),
        "mlp_ratio": 4.0 if mlp is None else mlp.shape[0] / hidden_size,
        "norm": norm,
        "num_predictions": fitting[0],
    }


def _load(state: dict[str, Tensor], num_heads: Optional[int], norm: str, factor: int) -> DenoisingNetwork:
    network = build_network(**official_settings(state, num_heads, norm, factor))
    wanted = official_names(network)
    known = {theirs for names in wanted.values() for theirs in names}
    if set(state) != known:
        missing, extra = sorted(known - set(state)), sorted(set(state) - known)
        raise ValueError(f"the checkpoint is of another network: missing {missing[:3]}, unknown {extra[:3]}")
    shapes = {name: value.shape for name, value in official_state_dict(network).items()}
    wrong = [name for name in shapes if shapes[name] != state[name].shape]
    if wrong:
        raise ValueError(f"{wrong[0]} of the checkpoint is {list(state[wrong[0]].shape)}, not {list(shapes[wrong[0]])}")
    odd = [name for name in shapes if not is_plain(state[name])]
    if odd:
        raise ValueError(f"{odd[0]} of the checkpoint holds {state[odd[0]].dtype}, not plain real numbers")
    ours = {name: torch.cat([state[theirs].float() for theirs in names]) for name, names in wanted.items()}
    network.load_state_dict(ours, strict=True)
    return network.eval()


def official_process(network: DenoisingNetwork, noise_std: float = 1.0) -> dict:
    """The process that the authors train such a network with: flow matching where it predicts one velocity."""
    name = "flow_matching" if network.settings["num_predictions"] == 1 else "cosine_sine"
    return {"name": name, "num_train_timesteps": network.num_train_timesteps, "noise_std": noise_std}


@torch.no_grad()
def _denoising_error(network: DenoisingNetwork) -> float:
    """Mean squared error of what is predicted for a smooth volume with a little noise, a tenth of the way to noise."""
    side = 4 * math.lcm(*network.strides())
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand((4, 1, 3, 3, 3), generator=generator) * 2 - 1
    signal = F.interpolate(coarse, size=(side, side, side), mode="trilinear", align_corners=True)
    noise = torch.randn(signal.shape, generator=generator)
    scheduler = build_scheduler(official_process(network))
    time = torch.as_tensor(scheduler.path.time(torch.tensor([0.1])))
    prediction = network(scheduler.add_noise(signal, noise, time), time)
    return F.mse_loss(prediction, scheduler.get_target(signal, noise, time)).item()


def network_from_official(
    checkpoint: dict, num_heads: Optional[int] = None, norm: Optional[str] = None, factor: int = 2
) -> DenoisingNetwork:
    """Builds the network of an official checkpoint and loads it strictly.

    The two published variants have the same parameters, for RMSNorm has none. Trained weights tell them apart: the
    right variant removes noise, the wrong one does not. That is tried where `norm` is None.

    Args:
        checkpoint: a loaded file of the authors' code: a state dict, bare or under 'ema', 'model' or 'state_dict',
            with or without 'module.' before the names.
        num_heads: attention heads, needed where the hidden size is none of the published ones.
        norm: 'layer' (PRDiT) or 'rms' (TF-PRDiT); None to find out.
        factor: of a stage 3, voxels of its grid along one of the low grid.

    Raises:
        ValueError: in one line, when it is no such checkpoint, names or shapes differ, or the variant cannot be told.
    """
    state = _bare_state(checkpoint)
    if norm is not None:
        return _load(state, num_heads, norm, factor)
    networks = {kind: _load(state, num_heads, kind, factor) for kind in ("layer", "rms")}
    errors = {kind: _denoising_error(network) for kind, network in networks.items()}
    best, worst = sorted(errors, key=lambda kind: errors[kind])
    if not errors[best] < 0.5 * errors[worst]:
        raise ValueError(
            f"neither variant clearly removes noise (errors {errors}): give norm 'layer' (PRDiT) or 'rms' (TF-PRDiT)"
        )
    return networks[best]


def _stage(settings: dict) -> str:
    return "high_resolution" if "backbone" in settings else "model" if settings["depth"] else "local"


def _describe(settings: dict) -> str:
    """A network in words."""
    patches = f"patch_size {settings['patch_size']}, stride {settings['stride']}, norm {settings['norm']}"
    if "backbone" in settings:
        return f"refiner of {patches}, factor {settings['factor']}, on {_describe(settings['backbone'])}"
    size = {values: size for size, values in SIZES.items()}.get((settings["hidden_size"], settings["num_heads"]))
    depth = settings["depth"]
    name = f"PRDiT-{size}/{depth}" if size else f"hidden_size {settings['hidden_size']}, depth {depth}"
    return f"{name}, {patches}"


def import_official(
    official_ckpt: Union[str, Path],
    ckpt_path: Union[str, Path],
    grid: Sequence[int],
    field_of_view_mm: float,
    hu_window: Sequence[float],
    noise_std: float,
    num_heads: Optional[int] = None,
    norm: Optional[str] = None,
    factor: int = 2,
) -> None:
    """Writes an official checkpoint as one of ours and prints the network it holds.

    Args:
        official_ckpt: file of the authors' code, of tensors and plain numbers.
        ckpt_path: where ours goes, with its JSON; weights of another file are not overwritten.
        grid: voxels along each axis that it was trained for, of a stage 3 the high grid; official files do not say.
        field_of_view_mm: size of a volume.
        hu_window: HU of the values -1 and 1.
        noise_std: of its training: 0.5 in the authors' first code, 1.0 in the later.
        num_heads: see `network_from_official`.
        norm: see `network_from_official`.
        factor: see `network_from_official`.

    Raises:
        ValueError: in one line.
    """
    if not official_ckpt or not ckpt_path:
        raise ValueError("official_ckpt and ckpt_path must be given: the authors' file, and where ours goes")
    check_places(
        {"official_ckpt": official_ckpt},
        {"ckpt_path": ckpt_path, "what describes ckpt_path:": description_path(ckpt_path)},
    )
    checkpoint, sha256 = load_tensors(official_ckpt), sha256_of(official_ckpt)
    require_free(ckpt_path, "ckpt_path", imported_from_sha256=sha256, exported_from_sha256=None)
    require_writable(Path(ckpt_path).parent, "the folder of ckpt_path,")
    remove_leftovers(Path(ckpt_path).parent)
    network = network_from_official(checkpoint, num_heads, norm, factor)
    process = official_process(network, noise_std)
    settings = {
        "stage": _stage(network.settings),
        "process": process,
        "data": {
            "grid": grid_of(grid, grid, network),
            "field_of_view_mm": field_of_view_mm,
            "hu_window": list(hu_window),
        },
        "imported_from_sha256": sha256,
    }
    save_weights(network, ckpt_path, settings)
    print(f"{_describe(network.settings)}, {process['name']}: {ckpt_path}")
    print(f"sample from it with: inference.yaml --ckpt_path {ckpt_path}")
