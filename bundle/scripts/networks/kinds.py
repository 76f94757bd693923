"""The kinds of networks that a card can describe, and how each is built."""

from __future__ import annotations

import inspect
from typing import Any, Callable

KINDS: dict[str, Callable[..., Any]] = {}
CHANGE_NO_WEIGHT = {"attention": "auto", "chunk_tokens": 0, "activation_checkpointing": False}  # settings of a network
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


def _takes(settings: dict, name: str) -> bool:
    """Whether the builder of this kind has a setting."""
    return kind_of(settings) in KINDS and name in inspect.signature(KINDS[kind_of(settings)]).parameters


def takes_setting(settings: dict, name: str) -> bool:
    """Whether a network, or one below it in a chain, has a setting."""
    return _takes(settings, name) or "backbone" in settings and takes_setting(settings["backbone"], name)


def override_settings(settings: dict, overrides: dict) -> dict:
    """Settings with others that change no weight, at each level of a chain whose kind has them."""
    result = {**settings, **{name: value for name, value in overrides.items() if _takes(settings, name)}}
    if "backbone" in settings:
        result["backbone"] = override_settings(settings["backbone"], overrides)
    return result
