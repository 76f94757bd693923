"""score.html: one file with everything in it, that opens from disk without a network. What readers typed is escaped."""

from __future__ import annotations

from functools import lru_cache
from html import escape
from pathlib import Path
from typing import Any, Mapping, Optional, Sequence

import numpy as np

from ..evaluation.page import STYLE, data_uri, minus
from .answers import QUESTIONS
from .blinding import read_volume_script
from .score_figures import interval_plot, marked_picture, roc_colours, roc_plot
from .statistics import SHARES

SCORE_MARK = "<title>Reader study of generated CT</title>"
MAX_PICTURES = 200
POOLED = "all readers"
GRADES = ("#B2182B", "#EF8A62", "#92C5DE", "#2166AC")  # 1 to 4, safe for colour blindness
WORDS = {"real": "real", "generated": "synthetic"}
_STYLE = """
thead th:first-child { width: auto; } td.text { white-space: normal; overflow-wrap: anywhere; }
.bar { display: flex; width: 170px; height: 1.15em; border-radius: 2px; overflow: hidden; margin-top: .2em; }
.bar span { color: #fff; font-size: .72rem; text-align: center; line-height: 1.6em; min-width: 1px; }
.bar span { text-shadow: 0 0 2px rgba(0, 0, 0, .7); }
.key i { display: inline-block; width: 1em; height: .8em; margin-right: .35em; border-radius: 2px; }
.marks { display: grid; grid-template-columns: repeat(auto-fill, minmax(230px, 1fr)); gap: 1.2rem; margin: 1rem 0; }
.marks img { width: 100%; background: #000; display: block; } .marks figcaption { overflow-wrap: anywhere; }
.roc { max-width: 460px; } .figures { display: grid; grid-template-columns: 2fr 3fr; gap: 1.6rem; align-items: start; }
.wrong { color: #a40000; }
@media (max-width: 760px) { .figures { grid-template-columns: 1fr; } }
"""


def score_html(results: Mapping[str, Any], study_dir: Path) -> str:
    """The whole page.

    Args:
        results: what score.json holds.
        study_dir: folder of the readers' folders, for pictures.
    """
    parts = [
        _head(results),
        _detection(results),
        _agreement(results),
        _questions(results),
        _time(results),
        _marks(results, study_dir),
        _comments(results),
        _cases(results),
        _methods(results),
    ]
    body = "\n".join(parts)
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">{SCORE_MARK}<meta name="viewport" '
        f'content="width=device-width"><style>{STYLE}{_STYLE}</style></head><body>\n{body}\n</body></html>\n'
    )


def _head(results: Mapping[str, Any]) -> str:
    counts, pooled, readers = results["num_cases"], results["pooled"], results["readers"]
    auc = pooled["auc"]
    verdict = _against_chance(auc)
    notes = "".join(f"<p>{escape(note)}.</p>" for note in results["notes"])
    real = "computer phantoms in the place of real cases" if results["real"] == "phantoms" else "real"
    return (
        f"<h1>Reader study: {escape(results['title'])}</h1><p>{_count(len(readers), 'reader')}, {sum(counts.values())} cases: "
        f"{counts['real']} {real}, {counts['generated']} synthetic. Study {escape(results['key_of_study'])}, made "
        f"{escape(results['made'][:10])}.</p><p>{verdict} Readers were right in <b>{_percent(pooled['accuracy'], False)}</b> of "
        f"{pooled['accuracy']['total']} readings; the mean area under their ROC curves is <b>{_plain(auc)}</b> (0.5 is guessing, "
        "1 is telling all apart).</p>" + (f'<div class="notes">{notes}</div>' if notes else "")
    )


def _against_chance(auc: Mapping[str, Any]) -> str:
    if auc["low"] is None or auc["low"] <= 0.5 <= auc["high"]:
        return "<b>Whether the readers can tell real from synthetic is open</b>: the interval includes guessing."
    how = "better" if auc["low"] > 0.5 else "worse"
    return f"<b>The readers tell real from synthetic {how} than by guessing.</b>"


