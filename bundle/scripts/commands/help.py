"""`prdit COMMAND --help`: what it takes by position, prdit's own flags, and settings."""

from __future__ import annotations

from ..settings.help import NAME_WIDTH, print_help
from ..settings.reach import described_settings, reached
from .runs import added_overlays
from .stacks import in_order, merged, overlays, recipes
from .table import Command
from .typed import Typed


def print_command(name: str, command: Command, typed: Typed) -> None:
    """Prints the command, its most important settings, and with `--help all` the others."""
    every = typed.settings.pop("help", typed.settings.pop("h", "")) == "all"
    positions = " ".join(command.positions.values())
    print(f"prdit {name} {positions}   {command.sentence}")
    stack = in_order(command.stack, added_overlays(command.stack[0], typed))
    config = {**merged(tuple(stack)), **command.defaults}
    described = {one: setting for one, setting in described_settings(config).items() if one in reached(config)}
    first = [one for one in (*command.positions, *command.main) if one in described]
    chosen = [*first, *(one for one in described if one not in first)] if every or not command.main else first
    print_help(config, {one: described[one] for one in chosen})
    for line in _own(command.stack[0]):
        print(line)
    if len(chosen) < len(described):
        print(f"{len(described) - len(chosen)} more with --help all")


def _own(base: str) -> list[str]:
    """prdit's own flags."""
    flags = (
        {"stage": "1 or 2: that stage alone", "up": "2: a refiner of twice the grid, too"} if base == "train" else {}
    )
    if recipes(base):
        flags["recipe"] = "settings of an experiment: " + ", ".join(recipes(base))
    if others := [name for name in overlays(base) if name not in (*recipes(base), "multi_gpu")]:
        flags["with"] = "overlays, such as a,b: " + ", ".join(others)
    if "multi_gpu" in overlays(base):
        flags["gpus"] = "processes, one per GPU, started by torchrun"
    flags |= {"show": "prints MONAI's command and runs nothing", "verbose": "MONAI's own messages, too"}
    return [f"--{name}".ljust(NAME_WIDTH) + text for name, text in flags.items()]
