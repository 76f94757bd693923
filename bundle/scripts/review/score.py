"""From readers' answers and the key of a study to score.json and score.html."""

from __future__ import annotations

import platform
from dataclasses import asdict
from pathlib import Path
from typing import Any, Optional, Sequence, Union

import monai
import numpy as np
import scipy

from ..errors import require_writable
from ..files import hold, release, remove_leftovers, require_own, write_json, write_text
from ..metrics.resampling import Estimate
from ..version import VERSION
from .answers import QUESTIONS, Answers, Key, answer_files, gather, read_key
from .score_report import SCORE_MARK, score_html
from .statistics import (
    SHARES,
    Bootstrap,
    Readings,
    against_guessing,
    counts_of,
    exact_share,
    pairwise,
    percentile,
    permutation_p,
    roc_curve,
)

KEY_SUFFIX = ".key.json"
FEW_READERS = 5
KINDS = {"real": False, "generated": True}
EXTREME = "all cases are sorted alike: the bootstrap sees no spread, see the exact intervals"


class ReviewScore:
    """Scores a study.

    Args:
        answers: files that the readers' pages exported, or folders of them.
        key_file: that `ReaderStudy` wrote.
        study_dir: folder of the readers' folders; None: the key's name without .key.json.
        incomplete: 'refuse' or 'leave_out', see `gather`.
        num_bootstrap: draws of cases and readers.
        seed: of draws and permutations.
        output_dir: of score.html and score.json.

    Raises:
        ValueError: in one line, for files that do not belong together.
    """

    def __init__(
        self,
        answers: Union[str, Sequence[str]],
        key_file: str,
        study_dir: Optional[str],
        incomplete: str,
        num_bootstrap: int,
        seed: int,
        output_dir: str,
    ) -> None:
        self.key = read_key(key_file)
        self.answers = gather(answer_files([answers] if isinstance(answers, str) else answers), self.key, incomplete)
        self.study_dir = Path(study_dir if study_dir is not None else str(key_file).removesuffix(KEY_SUFFIX))
        self.num_bootstrap, self.seed = num_bootstrap, seed
        self.readings = self.answers.readings(self.key.synthetic)
        for kind, synthetic in KINDS.items():
            if not np.isfinite(self.readings.called[:, self.key.synthetic == synthetic]).any():
                raise ValueError(f"no {kind} case has a verdict and a confidence: there is nothing to score")
        self.folder = require_writable(output_dir, "output_dir")
        require_own(self.folder / "score.html", SCORE_MARK, "output_dir")
        require_own(self.folder / "score.json", '"key_of_study"', "output_dir")

    def write(self) -> None:
        """Writes both files and prints what counts most."""
        hold(self.folder, "output_dir")
        remove_leftovers(self.folder)
        results = study_results(self.answers, self.key, self.num_bootstrap, self.seed)
        write_json(self.folder / "score.json", results)
        write_text(self.folder / "score.html", score_html(results, self.study_dir))
        release(self.folder)
        print(summary(results))
        print("score.html and score.json are in", self.folder)


def study_results(answers: Answers, key: Key, num_bootstrap: int, seed: int) -> dict[str, Any]:
    """All that score.json holds."""
    readings = answers.readings(key.synthetic)
    bootstrap = Bootstrap(key.synthetic, len(answers.readers), num_bootstrap, seed)
    areas = bootstrap.areas(readings.rating)
    results = {
        "key_of_study": key.study,
        "title": key.facts["title"],
        "made": key.facts["made"],
        "real": key.facts["real"],
        "num_cases": {kind: int((key.synthetic == synthetic).sum()) for kind, synthetic in KINDS.items()},
        "readers": {
            name: {
                "submitted": answers.submitted[index],
                **_left_out(answers, index, len(key.volumes)),
                **_detection(readings.correct[index], key.synthetic),
                "auc": asdict(_area(areas[:, index])),
                "roc": roc_curve(readings.rating[index], key.synthetic),
                "confidence": _mean(answers.table("confidence")[index]),
                "seconds": _seconds(answers.table("seconds")[index], key.synthetic),
            }
            for index, name in enumerate(answers.readers)
        },
        "pooled": _pooled(readings, bootstrap, areas),
        "agreement": _agreement(answers, readings, bootstrap),
        "questions": {name: _question(answers.table(name), answers.readers, bootstrap, seed) for name in QUESTIONS},
        "cases": _cases(answers, key),
        "marks": _marks(answers, key),
        "comments": _comments(answers, key),
        "absent": [name for name in key.readers if name not in answers.readers],
        "settings": {
            "num_bootstrap": num_bootstrap,
            "seed": seed,
            "steps": key.facts["steps"],
            "window": key.facts["window"],
        },
        "versions": {
            "bundle": VERSION,
            "monai": monai.__version__,
            "scipy": scipy.__version__,
            "python": platform.python_version(),
        },
    }
    return {**results, "notes": notes_of(results, key)}