def _detection(results: Mapping[str, Any]) -> str:
    readers, pooled = results["readers"], results["pooled"]
    heads = "".join(
        f"<th>{text}</th>"
        for text in (
            "",
            "accuracy",
            "sensitivity<br><small>synthetic called synthetic</small>",
            "specificity<br><small>real called real</small>",
            "AUC",
            "p<br><small>against guessing</small>",
        )
    )
    rows = ""
    for name, one in readers.items():
        cells = "".join(f"<td>{_percent(one[share])}</td>" for share in SHARES)
        rows += (
            f"<tr><th>{escape(name)}</th>{cells}<td>{_plain(one['auc'])}</td><td>{_p_value(one['p_value'])}</td></tr>"
        )
    cells = "".join(f"<td>{_percent(pooled[share])}</td>" for share in SHARES)
    rows += f'<tr class="group"><th colspan="6">{POOLED}</th></tr><tr><th>all readings<br><small>exact interval, as if they '
    rows += f"were independent</small></th>{cells}<td></td><td></td></tr>"
    cells = "".join(f"<td>{_percent({**pooled['bootstrap'][share]})}</td>" for share in SHARES)
    rows += f"<tr><th>the same<br><small>bootstrap over cases and readers</small></th>{cells}<td>{_plain(pooled['auc'])}</td>"
    rows += "<td></td></tr>"
    curves = {name: one["roc"] for name, one in readers.items()}
    if len(readers) > 1:
        curves = {**curves, POOLED: pooled["roc"]}
    keys = "".join(
        f'<span class="key"><span style="background:{colour}"></span>{escape(name)}</span>'
        for name, colour in roc_colours(list(curves), POOLED).items()
    )
    areas = {**{name: one["auc"] for name, one in readers.items()}, f"{POOLED}, mean": pooled["auc"]}
    shares = {**{name: one["accuracy"] for name, one in readers.items()}, POOLED: pooled["bootstrap"]["accuracy"]}
    return (
        "<h2>Real or synthetic?</h2><p>Synthetic is the positive class. Square brackets are 95 % intervals. Where readers "
        "cannot tell, accuracy is near 50 % and AUC near 0.5.</p>"
        f'<div class="wide"><table><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table></div>'
        f'<p class="legend">{keys}</p><div class="figures"><figure class="roc">{roc_plot(curves, POOLED)}<figcaption>ROC curves of '
        "verdict and confidence as one scale of ten steps, from surely real to surely synthetic"
        + (f"; “{POOLED}” puts all readings together" if len(readers) > 1 else "")
        + f". Dashed: guessing.</figcaption></figure><div><figure>{interval_plot(areas, 'area under the ROC curve')}<figcaption>"
        f"95 % bootstrap intervals.</figcaption></figure><figure>{interval_plot(shares, 'accuracy')}<figcaption>95 % intervals: "
        "exact for a reader, bootstrap over cases and readers for all.</figcaption></figure></div></div>"
    )


def _agreement(results: Mapping[str, Any]) -> str:
    agreement = results["agreement"]
    if not agreement["pairs"]:
        return "<h2>Agreement of the readers</h2><p>One reader agrees with nobody else.</p>"
    rows = "".join(
        f"<tr><th>{escape(pair['readers'][0])} and {escape(pair['readers'][1])}</th><td>{_plain(pair['kappa'])}</td></tr>"
        for pair in agreement["pairs"]
    )
    return (
        "<h2>Agreement of the readers</h2><p>Kappa of the verdicts: 1 is full agreement, 0 what chance brings. Readers who all "
        "guess agree by chance alone, so that a low kappa is no fault where AUC is near 0.5.</p><table><thead><tr><th></th>"
        f"<th>kappa</th></tr></thead><tbody><tr><th>{POOLED} (Fleiss), {agreement['num_cases']} cases that all judged</th><td>"
        f"{_plain(agreement['fleiss'])}</td></tr><tr class=\"group\"><th colspan=\"2\">two readers (Cohen)</th></tr>{rows}</tbody>"
        "</table>"
    )


def _questions(results: Mapping[str, Any]) -> str:
    rows = ""
    for name, title in QUESTIONS.items():
        one = results["questions"][name]
        cells = "".join(f"<td>{_optional(one[kind]['mean'])}{_bar(one[kind]['counts'])}</td>" for kind in WORDS)
        difference = _signed(one["difference"])
        rows += f"<tr><th>{escape(title)}</th>{cells}<td>{difference}</td><td>{_p_value(one['p_value'])}</td></tr>"
    keys = "".join(f'<span class="key"><i style="background:{c}"></i>{g}</span>' for g, c in enumerate(GRADES, 1))
    return (
        "<h2>Scores</h2><p>From 1, worst, to 4, best: mean, and how often each was given. The difference is synthetic less real, "
        "of the mean scores of cases, with its interval over cases and readers; p by permutation of cases, for one question, "
        f'not corrected for {len(QUESTIONS)}.</p><p class="legend">{keys}</p><table><thead><tr><th></th><th>real</th>'
        f"<th>synthetic</th><th>difference</th><th>p</th></tr></thead><tbody>{rows}</tbody></table>"
    )


