"""How good a set of volumes is, in one sentence that claims no more than was measured."""

from __future__ import annotations

from typing import Any, Mapping, Optional

from ..metrics import ASTRA, FEATURES
from ..pages import formatted
from .comparison import FEW_VOLUMES, is_beyond_chance
from .set_metrics import EXCESS_LIKENESS, LIKENESS
from .volume_sets import REFERENCE

AS_REAL = 1.5  # times what halves of the real volumes have between them: no more than chance makes of it
_HU, _BANDS, _SPECTRUM, _FID = "HU-Wasserstein (HU)", "HU-Wasserstein, ", "log10 spectrum error", "FID"


def headline(name: str, results: Mapping[str, Any]) -> str:
    """What counts most about a generator: HU, spectrum, FID of trained features, diversity, copies, and how many volumes.

    Args:
        name: of the generator.
        results: what metrics.json holds.
    """
    found, floor = results["distances"][name], results["floor"]["distances"]
    real = reference_of(results)
    near = [_compared("HU", _HU, " HU", found, floor), _compared("spectrum", _SPECTRUM, "", found, floor)]
    near += [
        _compared(metric, metric, "", found, floor)
        for entry, metric in ((FEATURES, _FID), (ASTRA, f"{_FID}, Astra"))
        if results.get(entry, {}).get("trained")
    ]
    as_real = [part for part in near if part and " off by " not in part]
    parts = [f"{' and '.join(as_real)} as in the {real}" if as_real else ""]
    parts += [part for part in near if part not in as_real] + [_worst_band(found, floor)]
    parts += [_diversity(name, results, real), _copies(results["memorisation"].get(name))]
    count = min(results["sets"][one]["num_volumes"] for one in (name, "real"))
    text = ", ".join(part for part in parts if part) or "nothing that a sentence can say was measured"
    few = f" {count} volume{'' if count == 1 else 's'} only: take {FEW_VOLUMES} or more." if count < FEW_VOLUMES else ""
    return f"In short, {name}: {text}.{few}"


def reference_of(results: Mapping[str, Any]) -> str:
    """What generators are compared with, in words: phantoms are not called real."""
    return "phantoms" if results["sets"]["real"]["phantoms"] else "real volumes"


def shown_name(name: str, results: Mapping[str, Any]) -> str:
    """The name of a set, as a report has it."""
    return REFERENCE if name == "real" and results["sets"]["real"]["phantoms"] else name


def _ratio(metric: str, found: Mapping[str, Any], floor: Mapping[str, Any]) -> Optional[float]:
    """A distance over what halves of the real volumes have between them; None where either is not known."""
    ours, theirs = (side.get(metric, {}).get("value") for side in (found, floor))
    return ours / theirs if ours is not None and theirs else None


def _compared(what: str, metric: str, unit: str, found: Mapping[str, Any], floor: Mapping[str, Any]) -> str:
    """`what`, with how far it is off where that is beyond chance; nothing where it was not measured."""
    ratio = _ratio(metric, found, floor)
    if ratio is None:
        return ""
    if ratio <= AS_REAL:
        return what
    return f"{what} off by {formatted(found[metric]['value'])}{unit} (floor {formatted(floor[metric]['value'])})"


def _worst_band(found: Mapping[str, Any], floor: Mapping[str, Any]) -> str:
    """The band of HU that is worst against its floor; nothing where all are as in the real volumes."""
    ratios = {metric: _ratio(metric, found, floor) for metric in found if metric.startswith(_BANDS)}
    worst = max((metric for metric in ratios if ratios[metric]), key=lambda metric: ratios[metric] or 0, default=None)
    if worst is None or (ratios[worst] or 0) <= AS_REAL:
        return ""
    band = worst.removeprefix(_BANDS).removesuffix(" (HU)")
    return _compared(f"{band} most", worst, " HU", found, floor)


def _diversity(name: str, results: Mapping[str, Any], real: str) -> str:
    excess = results["distances"][name].get(EXCESS_LIKENESS)
    if excess is None or excess["value"] is None:
        return ""
    if not is_beyond_chance(excess):
        return f"as varied as the {real}"
    values = [results["properties"][one].get(LIKENESS, {}).get("value") for one in (name, "real")]
    facts = f" (likeness {formatted(values[0])}, {real} {formatted(values[1])})" if None not in values else ""
    return f"too alike{facts}"


def _copies(found: Optional[Mapping[str, Any]]) -> str:
    if not found or "flagged" not in found:
        return ""
    count = len(found["flagged"])
    return f"{count} near {'copy' if count == 1 else 'copies'} of training volumes" if count else "no near copies"