def _detection(correct: np.ndarray, synthetic: np.ndarray) -> dict[str, Any]:
    """Accuracy, sensitivity and specificity with counts, and the p-value against guessing."""
    counts = counts_of(correct, synthetic)
    shares = {
        name: {"count": count, "total": total, **asdict(exact_share(count, total))}
        for name, (count, total) in counts.items()
    }
    return {**shares, "p_value": against_guessing(*counts["accuracy"])}


def _left_out(answers: Answers, index: int, num_cases: int) -> dict[str, int]:
    row = answers.by_volume[index]
    judged = int(np.isfinite(answers.table("verdict")[index] + answers.table("confidence")[index]).sum())
    scores = sum(getattr(answer, name) is None for answer in row if answer is not None for name in QUESTIONS)
    return {"cases_left_out": num_cases - judged, "scores_left_out": scores + len(QUESTIONS) * row.count(None)}


def _area(values: np.ndarray) -> Estimate:
    return percentile(values, EXTREME if values[0] in (0, 1) else "")


def _pooled(readings: Readings, bootstrap: Bootstrap, areas: np.ndarray) -> dict[str, Any]:
    shares = bootstrap.shares(readings.correct)
    return {
        **_detection(readings.correct, readings.synthetic),
        "bootstrap": {name: asdict(percentile(shares[name])) for name in SHARES},
        "auc": asdict(_area(bootstrap.mean_over_readers(areas))),
        "roc": roc_curve(readings.rating, readings.synthetic),
    }


def _agreement(answers: Answers, readings: Readings, bootstrap: Bootstrap) -> dict[str, Any]:
    if len(answers.readers) < 2:
        none = Estimate(None, note="needs 2 readers")
        return {"num_cases": 0, "fleiss": asdict(none), "pairs": []}
    pairs = pairwise(bootstrap, answers.readers, readings.called)
    return {
        "num_cases": int(np.isfinite(readings.called).all(0).sum()),
        "fleiss": asdict(percentile(bootstrap.fleiss(readings.called))),
        "pairs": [{**pair, "kappa": asdict(pair["kappa"])} for pair in pairs],
    }


def _question(scores: np.ndarray, readers: Sequence[str], bootstrap: Bootstrap, seed: int) -> dict[str, Any]:
    of_kind = {kind: scores[:, bootstrap.synthetic == synthetic] for kind, synthetic in KINDS.items()}
    return {
        **{
            kind: {"mean": _mean(part), "counts": [int((part == grade).sum()) for grade in range(1, 5)]}
            for kind, part in of_kind.items()
        },
        "difference": asdict(percentile(bootstrap.difference(scores))),
        "p_value": permutation_p(scores, bootstrap.synthetic, seed),
        "readers": {
            name: {kind: _mean(part[index]) for kind, part in of_kind.items()} for index, name in enumerate(readers)
        },
    }


def _mean(values: np.ndarray) -> Optional[float]:
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if len(finite) else None


