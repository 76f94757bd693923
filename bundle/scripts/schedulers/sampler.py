"""The sampler where the user names none: what the weights are made for, or else the bundle's."""

from __future__ import annotations

from typing import Any, Mapping

DEFAULTS: dict[str, Any] = {
    "num_inference_steps": 20,
    "solver": "multistep",
    "predictor_ratio": None,
    "eta": None,
    "spacing": "two_sided",
    "schedule": None,
    "random_offset": False,
}
_STEPS = ("solver", "predictor_ratio", "eta", "spacing", "schedule")  # which are made for each other


def sampler_settings(made_for: Mapping[str, Any], **asked: Any) -> dict[str, Any]:
    """All of `DEFAULTS`, as asked for, or as weights are made for, or as they are here.

    Args:
        made_for: entry 'sampling' of the weights' card: some of `DEFAULTS`, and 'schedules', see `Schedule`, by the number of
            network calls.
        asked: some of `DEFAULTS`; what is None is not asked for. Another solver than that of the weights takes nothing of
            their steps, nor their number.

    Raises:
        ValueError: in one line, when the weights are made for something unknown.
    """
    own = dict(made_for)
    schedules = own.pop("schedules", {})
    if unknown := set(own) - set(DEFAULTS):
        raise ValueError(f"'sampling' of the weights has {min(unknown)}, which is not known")
    given = {name: value for name, value in asked.items() if value is not None}
    if given.get("solver", own.get("solver")) != own.get("solver"):
        theirs = (*_STEPS, "num_inference_steps") if "solver" in own else _STEPS
        own = {name: value for name, value in own.items() if name not in theirs}
    if "eta" in given or "predictor_ratio" in given:
        own = {name: value for name, value in own.items() if name not in ("eta", "predictor_ratio")}
    result = {**DEFAULTS, **own, **given}
    if not set(_STEPS) & set(given):
        result["schedule"] = schedules.get(str(result["num_inference_steps"]), result["schedule"])
    return result
