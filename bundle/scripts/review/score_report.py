"""score.html: one file with everything in it, that opens from disk without a network. What readers typed is escaped."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any, Iterator, Mapping, Optional

import numpy as np

from ..pages import minus, render
from .answers import QUESTIONS
from .blinding import read_volume_script
from .score_figures import interval_plot, marked_picture, roc_colours, roc_plot
from .statistics import SHARES

SCORE_MARK = "<title>Reader study of generated CT</title>"
MAX_PICTURES = 200
POOLED = "all readers"
GRADES = {1: "#B2182B", 2: "#EF8A62", 3: "#92C5DE", 4: "#2166AC"}  # safe for colour blindness
WORDS = {"real": "real", "generated": "synthetic"}


def score_html(results: Mapping[str, Any], study_dir: Path) -> str:
    """The whole page.

    Args:
        results: what score.json holds.
        study_dir: folder of the readers' folders, for pictures.
    """
    readers, pooled = results["readers"], results["pooled"]
    curves = {name: one["roc"] for name, one in readers.items()}
    if len(readers) > 1:
        curves[POOLED] = pooled["roc"]
    areas = {**{name: one["auc"] for name, one in readers.items()}, f"{POOLED}, mean": pooled["auc"]}
    shares = {**{name: one["accuracy"] for name, one in readers.items()}, POOLED: pooled["bootstrap"]["accuracy"]}
    return render(
        "review/score.html",
        results=results,
        notes_told=[f"{note}." for note in results["notes"]],
        shares=SHARES,
        questions=QUESTIONS,
        words=WORDS,
        grades=GRADES,
        POOLED=POOLED,
        two_digits=lambda value: minus(value, ".2f"),
        colours=roc_colours(list(curves), POOLED),
        roc=roc_plot(curves, POOLED),
        areas=interval_plot(areas, "area under the ROC curve"),
        accuracies=interval_plot(shares, "accuracy"),
        marks=list(_marks(results, study_dir)),
        max_pictures=MAX_PICTURES,
    )


def _marks(results: Mapping[str, Any], study_dir: Path) -> Iterator[dict[str, Any]]:
    """Marked locations, each with the 'picture' of its slice, or None."""

    @lru_cache(maxsize=2)
    def volume(reader: str, case: str) -> Optional[tuple[np.ndarray, dict[str, Any]]]:
        try:
            return read_volume_script(study_dir / reader / "cases" / f"{case}.js")
        except (OSError, ValueError):
            return None

    for number, mark in enumerate(results["marks"]):
        found, picture = volume(mark["reader"], mark["case"]) if number < MAX_PICTURES else None, None
        if found is not None:
            window = results["settings"]["window"]
            picture = marked_picture(found[0], found[1]["spacing"], mark["index"], mark["plane"], window)
        yield {**mark, "picture": picture}