def _bar(counts: Sequence[int]) -> str:
    total = sum(counts)
    parts = "".join(
        f'<span style="width:{100 * count / total:.2f}%;background:{colour}" title="{grade}: {count}">'
        f"{count if count / total > 0.08 else ''}</span>"
        for grade, (count, colour) in enumerate(zip(counts, GRADES), 1)
        if count
    )
    return f'<div class="bar">{parts}</div>' if total else ""


def _time(results: Mapping[str, Any]) -> str:
    rows = ""
    for name, one in results["readers"].items():
        seconds = one["seconds"]
        low, high = seconds["quartiles"]
        middle = (
            "–"
            if low is None
            else f"{_duration(seconds['median'])} <small>({_duration(low)} to {_duration(high)})</small>"
        )
        cells = "".join(f"<td>{_duration(seconds[kind])}</td>" for kind in WORDS)
        rows += (
            f"<tr><th>{escape(name)}</th><td>{middle}</td>{cells}<td>{_duration(seconds['total'])}</td>"
            f"<td>{_optional(one['confidence'])}</td><td>{escape((one['submitted'] or 'not submitted')[:16].replace('T', ' '))}</td></tr>"
        )
    return (
        "<h2>Reading time and confidence</h2><table><thead><tr><th></th><th>per case<br><small>median (quartiles)</small></th>"
        "<th>real<br><small>median</small></th><th>synthetic<br><small>median</small></th><th>in all</th><th>confidence<br><small>"
        f"mean, 1 to 5</small></th><th>submitted</th></tr></thead><tbody>{rows}</tbody></table>"
    )


def _marks(results: Mapping[str, Any], study_dir: Path) -> str:
    if not results["marks"]:
        return "<h2>Marked locations</h2><p>No reader marked a location.</p>"

    @lru_cache(maxsize=2)
    def volume(reader: str, case: str) -> Optional[tuple[np.ndarray, dict[str, Any]]]:
        try:
            return read_volume_script(study_dir / reader / "cases" / f"{case}.js")
        except (OSError, ValueError):
            return None

    figures = []
    for number, mark in enumerate(results["marks"]):
        found = volume(mark["reader"], mark["case"]) if number < MAX_PICTURES else None
        picture = _mark_picture(mark, found, results["settings"]["window"])
        note = f": {escape(mark['note'])}" if mark["note"] else ""
        figures.append(
            f"<figure>{picture}<figcaption><b>{WORDS[mark['set']]}</b>, called {escape(str(mark['verdict']))} by "
            f"{escape(mark['reader'])}{note}<br><small>{escape(mark['file'])}, {mark['plane']}, voxel "
            f"{', '.join(map(str, mark['index']))}</small></figcaption></figure>"
        )
    lacking = sum("<img" not in figure for figure in figures)
    why = (
        f" {lacking} of them have no picture: the first {MAX_PICTURES} have, where study_dir holds the case."
        if lacking
        else ""
    )
    low, high = results["settings"]["window"]
    return (
        f"<h2>Marked locations</h2><p>What the readers pointed at, {minus(low)} to {minus(high)} HU; the patient's right is on the "
        f'left of the picture, anterior on top (axial) or left (sagittal).{why}</p><div class="marks">{"".join(figures)}</div>'
    )


def _mark_picture(
    mark: Mapping[str, Any], found: Optional[tuple[np.ndarray, dict[str, Any]]], window: Sequence[float]
) -> str:
    if found is None:
        return ""
    picture = marked_picture(found[0], found[1]["spacing"], mark["index"], mark["plane"], window)
    return f'<img src="{data_uri(picture)}" alt="{mark["plane"]} slice with a mark">'


def _comments(results: Mapping[str, Any]) -> str:
    if not results["comments"]:
        return ""
    rows = "".join(
        f"<tr><td>{WORDS[one['set']]}</td><td>{escape(str(one['verdict']))}</td><td>{escape(one['reader'])}</td>"
        f'<td class="text">{escape(one["file"])}</td><td class="text">{escape(one["comment"])}</td></tr>'
        for one in results["comments"]
    )
    return (
        "<h2>Comments</h2><table><thead><tr><th>case is</th><th>called</th><th>reader</th><th>file</th><th>comment</th></tr></thead>"
        f"<tbody>{rows}</tbody></table>"
    )


