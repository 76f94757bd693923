"""What a merged config is set by, and what of it is used; it is read as it stands, so that MONAI is not needed."""

from __future__ import annotations

import re
from typing import Any, Iterable, Mapping

from ..stack import MARK
from .description import SETTINGS, Setting

RUN_IDS = ("initialize", "run", "training", "finalize")
_REFERENCE = re.compile(r"@(\w+)")


def described_settings(config: Mapping[str, Any]) -> dict[str, Setting]:
    """What settings a merged config has; later files of the stack replace what earlier ones say."""
    described: dict[str, Setting] = {}
    for name in config:
        if name.startswith(MARK):
            described |= SETTINGS.get(name.removeprefix(MARK), {})
    return {name: setting for name, setting in described.items() if name in config}


def reached(config: Mapping[str, Any], start: Iterable[str] = RUN_IDS) -> set[str]:
    """Names at the top of a config that its run, or another start, refers to, over any number of others; itself too."""
    found: set[str] = set()
    waiting = [name for name in start if name in config]
    while waiting:
        name = waiting.pop()
        if name not in found and name in config:
            found.add(name)
            waiting += _references(config[name])
    return found


def _references(value: Any) -> list[str]:
    if isinstance(value, Mapping):
        return [name for one in value.values() for name in _references(one)]
    if isinstance(value, (list, tuple)):
        return [name for one in value for name in _references(one)]
    if not isinstance(value, str) or not value.startswith(("$", "@")):
        return []
    return _REFERENCE.findall(value)


def is_reference(value: Any) -> bool:
    """Whether MONAI has to evaluate a value, or a part of it, first."""
    if isinstance(value, Mapping):
        return any(map(is_reference, value.values()))
    if isinstance(value, (list, tuple)):
        return any(map(is_reference, value))
    return isinstance(value, str) and value.startswith(("$", "@", "%"))


def require_one(typed: Mapping[str, Any], described: Mapping[str, Setting]) -> None:
    """Refuses a typed setting beside a typed one that leaves it no effect; ValueError in one line."""
    given = [name for name, value in typed.items() if name in described and value not in (None, "$None")]
    for name in given:
        for other in (one for one in described[name].not_beside if one in given):
            raise ValueError(f"{name} has no effect beside {other}; leave one of them out")


def require_effect(settings: Iterable[str], *configs: Mapping[str, Any]) -> None:
    """Refuses settings that these configs have but do not use; ValueError in one line."""
    marks = dict.fromkeys(name for config in configs for name in config if name.startswith(MARK))
    files, used = [f"{name.removeprefix(MARK)}.yaml" for name in marks], set().union(*map(reached, configs))
    for name in settings:
        first = name.replace("#", "::").split("::")[0]
        if files and first not in used:
            raise ValueError(f"{first} has no effect with {' + '.join(files)}; leave it out")
