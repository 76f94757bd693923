"""`prdit plan COMMAND ...`: the same runs, none of which starts."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any, Mapping, Sequence

from .runs import GLOBAL, LOCAL, Run
from .stacks import content, merged

_VOLUMES = ("grid", "field_of_view_mm", "hu_window")  # which stage 2 takes from the weights of stage 1


def planned(runs: Sequence[Run]) -> list[Run]:
    """Runs that only tell what they would do.

    Stage 2 reads what it needs to know from the weights of stage 1. Where there are none yet, it is planned as stage 1
    with the settings of stage 2, which counts the frozen local denoiser as if it were trained.

    Raises:
        ValueError: in one line, for a command that has no dry run, or a refiner whose backbone is not there yet.
    """
    of_stage_1 = next((run.settings for run in runs if run.stage == LOCAL), {})
    return [_planned(run, {name: of_stage_1[name] for name in _VOLUMES if name in of_stage_1}) for run in runs]


def _planned(run: Run, volumes: Mapping[str, str]) -> Run:
    config = merged(run.stack)
    if "dry_run" not in config:
        raise ValueError("plan is for prepare, train and sample")
    settings: dict[str, Any] = {**run.settings}
    if run.stack[0] == "train":
        ckpt_dir = settings.get("ckpt_dir", config["ckpt_dir"])
        if run.stage == GLOBAL and not os.path.isfile(os.path.join(ckpt_dir, f"{LOCAL}.pt")):
            plain = {name: value for name, value in content("train_global").items() if _is_plain(name, value)}
            settings = {**{name: _typed(value) for name, value in plain.items()}, **volumes, **settings}
            run = replace(run, stack=tuple(name for name in run.stack if name != "train_global"))
        backbone = settings.get("backbone_ckpt")
        if backbone and not os.path.isfile(backbone):
            raise ValueError(f"the refiner stands on {backbone}, which is not there yet: plan it when it is")
    return replace(run, settings={**settings, "dry_run": "True"})


def _is_plain(name: str, value: Any) -> bool:
    """Whether an overlay sets a value, and does not take it from weights or build it."""
    is_expression = isinstance(value, str) and value.startswith(("$", "@"))
    return not (name.startswith(("stack_", "+")) or is_expression or isinstance(value, dict))


def _typed(value: Any) -> str:
    """A value as it is typed for MONAI, which drops a plain None."""
    if isinstance(value, str):
        return value
    return "$None" if value is None else str(value).replace(" ", "")