def _seconds(seconds: np.ndarray, synthetic: np.ndarray) -> dict[str, Any]:
    """Quartiles of all cases, medians of each kind, and the sum; None where a page kept no time."""
    found = seconds[np.isfinite(seconds)]
    low, median, high = np.quantile(found, [0.25, 0.5, 0.75]).tolist() if len(found) else [None] * 3
    medians = {}
    for kind, is_synthetic in KINDS.items():
        part = seconds[(synthetic == is_synthetic) & np.isfinite(seconds)]
        medians[kind] = float(np.median(part)) if len(part) else None
    return {"median": median, "quartiles": [low, high], "total": float(found.sum()), **medians}


def _cases(answers: Answers, key: Key) -> list[dict[str, Any]]:
    """What each volume was taken for, those that look most synthetic first."""
    rating = answers.readings(key.synthetic).rating
    rows = []
    for index, volume in enumerate(key.volumes):
        given = {n: None if np.isnan(r) else int(r) for n, r in zip(answers.readers, rating[:, index])}
        scores = {name: _mean(answers.table(name)[:, index]) for name in QUESTIONS}
        rows.append({**volume, "ratings": given, "mean_rating": _mean(rating[:, index]), **scores})
    return sorted(rows, key=lambda row: (row["set"], -6 if row["mean_rating"] is None else -row["mean_rating"]))


def _marks(answers: Answers, key: Key) -> list[dict[str, Any]]:
    names = {reader: {index: case for case, index in cases.items()} for reader, cases in key.readers.items()}
    return [
        {
            **key.volumes[index],
            "reader": reader,
            "case": names[reader][index],
            "verdict": answer.verdict,
            "index": list(mark.index),
            "plane": mark.plane,
            "note": mark.note,
        }
        for reader, index, answer in answers.each()
        for mark in answer.marks
    ]


def _comments(answers: Answers, key: Key) -> list[dict[str, Any]]:
    return [
        {**key.volumes[index], "reader": reader, "verdict": answer.verdict, "comment": answer.comment}
        for reader, index, answer in answers.each()
        if answer.comment and answer.comment.strip()
    ]


def notes_of(results: dict[str, Any], key: Key) -> list[str]:
    """What has to be said before the numbers."""
    readers = results["readers"]
    notes = list(key.facts["notes"])
    notes += [f"{name} gave no answers" for name in results["absent"]]
    notes += [
        f"{name} has not submitted: these answers may still change"
        for name in readers
        if not readers[name]["submitted"]
    ]
    for name, one in readers.items():
        if one["cases_left_out"] or one["scores_left_out"]:
            notes.append(
                f"{name}: left out are {one['cases_left_out']} of {len(key.volumes)} cases, without a verdict or confidence, and "
                f"{one['scores_left_out']} of {len(QUESTIONS) * len(key.volumes)} scores"
            )
    if len(readers) < FEW_READERS:
        notes.append(
            f"{len(readers)} readers, if not more are asked, say little about other readers: the intervals over readers are "
            "likely too narrow"
            if len(readers) > 1
            else "one reader: the intervals are over cases alone, and say nothing about other readers"
        )
    return [note[0].upper() + note[1:] for note in notes]


def summary(results: dict[str, Any]) -> str:
    """A line per reader for the terminal."""
    lines = [f"\n{'':24s} {'accuracy':22s} {'sensitivity':22s} {'specificity':22s} AUC, all with 95 % intervals"]
    for name, one in [*results["readers"].items(), ("all readings", results["pooled"])]:
        cells = [_line(one[column], 100, " %") for column in SHARES] + [_line(one["auc"], 1, "")]
        lines.append(f"{name[:24]:24s} " + " ".join(f"{cell:22s}" for cell in cells).rstrip())
    fleiss = results["agreement"]["fleiss"]
    lines.append(f"{'agreement of readers':24s} Fleiss' kappa {_line(fleiss, 1, '')}")
    return "\n".join(lines + [f"note: {note}" for note in results["notes"]])


def _line(estimate: dict[str, Any], factor: float, unit: str) -> str:
    if estimate["value"] is None:
        return estimate["note"]
    digits = 0 if unit else 2
    text = f"{factor * estimate['value']:.{digits}f}{unit}"
    if estimate["low"] is None:
        return text
    return f"{text} [{factor * estimate['low']:.{digits}f}, {factor * estimate['high']:.{digits}f}]"
