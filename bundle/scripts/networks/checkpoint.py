"""Weights on disk: a plain state dict, and beside it a JSON that says what they are, tied by sha256."""

from __future__ import annotations

import hashlib
import math
import pickle
import sys
from pathlib import Path
from typing import Any, Optional
from zipfile import BadZipFile

import torch
from torch import Tensor, nn

from ..errors import require_writable
from ..files import PathLike, remove_leftovers, whole_file, write_json
from ..overlap import check_places
from ..spaces import Space
from .base import DenoisingNetwork
from .card import SCHEMA, Card, description_path, read_card, require_free, settings_sha256, weights_file
from .guidance import guidance_of
from .kinds import CHANGE_NO_WEIGHT, takes_setting
from .latent_unet import LatentSpace

TIME_LAYERS = {"time", "time_head", "modulation", "final_modulation"}  # parts of the names of what sees the time alone


def load_tensors(path: PathLike) -> dict[str, Any]:
    """Loads a checkpoint of tensors and plain numbers on the CPU.

    Raises:
        ValueError: in one line, when the file is missing, truncated, or holds anything else.
    """
    path = weights_file(path)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise ValueError(f"{path} holds more than tensors and plain numbers; it was not loaded") from None
    except (RuntimeError, EOFError, BadZipFile, OSError, LookupError, ValueError):
        raise ValueError(f"{path} is no readable checkpoint, or is truncated; copy or train it again") from None
    if not isinstance(state, dict):
        raise ValueError(f"{path} holds no state dict")
    return state


def save_tensors(state: dict[str, Any], path: PathLike) -> None:
    """Saves tensors and plain numbers and texts as a `whole_file`; equal contents are equal bytes.

    Pickle writes an object that it meets again as a reference, so that bytes would tell equal texts from the same text,
    and with it a continued run from one that was never broken.
    """
    with whole_file(path) as file:  # into a path PyTorch would write its name too, and equal weights would differ
        torch.save(_canonical(state), file)


def _canonical(value: Any) -> Any:
    if isinstance(value, dict):
        return {_canonical(name): _canonical(one) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_canonical(one) for one in value)
    return sys.intern(str(value)) if isinstance(value, str) else value


def load_strictly(network: nn.Module, state: dict[str, Tensor], path: PathLike) -> None:
    """Loads weights whose names, shapes and kinds of numbers must all match; ValueError in one line otherwise."""
    require_fitting(network.state_dict(), state, path)
    for name, value in state.items():
        if not torch.isfinite(value.float()).all():  # float() for 8 bits, which PyTorch cannot test
            raise ValueError(f"{path} holds values that are not finite ({name}); copy or train it again")
    network.load_state_dict(state)


def require_fitting(own: dict[str, Tensor], state: dict[str, Any], path: PathLike) -> None:
    """Refuses weights whose names, shapes or kinds of numbers are not those of a network's own."""
    missing, extra = sorted(set(own) - set(state)), sorted(set(state) - set(own), key=str)
    both = [name for name in own if name in state]
    shapes = [name for name in both if own[name].shape != getattr(state[name], "shape", None)]
    kinds = [name for name in both if isinstance(state[name], Tensor)
             and not is_plain(state[name], own[name].is_floating_point())]  # fmt: skip
    facts = [f"{len(names)} {what} ({names[0]})" for what, names in
             (("missing", missing), ("unknown", extra), ("of another shape", shapes), ("not plain real numbers", kinds)) if names]  # fmt: skip
    if facts:
        raise ValueError(f"{path} is of another network: {', '.join(facts)}")


def is_plain(tensor: Tensor, real: bool = True) -> bool:
    """Whether a tensor holds each of its numbers, real ones or whole ones: it is not sparse, and has a storage."""
    return tensor.is_floating_point() == real and tensor.layout == torch.strided and not tensor.is_meta


def save_weights(
    network: DenoisingNetwork,
    path: PathLike,
    facts: dict,
    dtype: Optional[torch.dtype] = None,
    time_dtype: Optional[torch.dtype] = None,
) -> str:
    """Writes `path` and its JSON.

    Args:
        network: built by `build_network`.
        path: a `.pt` file.
        facts: what else belongs on their card: 'process', 'data', 'stage', ...
        dtype: storage precision; None keeps the network's. Loading into float32 is exact.
        time_dtype: of the matrices that see the time alone; None stores them as the others.

    Returns:
        The sha256 of the weights.

    Raises:
        ValueError: in one line, when a weight is not finite, or is not in this precision.
    """
    description, state = description_path(path), {}
    for name, value in network.state_dict().items():
        of_time = value.ndim == 2 and not TIME_LAYERS.isdisjoint(name.split("."))
        stored_as = (time_dtype if of_time else None) or dtype or value.dtype
        state[name] = value.detach().cpu().to(stored_as)
        if not torch.isfinite(state[name].float()).all():
            raise ValueError(f"{path} was not written: {name} has values that are not finite in {stored_as}")
    with whole_file(path) as file:
        torch.save(state, file)  # into a path PyTorch would write its name too, and equal weights would differ
        file.seek(0)
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        content = {"schema": SCHEMA, "sha256": sha256, "network": network.settings, **facts}
        content["settings_sha256"] = settings_sha256(content)
        write_json(description, content)  # first: weights without it could not be told from others'
    return sha256


