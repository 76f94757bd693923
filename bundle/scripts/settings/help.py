"""`--help`: the settings of a stack of config files, each with its default."""

from __future__ import annotations

import re
import shutil
import textwrap
from pathlib import Path
from typing import Any, Mapping

from ..words import as_typed
from .description import Setting

NAME_WIDTH = 28
_ROOT = Path(__file__).resolve().parents[2]  # what bundle_root is in the configs


def print_help(config: Mapping[str, Any], described: Mapping[str, Setting]) -> None:
    """Prints a setting a line: name, default, what it does, its unit and what is allowed."""
    width = max(80, shutil.get_terminal_size().columns)
    for name, setting in described.items():
        unit = f" [{setting.unit}]" if setting.unit else ""
        text = f"{_default(config, name)}{unit}: {setting.sentence} ({setting.kind.words})"
        line = f"--{name}".ljust(NAME_WIDTH) + text
        print(textwrap.fill(line, width, subsequent_indent=" " * NAME_WIDTH, break_on_hyphens=False))


def _default(config: Mapping[str, Any], name: str) -> str:
    """The default as YAML has it; an expression is evaluated, where plain settings are all that it needs."""
    value: Any = config[name]
    if isinstance(value, str) and value.startswith("@"):
        return f"as {value[1:]}"
    if isinstance(value, dict) and "_target_" in value:
        return "made from other settings"
    if isinstance(value, str) and value.startswith("$"):
        plain = {one: text for one, text in config.items() if isinstance(text, str) and not text.startswith(("$", "@"))}
        try:
            value = eval(
                re.sub(r"@(\w+)", r"\1", value[1:]), {"__builtins__": {}}, {**plain, "bundle_root": str(_ROOT)}
            )
        except (NameError, TypeError):
            return "automatic"
    return as_typed(value)
