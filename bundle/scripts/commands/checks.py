"""What is wrong with the values that were typed, told before the libraries are loaded that a run needs."""

from __future__ import annotations

from typing import Any, Sequence

from fire.parser import DefaultParseValue

from ..settings.kinds import DEVICE, Kind
from ..settings.reach import described_settings, is_reference, require_one
from .runs import NOTHING, Run
from .stacks import merged


def check_values(runs: Sequence[Run]) -> None:
    """Checks all values, which each run does again with what the config files say; devices are PyTorch's to know.

    Raises:
        ValueError: in one line that names the setting.
    """
    for number, one in enumerate(runs):
        described = described_settings(merged(one.stack))
        for name, text in one.settings.items():
            if name not in described or described[name].kind is DEVICE:
                continue
            if name == "backbone_ckpt" and number:  # which the run before will make
                continue
            if text.startswith("%"):  # MONAI looks it up before any check of ours
                raise ValueError(
                    f"{name} {text}: MONAI takes what follows % for a place in a config file; write ./{text}"
                )
            value = _value(text, described[name].kind)
            if not is_reference(value):
                described[name].kind.checked(name, value)
        require_one({name: NOTHING.get(text, text) for name, text in one.settings.items()}, described)


def _value(text: str, kind: Kind) -> Any:
    """A value as MONAI's command line reads it, through Fire."""
    if text in NOTHING:
        return None
    is_many = kind.many and text.startswith(("[", "(", "{"))
    return text if kind.verbatim and not is_many and not text.startswith(("'", '"')) else DefaultParseValue(text)
