"""The card of weights: the JSON beside them, which says what they are and how to build what they belong to."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, Literal, Optional, Sequence, Union

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, PrivateAttr, ValidationError

from ..data.intensity import HU, PAPER_COMPAT
from ..files import PathLike, sha256_of
from ..schedulers import build_scheduler, sampler_settings
from ..settings.choices import ENCODINGS
from ..spaces import HUWindow, build_space
from .kinds import CHANGE_NO_WEIGHT, build_network, kind_of, override_settings

SCHEMA = 1  # of the JSON; files without a number are of the first versions, and still read


def _ascending(window: list[float]) -> list[float]:
    if window[0] >= window[1]:
        raise ValueError("the lower number comes first")
    return window


def _three(value: Any) -> Any:
    return [value] * 3 if isinstance(value, int) else value  # the first version stored one number


def _complete(network: Any) -> Any:
    """A network's settings with its kind, which older files do not name, and without T, which is the process's."""
    if not isinstance(network, dict):
        return network
    settings = {"kind": kind_of(network), **network}
    settings.pop("num_train_timesteps", None)
    return {**settings, "backbone": _complete(network["backbone"])} if "backbone" in network else settings


_Side = Annotated[int, Field(ge=1, le=100_000)]
_Length = Annotated[float, Field(gt=0, le=1e6, allow_inf_nan=False)]
_Value = Annotated[float, Field(ge=-1e6, le=1e6)]


class Seen(BaseModel):
    """What a network sees of a volume: 'grid' in voxels, 'field_of_view_mm', 'hu_window', 'intensity', and as what, one of
    `ENCODINGS`."""

    model_config = ConfigDict(strict=True, frozen=True)
    grid: Annotated[list[_Side], Field(min_length=3, max_length=3), BeforeValidator(_three)]
    field_of_view_mm: Union[_Length, Annotated[list[_Length], Field(min_length=3, max_length=3)]]
    hu_window: Annotated[list[_Value], Field(min_length=2, max_length=2), AfterValidator(_ascending)]
    intensity: Literal[HU, PAPER_COMPAT] = HU  # type: ignore[valid-type]
    encoding: Literal[ENCODINGS] = "voxels"  # type: ignore[valid-type]

    @property
    def sizes_mm(self) -> list[float]:
        """Of the field of view along x, y, z."""
        size = self.field_of_view_mm
        return [float(side) for side in (size if isinstance(size, list) else [size] * 3)]

    @property
    def voxels_mm(self) -> list[float]:
        """Size of a voxel along x, y, z, to 0.1 micrometres."""
        return [round(length / side, 4) for length, side in zip(self.sizes_mm, self.grid)]

    @property
    def space(self) -> HUWindow:
        """What encodes HU for the network."""
        return build_space(self.encoding, self.hu_window)

    def plain(self) -> dict[str, Any]:
        """Such that equal sizes are equal: always three numbers."""
        return {"grid": self.grid, "field_of_view_mm": self.sizes_mm, "hu_window": [float(v) for v in self.hu_window],
                "intensity": self.intensity, "encoding": self.encoding}  # fmt: skip


def _known(process: dict[str, Any]) -> dict[str, Any]:
    if process:  # without one, weights are a network alone
        build_scheduler(process)
    return process


def _sampled(sampling: dict[str, Any]) -> dict[str, Any]:
    schedules = sampling.get("schedules", {})
    if not isinstance(schedules, dict) or not all(isinstance(lists, dict) for lists in schedules.values()):
        raise ValueError("schedules must have the lists of a schedule by the number of network calls")
    if unused := [calls for calls in schedules if not calls.isdecimal() or calls != str(int(calls))]:
        raise ValueError(f"schedules must be by the number of network calls, such as '8', got '{unused[0]}'")
    try:
        for calls in (None, *map(int, schedules)):
            settings = sampler_settings(sampling, num_inference_steps=calls)
            number, offset = settings.pop("num_inference_steps"), settings.pop("random_offset")
            build_scheduler({"name": "cosine_sine"}, **settings).set_timesteps(number)
    except (AttributeError, OverflowError, TypeError) as error:  # as various as what a JSON can hold
        raise ValueError(str(error)) from None
    if not isinstance(offset, bool):
        raise ValueError(f"random_offset must be true or false, got {offset}")
    return sampling


class Card(BaseModel):
    """What weights are: everything that sampling, evaluation and further training need to know of them.

    Entries beside these, such as the hashes of weights that they stand on, are kept as they are.
    """

    model_config = ConfigDict(strict=True, frozen=True, extra="allow")
    schema_version: Annotated[int, Field(alias="schema", ge=1, le=SCHEMA)] = SCHEMA
    sha256: str  # of the weights
    settings_sha256: Optional[str] = None  # see `settings_sha256`; older cards have none
    network: Annotated[dict[str, Any], BeforeValidator(_complete)]  # 'kind', one of `KINDS`, and its settings
    process: Annotated[dict[str, Any], AfterValidator(_known)] = {}  # 'name' and settings of a process
    data: Optional[Seen] = None
    guidance: dict[str, Any] = {}  # to sample with
    sampling: Annotated[dict[str, Any], AfterValidator(_sampled)] = {}  # likewise, see `sampler_settings`
    stage: Optional[str] = None
    _path: Path = PrivateAttr(Path())

    @property
    def path(self) -> Path:
        """Of the weights."""
        return self._path

    @property
    def kind(self) -> str:
        """One of `KINDS`."""
        return self.network["kind"]

    @property
    def in_channels(self) -> int:
        """Channels of a volume; a CT has one."""
        return self.network.get("in_channels", 1)

    @property
    def num_train_timesteps(self) -> int:
        """T of the process."""
        return int(self.process.get("num_train_timesteps", 1000))

    @property
    def device_hours(self) -> Optional[float]:
        """That training them took, in all and with the weights that they stand on; None where that was not logged."""
        training = (self.model_extra or {}).get("training", {})
        parts = [training.get("device_hours"), training.get("device_hours_before", 0.0)]
        return None if None in parts else sum(parts)

    @property
    def facts(self) -> dict[str, Any]:
        """What belongs to the weights beside the network."""
        return self.model_dump(
            by_alias=True, exclude_unset=True, exclude={"schema_version", "sha256", "settings_sha256", "network"}
        )

    def build(self, **overrides: Any) -> Any:
        """A new network of this kind, with settings that replace those of the card at each level that has them."""
        return build_network(**override_settings(self.network, overrides), num_train_timesteps=self.num_train_timesteps)


def settings_sha256(content: dict[str, Any]) -> str:
    """Of all in a card that decides what the weights draw: one of these changed by hand can fit the weights, and spoil it.

    What changes no weight, what guidance is recommended, and notes may be changed.
    """
    parts = {name: content.get(name) for name in ("network", "process", "data")}
    return hashlib.sha256(json.dumps(_real(parts), sort_keys=True).encode()).hexdigest()


def _real(value: Any) -> Any:
    """With equal numbers equal, since whoever formats JSON anew may write 320.0 as 320; without `CHANGE_NO_WEIGHT`."""
    if isinstance(value, dict):
        return {name: _real(one) for name, one in value.items() if name not in CHANGE_NO_WEIGHT}
    if isinstance(value, (list, tuple)):
        return [_real(one) for one in value]
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value


def description_path(weights: PathLike) -> Path:
    """Where the JSON of weights is.

    Raises:
        ValueError: in one line, when the weights are not called .pt: those of several endings would share one JSON.
    """
    path = Path(weights)
    if path.suffix != ".pt":
        raise ValueError(f"{path} must end in .pt: what describes the weights is beside them with .json in its place")
    return path.with_suffix(".json")


def read_card(path: PathLike, required: Sequence[str] = ()) -> Card:
    """The card of weights, which must be theirs.

    Args:
        path: of the weights.
        required: entries that the run needs, beside the network's.

    Raises:
        ValueError: in one line, when the weights or their JSON are missing, or the JSON is damaged or of other weights.
    """
    weights = weights_file(path)
    description = description_path(weights)
    if not description.is_file():
        raise ValueError(
            f"{weights} has no {description.name} beside it, which says what network it is; copy both files"
        )
    card = _parsed(description)
    missing = [name for name in required if not getattr(card, name, None)]
    if missing:
        raise ValueError(f"{description} does not describe the {missing[0]} of the weights; copy it again")
    if sha256_of(weights) != card.sha256:
        raise ValueError(f"{weights} is truncated or not the file that {description.name} describes (sha256 differs)")
    card._path = weights
    return card


class Unreadable(ValueError):
    """A card that is whole, but not for this version."""


def _require_readable(path: Path, content: Any) -> None:
    if not isinstance(content, dict):
        return
    schema, network, process = (content.get(name) for name in ("schema", "network", "process"))
    if isinstance(schema, int) and schema > SCHEMA:
        raise Unreadable(f"{path} was written by a newer version of this bundle (schema {schema}); update the bundle")
    counted = network.get("num_train_timesteps") if isinstance(network, dict) else None
    total = process.get("num_train_timesteps", 1000) if isinstance(process, dict) else 1000
    if counted not in (None, total):
        raise Unreadable(
            f"{path} contradicts itself: num_train_timesteps {counted} of the network, {total} of the process"
        )


def _parsed(path: Path) -> Card:
    try:
        content = json.loads(path.read_bytes())
        _require_readable(path, content)
        card = Card.model_validate(content)
        if card.settings_sha256 not in (None, settings_sha256(content)):
            raise Unreadable(
                f"{path} was changed after the weights were written: network, process or data differ; copy it again, or "
                "remove settings_sha256 from it if the change is meant"
            )
        return card
    except Unreadable:
        raise
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"][:2])
        what = f"its {where} is missing or not right" if where else "it is no table of settings"
        if "error" in first.get("ctx", {}):  # of our own
            what += f" ({first['ctx']['error']})"
        raise ValueError(f"{path} is not the description of a checkpoint: {what}; copy it again") from None
    except (ValueError, RecursionError):
        raise ValueError(f"{path} is not the description of a checkpoint; copy it again") from None


def weights_file(path: PathLike) -> Path:
    """A path of weights that are there; ValueError in one line otherwise, for a folder with the weights in it."""
    path = Path(path)
    if path.is_dir():
        inside = ", ".join(
            str(path / file.name) for file in sorted(path.glob("*.pt")) if file.with_suffix(".json").is_file()
        )
        raise ValueError(f"{path} is a folder: give the weights in it" + (f", {inside}" if inside else ""))
    if not path.is_file():
        raise ValueError(f"no checkpoint at {path}")
    return path


def require_free(weights: PathLike, setting: str, **made_from: Optional[str]) -> None:
    """Refuses weights in place, or a foreign JSON, unless the same command has made them from the same file.

    Args:
        weights: to be written.
        setting: that names them.
        made_from: entries that their JSON has in this case.

    Raises:
        ValueError: in one line.
    """
    path, description = Path(weights), description_path(weights)
    there = next((one for one in (path, description) if one.exists()), None)
    if there is None:
        return
    try:
        before = json.loads(description.read_bytes())
        if all(before.get(name) == value for name, value in made_from.items()):
            return
    except (OSError, ValueError, AttributeError, RecursionError):
        pass
    raise ValueError(f"{there} exists already and was not made from this file; choose another {setting}")