def _cases(results: Mapping[str, Any]) -> str:
    readers = list(results["readers"])
    heads = "".join(f"<th>{escape(name)}</th>" for name in readers)
    rows, kind = "", None
    for case in results["cases"]:
        if case["set"] != kind:
            kind = case["set"]
            rows += f'<tr class="group"><th colspan="{len(readers) + 3}">{WORDS[kind]}</th></tr>'
        cells = "".join(_rating(case["ratings"][name], kind == "generated") for name in readers)
        means = "".join(f"<td>{_optional(case[name])}</td>" for name in ("mean_rating", "realism"))
        rows += f'<tr><td class="text">{escape(case["file"])}</td>{cells}{means}</tr>'
    return (
        "<h2>Cases</h2><p>Verdict and confidence of each reader: 5 is surely synthetic, −5 surely real; wrong ones are red. Those "
        f'that look most synthetic come first.</p><div class="wide"><table><thead><tr><th>file</th>{heads}<th>mean</th><th>realism'
        f"<br><small>mean, 1 to 4</small></th></tr></thead><tbody>{rows}</tbody></table></div>"
    )


def _rating(rating: Optional[int], synthetic: bool) -> str:
    if rating is None:
        return "<td>–</td>"
    wrong = ' class="wrong"' if (rating > 0) != synthetic else ""
    return f"<td{wrong}>{minus(rating)}</td>"


def _methods(results: Mapping[str, Any]) -> str:
    settings = results["settings"]
    steps = settings["steps"]
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    spacing = " × ".join(f"{length:.3g}" for length in steps["spacing_mm"])
    blur = f"smoothed by a Gaussian of {steps['blur']:g} voxels, " if steps["blur"] else ""
    table = "cleared of what lies outside the body, " if steps["remove_table"] else ""
    return (
        f"<h2>How it was computed</h2><p>All cases were brought to {' × '.join(map(str, steps['grid']))} voxels of {spacing} mm, "
        f"{table}clipped to {minus(steps['hu_window'][0])} to {minus(steps['hu_window'][1])} HU, {blur}in an order of its own for "
        "each reader. Readers saw no name, date or header.</p><p>Intervals of shares are exact (Clopper and Pearson); p against "
        "guessing is the two-sided exact binomial test. All readings together are not independent, since readers share cases and "
        "cases share readers: the bootstrap, which draws cases within their kind and readers, with replacement, allows for that. "
        "AUC is the probability that a synthetic case is rated above a real one, ties count half; that of all readers is the mean "
        f"of theirs. {settings['num_bootstrap']:,} draws, percentile intervals, seed {settings['seed']}. Kappas: Fleiss (1971), "
        f'Cohen (1960), intervals over cases.</p><p>{escape(versions)}.</p><p class="quiet">For research only, not for '
        "diagnosis. The same numbers, with more digits, are in score.json.</p>"
    )


def _percent(estimate: Mapping[str, Any], with_counts: bool = True) -> str:
    if estimate["value"] is None:
        return f"<small>{escape(estimate['note'])}</small>"
    interval = ""
    if estimate["low"] is not None:
        interval = f" <small>[{100 * estimate['low']:.0f}, {100 * estimate['high']:.0f}]</small>"
    counts = (
        f"<br><small>{estimate['count']} of {estimate['total']}</small>" if with_counts and "count" in estimate else ""
    )
    return f"{100 * estimate['value']:.0f} %{interval}{counts}"


def _plain(estimate: Mapping[str, Any]) -> str:
    if estimate["value"] is None:
        return f"<small>{escape(estimate['note'])}</small>"
    text = f"{estimate['value']:.2f}"
    if estimate["low"] is not None:
        text += f" <small>[{estimate['low']:.2f}, {estimate['high']:.2f}]</small>"
    note = f"<br><small>{escape(estimate['note'])}</small>" if estimate["note"] else ""
    return text.replace("-", "−") + note


def _signed(estimate: Mapping[str, Any]) -> str:
    text = _plain(estimate)
    return f"+{text}" if (estimate["value"] or 0) > 0 else text


def _p_value(value: Optional[float]) -> str:
    if value is None:
        return "–"
    return "&lt; 0.001" if value < 0.001 else f"{value:.3f}"


def _optional(value: Optional[float]) -> str:
    return "–" if value is None else f"{value:.1f}".replace("-", "−")


def _duration(seconds: Optional[float]) -> str:
    if seconds is None:
        return "–"
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


def _count(number: int, word: str) -> str:
    return f"{number} {word}" if number == 1 else f"{number} {word}s"
