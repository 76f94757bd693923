"""`--help`: the settings of a stack of config files, each with its default."""

from __future__ import annotations

import shutil
import textwrap
from typing import Any, Mapping

from monai.bundle import ConfigParser

from .description import Setting

NAME_WIDTH = 28


def print_help(parser: ConfigParser, described: Mapping[str, Setting]) -> None:
    """Prints a setting a line: name, default, what it does, its unit and what is allowed."""
    width = max(80, shutil.get_terminal_size().columns)
    for name, setting in described.items():
        unit = f" [{setting.unit}]" if setting.unit else ""
        text = f"{_default(parser, name)}{unit}: {setting.sentence} ({setting.kind.words})"
        line = f"--{name}".ljust(NAME_WIDTH) + text
        print(textwrap.fill(line, width, subsequent_indent=" " * NAME_WIDTH, break_on_hyphens=False))


def _default(parser: ConfigParser, name: str) -> str:
    """The default as YAML has it; a reference is resolved, where nothing has to be built for it."""
    value: Any = parser[name]
    if isinstance(value, str) and value.startswith("@"):
        return f"as {value[1:]}"
    if isinstance(value, dict) and "_target_" in value:
        return "made from other settings"
    if isinstance(value, str) and value.startswith("$"):
        try:
            value = parser.get_parsed_content(name)
        except Exception:  # of settings that are still to be given
            return value[1:]
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
