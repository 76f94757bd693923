"""The kinds of networks that a card can describe, and how each is built."""

from __future__ import annotations

import inspect
from typing import Any, Callable

KINDS: dict[str, Callable[..., Any]] = {}
_OF_BACKBONE = ("in_channels", "num_predictions")  # informational: what the backbone has


def kind(name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Registers what builds a kind of network, from plain numbers and words and `num_train_timesteps`."""

    def register(build: Callable[..., Any]) -> Callable[..., Any]:
        KINDS[name] = build
        return build

    return register


def kind_of(settings: dict) -> str:
    """One of `KINDS`; older settings do not name it."""
    return settings.get("kind", "high_resolution" if "backbone" in settings else "prdit")


def build_network(num_train_timesteps: int = 1000, **settings: Any) -> Any:
    """Builds what the settings of a card describe, chains of any length included.

    Raises:
        ValueError: in one line, when the kind is unknown, or see its builder.
    """
    name = kind_of(settings)
    if name not in KINDS:
        raise ValueError(f"weights of the kind {name}, which this bundle does not know (but {', '.join(KINDS)})")
    leave_out = {"kind", *(_OF_BACKBONE if "backbone" in settings else ())}
    given = {setting: value for setting, value in settings.items() if setting not in leave_out}
    return KINDS[name](**given, num_train_timesteps=num_train_timesteps)


def override_settings(settings: dict, overrides: dict) -> dict:
    """Settings with others that change no weight, at each level of a chain whose kind has them."""
    known = inspect.signature(KINDS[kind_of(settings)]).parameters if kind_of(settings) in KINDS else {}
    result = {**settings, **{name: value for name, value in overrides.items() if name in known}}
    if "backbone" in settings:
        result["backbone"] = override_settings(settings["backbone"], overrides)
    return result