def network_from_checkpoint(ckpt_path: PathLike, **overrides: Any) -> Any:
    """Builds the network that a checkpoint's JSON describes and loads it, in float32.

    Args:
        ckpt_path: a `.pt` file written by `save_weights`.
        overrides: settings that change no weight: attention, chunk_tokens, activation_checkpointing.

    Raises:
        ValueError: in one line, see `read_card`, `load_tensors`, `load_strictly`.
    """
    return load_network(read_card(ckpt_path), **overrides)


def load_network(card: Card, **overrides: Any) -> Any:
    """The network of a card with its weights, see `network_from_checkpoint`."""
    for name, value in overrides.items():
        if value != CHANGE_NO_WEIGHT.get(name) and not takes_setting(card.network, name):
            raise ValueError(f"{name} {value} has no effect on weights of the kind {card.kind}; leave it out")
    ckpt_path, state = card.path, load_tensors(card.path)
    try:
        _require_sizes_of(card.network, state)
        with torch.device("meta"):  # takes no memory, whatever sizes the JSON claims
            claimed = card.build(**overrides)
        grid, strides = card.data.grid if card.data else [], claimed.strides()
        if any(side % stride for side in grid for stride in strides):
            raise ValueError(f"the grid {grid} is no multiple of the strides {strides}")
    except Exception as error:  # as various as what a JSON can hold
        reason = f": {error}" if isinstance(error, ValueError) and "\n" not in str(error) else ""
        raise ValueError(f"{description_path(ckpt_path)} does not describe a network of this bundle{reason}") from None
    require_fitting(claimed.state_dict(), state, ckpt_path)
    network = card.build(**overrides)
    load_strictly(network, state, ckpt_path)
    return network


def space_of(card: Card, device: Any = "cpu") -> Space:
    """What encodes volumes for a network, with weights of its own where it has some, which stay in float32."""
    assert card.data is not None
    if card.data.encoding != LatentSpace.encoding:
        return card.data.space
    return LatentSpace(card.data.hu_window, load_network(card).autoencoder).to(device)


def _require_sizes_of(settings: dict, state: dict[str, Any]) -> None:
    """Refuses numbers that are no sizes of the weights: to build so many layers would take hours."""
    most = max([len(state), *(side for value in state.values() for side in getattr(value, "shape", ()))])
    for name, value in settings.items():
        if name in ("backbone", "autoencoder"):
            _require_sizes_of(value, state)
        elif isinstance(value, (int, float)) and not 0 <= value <= (math.inf if name == "chunk_tokens" else most):
            raise ValueError(f"{name} is {value}, beyond what the weights hold")


def export_weights(
    ckpt_path: PathLike,
    output_path: PathLike,
    dtype: str = "bfloat16",
    time_dtype: Optional[str] = None,
    guidance: Optional[float] = None,
    guidance_block: Optional[int] = None,
    guidance_below: Optional[float] = None,
) -> None:
    """Copies weights in another storage precision; half the size in bfloat16, and still exact to load.

    The matrices that see the time alone are a third of a small network, and bear coarser rounding: what they give is
    shift, scale and gate, the same for all tokens.

    Args:
        ckpt_path: a `.pt` file written by `save_weights`.
        output_path: the copy, with its JSON.
        dtype: 'float32', 'bfloat16' or 'float16'.
        time_dtype: of the matrices that see the time alone: one of these, 'float8_e4m3fn', or None for `dtype`.
        guidance: to sample the copy with, see `Guidance`; None as the weights have it.
        guidance_block: likewise.
        guidance_below: likewise.

    Raises:
        ValueError: in one line, when the precision is unknown, the guidance is out of range, the weights cannot be
            loaded, or others are in the copy's place.
    """
    precisions = ("float32", "bfloat16", "float16")
    if dtype not in precisions:
        raise ValueError(f"dtype must be float32, bfloat16 or float16, got '{dtype}'")
    if time_dtype is not None and time_dtype not in (*precisions, "float8_e4m3fn"):
        raise ValueError(f"time_dtype must be null, float32, bfloat16, float16 or float8_e4m3fn, got '{time_dtype}'")
    check_places(
        {"ckpt_path": [ckpt_path, description_path(ckpt_path)]},
        {"output_path": output_path, "what describes output_path:": description_path(output_path)},
    )
    card = read_card(ckpt_path)
    require_free(output_path, "output_path", exported_from_sha256=card.sha256)
    require_writable(Path(output_path).parent, "the folder of output_path,")
    remove_leftovers(Path(output_path).parent)
    recommended = guidance_of(card, guidance, guidance_block, guidance_below)
    facts = {**card.facts, "guidance": recommended._asdict() if recommended else {}}
    facts["exported_from_sha256"] = card.sha256
    of_time = getattr(torch, time_dtype) if time_dtype else None
    save_weights(load_network(card), output_path, facts, getattr(torch, dtype), of_time)
    beside = f", {time_dtype} where the time alone counts" if time_dtype else ""
    print(f"{output_path}: {Path(output_path).stat().st_size / 1e6:.1f} MB in {dtype}{beside}")
