"""From a command to the runs of MONAI that it stands for."""

from __future__ import annotations

import os
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Iterable, Mapping, Optional, Sequence

from ..settings.reach import described_settings, reached, require_effect
from .stacks import PROCESSES, STAGE_LAYER, in_order, marks, merged, overlays, recipes, with_bases
from .table import CONFIGS, Command
from .typed import Typed, is_flag, missing, named, nearest

OWN = ("recipe", "with", "gpus")  # flags of prdit for every run
OF_TRAINING = ("stage", "up")  # … and of training
SWITCHES = ("show", "verbose")
LOCAL, GLOBAL, REFINER = "local", "model", "high_resolution"  # names of the weights' files
NOTHING = {"None": "$None", "null": "$None"}  # MONAI drops a plain None
_STAGES = {LOCAL: "the local denoiser", GLOBAL: "the global residual", REFINER: "the refiner of a finer grid"}
_STARTS = {"finetune_from": "finetune", "residual_ckpt": "train_new_local", "distill_from": "distill"}
# settings that one stage alone takes where several are trained: the next ones take theirs from the weights before
_OF_STAGE = {
    "grid": LOCAL, "field_of_view_mm": LOCAL, "hu_window": LOCAL, "local_window": LOCAL,
    "depth": GLOBAL,
}  # fmt: skip


@dataclass(frozen=True)
class Run:
    """One run of MONAI.

    Args:
        stack: names of config files, in order.
        settings: as typed.
        run_id: which list of the config is run; None is MONAI's own, `run`.
        processes: more than one is started by `torchrun`.
        title: which of several it is.
        stage: name of the weights that a training makes.
    """

    stack: tuple[str, ...]
    settings: Mapping[str, str]
    run_id: Optional[str] = None
    processes: int = 1
    title: str = ""
    stage: str = ""

    def words(self) -> list[str]:
        """The words after `monai.bundle`."""
        paths = [_short(CONFIGS / f"{name}.yaml") for name in self.stack]
        files = paths[0] if len(paths) == 1 else "[" + ",".join(f"'{path}'" for path in paths) + "]"
        settings = []
        for name, value in self.settings.items():
            settings += [f"--{name}={value}"] if is_flag(value) else [f"--{name}", NOTHING.get(value, value)]
        return ["run", *([self.run_id] if self.run_id else []), "--config_file", files, *settings]

    def weights(self) -> Path:
        """Where a training leaves its weights."""
        ckpt_dir = self.settings.get("ckpt_dir", merged(self.stack).get("ckpt_dir", "."))
        return Path(ckpt_dir).expanduser() / f"{self.stage or merged(self.stack).get('stage')}.pt"

    def line(self) -> str:
        """The command as a user of MONAI types it."""
        start = f"torchrun --standalone --nproc_per_node={self.processes}" if self.processes > 1 else "python"
        return f"{start} -m monai.bundle " + " ".join(_quoted(word) for word in self.words())


def _short(path: Path) -> str:
    """A path from the current folder, where it lies below."""
    relative = os.path.relpath(path)
    return str(path) if relative.startswith(os.pardir) else relative


def _quoted(word: str) -> str:
    return f'"{word}"' if "'" in word and not set(word) & set('"$`\\!') else shlex.quote(word)


def runs_of(name: str, command: Command, typed: Typed) -> list[Run]:
    """The runs of a command, in order.

    Raises:
        ValueError: in one line, for what is not right in it.
    """
    added = added_overlays(command.stack[0], typed)
    processes = _number(typed.take("gpus"), "gpus", 1)
    if processes > 1:
        added.append(PROCESSES)
    stage, up = (typed.take("stage"), typed.take("up")) if command.stack[0] == "train" else (None, None)
    settings = {**command.defaults, **named(typed, command.positions, command.short, f"prdit {name}")}
    _require_places(name, command, settings)
    if command.stack[0] == "train":
        return _training(command.stack, added, settings, processes, stage, up)
    if command.stack[0] == "inference" and "ckpt_path" in settings:
        settings["ckpt_path"] = _weights_in(settings["ckpt_path"])
    stack = in_order(command.stack, added)
    _require_known(name, settings, [stack])
    return [Run(tuple(stack), settings, processes=processes)]


def _require_places(name: str, command: Command, settings: Mapping[str, str]) -> None:
    """Names the places that have no default and are not given."""
    config, lacking = merged(command.stack), []
    for setting, place in command.positions.items():
        if setting in settings or config[setting] is not None:
            continue
        other = command.instead.get(setting)
        if other not in settings if other else not described_settings(config)[setting].kind.allows(None):
            lacking.append(place)
    if lacking:
        raise missing(lacking, command.positions, f"prdit {name}")


