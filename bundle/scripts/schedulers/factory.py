"""The process of a checkpoint or a training run, by its name."""

from __future__ import annotations

import inspect
from typing import Any, Optional

from .process import PROCESSES, DiffusionProcess, require_one_of


def build_scheduler(process: dict, expected: Optional[str] = None, **settings: Any) -> DiffusionProcess:
    """Builds a process from what is stored about it beside the weights.

    Args:
        process: 'name', one of `PROCESSES`, and the settings that belong to the training of the weights.
        expected: the name that the run asks for; None takes what comes.
        settings: further settings of `DiffusionProcess`.

    Raises:
        ValueError: in one line, when the process is unknown or another one, or a setting is out of range.
    """
    own = dict(process)
    name = own.pop("name", None)
    require_one_of("the process", name, list(PROCESSES))
    if expected is not None and expected != name:
        raise ValueError(f"the weights were trained with the process {name}, process_name asks for {expected}")
    try:
        inspect.signature(PROCESSES[name]).bind(**own, **settings)
    except TypeError as error:
        raise ValueError(f"settings of the process {name} that this bundle does not know: {error}") from None
    return PROCESSES[name](**own, **settings)
