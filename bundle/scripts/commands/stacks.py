"""Config files by name: which overlays there are, and a stack in its right order."""

from __future__ import annotations

from copy import deepcopy
from functools import lru_cache
from typing import Any, Iterable, Sequence

import yaml

from ..stack import MARK, check_order
from .table import CONFIGS
from .typed import nearest

STAGE_LAYER = 2  # up to it, an overlay says what is trained
RECIPE_LAYERS = (4, 5)  # of overlays that hold the settings of a whole experiment, and of overlays of these
PROCESSES = "multi_gpu"


@lru_cache(maxsize=None)
def content(name: str) -> dict[str, Any]:
    """A config file as it stands."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as fast
    return yaml.load((CONFIGS / f"{name}.yaml").read_text(encoding="utf-8"), loader)


@lru_cache(maxsize=None)
def marks() -> dict[str, dict[str, Any]]:
    """The mark of every config file, see `scripts.stack`."""
    return {path.stem: content(path.stem)[f"{MARK}{path.stem}"] for path in sorted(CONFIGS.glob("*.yaml"))}


def overlays(base: str) -> list[str]:
    """Names of the overlays that go on a file, on it alone or on an overlay of it."""
    found = [base]
    while new := [name for name, mark in marks().items() if name not in found and set(_over(mark)) & set(found)]:
        found += new
    return found[1:]


def recipes(base: str) -> list[str]:
    """Overlays that hold the settings of a whole experiment."""
    return [name for name in overlays(base) if marks()[name]["layer"] in RECIPE_LAYERS]


def with_bases(name: str, base: str) -> list[str]:
    """An overlay of a file, and below it the overlays of the file that it lies on."""
    over = _over(marks()[name])
    return [name] if base in over else [*with_bases(over[0], base), name]


def _over(mark: dict[str, Any]) -> list[str]:
    over = mark.get("over", [])
    return [over] if isinstance(over, str) else over


def in_order(stack: Sequence[str], added: Iterable[str]) -> list[str]:
    """A stack with overlays added, in the order in which MONAI has to merge them.

    Raises:
        ValueError: in one line, for an overlay that there is not, or that does not go with the others.
    """
    names, known = list(dict.fromkeys([*stack, *added])), overlays(stack[0])
    for name in names[1:]:
        if name not in known:
            there = f"there are {', '.join(known)}" if known else "there is none"
            raise ValueError(f"no overlay {name} for {stack[0]}.yaml{nearest(name, known) or f'; {there}'}")
    names.sort(key=lambda name: marks()[name]["layer"])
    check_order({name: marks()[name] for name in names})
    return names


@lru_cache(maxsize=None)
def merged(stack: tuple[str, ...]) -> dict[str, Any]:
    """The files of a stack as MONAI merges them: later ones replace what earlier ones say, `+` adds to a list or table."""
    config: dict[str, Any] = {}
    for part in stack:
        for name, value in deepcopy(content(part)).items():
            *path, last = name.lstrip("+").split("::")
            place = config
            for one in path:
                place = place[one]
            if name.startswith("+") and last in place:
                value = {**place[last], **value} if isinstance(value, dict) else [*place[last], *value]
            place[last] = value
    return config