def added_overlays(base: str, typed: Typed) -> list[str]:
    """Overlays that were asked for by name."""
    recipe, others = typed.take("recipe"), typed.take("with")
    known = recipes(base)
    if recipe is not None and recipe not in known:
        there = f"there are {', '.join(known)}" if known else f"there is none for {base}.yaml"
        raise ValueError(f"no recipe {recipe}{nearest(recipe, known) or f'; {there}'}")
    return [*(with_bases(recipe, base) if recipe else ()), *(one for one in (others or "").split(",") if one)]


def _number(value: Optional[str], setting: str, least: int) -> int:
    if value is None:
        return 1
    if not value.isdecimal() or int(value) < least:
        raise ValueError(f"{setting} must be a whole number, {least} or more, got {value}")
    return int(value)


def _has_place(config: Any, setting: str) -> bool:
    """Whether MONAI can put a value where `a::b::0` says: all but the last name must be there."""
    *path, last = setting.replace("#", "::").split("::")
    try:
        for one in path:
            config = config[int(one) if isinstance(config, list) else one]
        return isinstance(config, dict) or config[int(last)] is not None
    except (LookupError, TypeError, ValueError):
        return False


def _require_known(name: str, settings: Mapping[str, str], stacks: Iterable[Sequence[str]]) -> None:
    configs = [merged(tuple(stack)) for stack in stacks]
    known = {setting for config in configs for setting in config}
    for setting in settings:
        first = setting.replace("#", "::").split("::")[0]
        if first not in known:
            raise ValueError(f"no setting {first}{nearest(first, known) or ' here'}  (prdit {name} --help)")
        if not any(_has_place(config, setting) for config in configs):
            raise ValueError(f"{setting} names no place in the config files; :: separates names, and numbers in lists")
    require_effect(settings, *configs)


def _weights_in(place: str) -> str:
    """A folder stands for the weights that training left there."""
    folder = Path(place).expanduser()
    if not place or not folder.is_dir():  # what is missing is told by the run
        return place
    for name in (GLOBAL, REFINER, LOCAL):
        if (folder / f"{name}.pt").is_file():
            return os.path.join(place, f"{name}.pt")
    raise ValueError(f"{place} has no weights: no model.pt is in it; prdit train DATA {place} makes them")


def _training(
    base: Sequence[str],
    added: list[str],
    settings: dict[str, str],
    processes: int,
    stage: Optional[str],
    up: Optional[str],
) -> list[Run]:
    """The stages of training, one run each."""
    for name, overlay in _STARTS.items():
        if name in settings and overlay not in added:
            added.append(overlay)
    for name in (*_STARTS, "backbone_ckpt"):
        if name in settings:
            settings[name] = _weights_in(settings[name])
    factor = _number(up, "up", 2)
    if [one for one in added if one in overlays("train") and marks()[one]["layer"] <= STAGE_LAYER]:
        if (stage, up) != (None, None):
            raise ValueError(
                f"stage and up are for training from the start, not with {', '.join(added)}; leave them out"
            )
        stacks = {"": in_order(base, added)}
    else:
        stacks = _stages(list(base), added, stage, up)
        if stage == "1" and (other := next((one for one in settings if _OF_STAGE.get(one) == GLOBAL), None)):
            raise ValueError(f"{other} is for stage 2: leave {other} or stage 1 out")
    _require_known("train", settings, stacks.values())
    runs = []
    for number, (name, stack) in enumerate(stacks.items(), 1):
        given = settings
        if len(stacks) > 1:
            theirs = reached(merged(tuple(stack)))
            given = {one: value for one, value in given.items() if one in theirs and _OF_STAGE.get(one, name) == name}
        if name == REFINER:
            ckpt_dir = settings.get("ckpt_dir", merged(tuple(base))["ckpt_dir"])
            given = {**given, "backbone_ckpt": os.path.join(ckpt_dir, f"{GLOBAL}.pt"), "factor": str(factor)}
        runs.append(Run(tuple(stack), given, "training", processes, _title(name, number, len(stacks)), name))
    return runs


def _title(stage: str, number: int, count: int) -> str:
    return f"stage {number} of {count}: {_STAGES[stage]}" if stage and count > 1 else ""


def _stages(base: list[str], added: Sequence[str], stage: Optional[str], up: Optional[str]) -> dict[str, list[str]]:
    """Stacks by the weights that they make, in the order of training."""
    if stage not in (None, "1", "2"):
        raise ValueError(f"stage must be 1 (local denoiser) or 2 (global residual), got {stage}")
    of_both = [name for name in added if marks().get(name, {}).get("stage") != GLOBAL]  # others need the transformer
    stacks = {LOCAL: in_order(base, of_both), GLOBAL: in_order([*base, "train_global"], added)}
    if stage is not None:
        stacks = {name: stacks[name] for name in (LOCAL if stage == "1" else GLOBAL,)}
    if up is not None:  # a recipe is that of the grid below
        others = [name for name in of_both if name not in recipes("train")]
        stacks[REFINER] = in_order([*base, "train_high_resolution"], others)
    return stacks
