"""What became of each CT: report.csv for programs, report.html to look at; neither says who a patient is."""

from __future__ import annotations

import csv
import io
from collections import Counter
from html import escape
from pathlib import Path
from typing import Any, Sequence

from ..files import write_text
from .volume_job import PICTURE_SIZE

COLUMNS = (
    "volume patient section status reason warnings kind slices original_shape original_spacing_mm original_axes "
    "tilt_degrees original_min original_max coverage lung_ml body_width_mm"
).split()
_HU_TICKS = (-800, -400, 0, 400, 800)
_SMALL, _LARGE = (200, 70), (560, 150)  # width, height of histograms


def _axis(width: int) -> str:
    """Ticks of a histogram as the background of what follows it: drawn once, not once a volume."""
    ticks = "".join(f"<text x='{width * (hu + 1024) / 2048:.0f}' y='14'>{hu}</text>" for hu in _HU_TICKS)
    style = "font-family='sans-serif' font-size='11' fill='%2357606a' text-anchor='middle'"
    svg = f"<svg xmlns='http://www.w3.org/2000/svg' width='{width}' height='18' {style}>{ticks}</svg>"
    return f'padding-bottom: 18px; background: url("data:image/svg+xml,{svg}") bottom left no-repeat'


# Few elements a volume, and no layout of those that are not seen: thousands of volumes open at once.
_STYLE = f"""
body {{ font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 72rem; padding: 0 1rem; color: #1b1f24 }}
h1 {{ font-size: 1.5rem }} h2 {{ font-size: 1.15rem; margin-top: 2.2rem }}
table {{ border-collapse: collapse; width: 100% }}
th, td {{ text-align: left; padding: .35rem .7rem .35rem 0; vertical-align: top }}
th {{ border-bottom: 1px solid #8c959f; font-weight: 600 }} tr + tr td {{ border-top: 1px solid #d8dee4 }}
code {{ font: 13px ui-monospace, monospace }} .warning {{ color: #9a3b00 }}
dl {{ display: grid; grid-template-columns: max-content auto; gap: 0 .9rem; margin: .3rem 0 }}
dt {{ color: #57606a }} dd {{ margin: 0 }}
.volume {{ display: flex; gap: 1.5rem; flex-wrap: wrap; align-items: flex-start; border-top: 1px solid #d8dee4;
  padding: .8rem 0; content-visibility: auto; contain-intrinsic-height: auto 17rem }}
.volume img {{ display: block; width: 22rem; max-width: 100%; height: auto }}
.volume div {{ flex: 1 1 20rem; min-width: 0 }} .facts {{ font-size: 13px; white-space: pre-line; margin: .3rem 0 }}
figure {{ margin: 0 }} svg {{ display: block; fill: #4a6fa5 }} .small {{ {_axis(_SMALL[0])} }} .large {{ {_axis(_LARGE[0])} }}
"""


def write_reports(
    folder: Path,
    records: Sequence[dict[str, Any]],
    left_out: Counter,
    dataset: dict[str, Any],
    notes: Sequence[str] = (),
) -> None:
    """Writes report.csv and report.html, which shows the pictures in `records` beside it.

    Args:
        folder: the data set.
        records: of all sources, see `VolumeJob`.
        left_out: counts of files that are beside the point.
        dataset: the content of dataset.json.
        notes: what is to be known about the whole.
    """
    sections: dict[str, list[str]] = {}
    for section in ("training", "validation"):
        for item in dataset[section]:
            name = Path(item["image"]).name.removesuffix(".nii.gz")
            sections.setdefault(name, []).append(section)
    rows = [{**record, "section": " and ".join(sections.get(record["volume"], []))} for record in records]
    write_text(folder / "report.csv", _csv(rows))
    write_text(folder / "report.html", _page(rows, left_out, dataset, notes))


def _text(value: Any) -> str:
    """A list as '1 x 2 x 3', nothing as an empty string."""
    if isinstance(value, list):
        return "; ".join(value) if all(isinstance(item, str) for item in value) else " x ".join(f"{v:g}" for v in value)
    return "" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _csv(rows: Sequence[dict[str, Any]]) -> str:
    table = io.StringIO(newline="")
    writer = csv.writer(table)
    writer.writerow(COLUMNS)
    writer.writerows([_text(row.get(name)) for name in COLUMNS] for row in rows)
    return table.getvalue()


def _page(rows: Sequence[dict[str, Any]], left_out: Counter, dataset: dict[str, Any], notes: Sequence[str]) -> str:
    accepted = [row for row in rows if row["status"] == "accepted"]
    rejected = [row for row in rows if row["status"] == "rejected"]
    unit = "HU" if dataset["intensity"] == "HU" else "per-volume scale 0 to 1 (paper_compat), not HU"
    facts = {
        "Volumes": f"{len(accepted)} accepted, {len(rejected)} rejected",
        "Patients": len({row["patient"] for row in accepted}),
        "Split": f"{dataset['numTraining']} training, {dataset['numValidation']} validation, by patient",
        "Grid": f"{_text(dataset['size'])} voxels of {_text(dataset['spacing_mm'])} mm, RAS",
        "Values": unit,
        "Left out": ", ".join(f"{count} {kind}" for kind, count in sorted(left_out.items()) if count)
        or "no other files",
    }
    links = '<p><a href="#accepted">Accepted</a>' + (' <a href="#rejected">Rejected</a></p>' if rejected else "</p>")
    parts = ["<h1>CT data set</h1>", _definitions(facts), *map(_warning, notes), links]
    if accepted:
        total = [sum(column) for column in zip(*(row["histogram"] for row in accepted))]
        parts += ["<h2>All values</h2>", _histogram(total, "large", _LARGE)]
    if rejected:
        cells = "".join(
            f"<tr><td><code>{row['volume']}</code></td><td>{row['kind']}</td><td>{row['slices'] or ''}</td>"
            f"<td>{escape(row['reason'])}</td></tr>"
            for row in rejected
        )
        head = "<tr><th>name</th><th>kind</th><th>slices</th><th>reason</th></tr>"
        parts += [
            '<h2 id="rejected">Rejected</h2>',
            "<p>Repeat the command with <code>--mapping_file M.csv</code>, and the table M.csv says which files a name "
            "stands for. It names patients: keep it to yourself.</p>",
            f"<table>{head}{cells}</table>",
        ]
    shown = (
        "Axial, coronal and sagittal, above in a lung window, below in a mediastinal one. The patient's right is on the "
        "left of the picture. A click enlarges it. The bars say how often each HU is found, on a square-root axis."
    )
    parts += ['<h2 id="accepted">Accepted</h2>', f"<p>{shown}</p>", *map(_volume, accepted)]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>CT data set</title>'
        f"<style>{_STYLE}</style></head><body>\n" + "\n".join(parts) + "\n</body></html>\n"
    )


def _definitions(facts: dict[str, Any]) -> str:
    return (
        "<dl>" + "".join(f"<dt>{name}</dt><dd>{escape(_text(value))}</dd>" for name, value in facts.items()) + "</dl>"
    )


def _warning(text: str) -> str:
    return f'<p class="warning">{escape(text)}</p>'


def _volume(row: dict[str, Any]) -> str:
    picture = f"records/{row['volume']}.jpg"
    tilt = f", gantry tilt of {row['tilt_degrees']:g} degrees corrected" if "tilt_degrees" in row else ""
    facts = [
        f"{row['kind']}, {_text(row['original_shape'])} voxels of {_text(row['original_spacing_mm'])} mm, "
        f"axes {row['original_axes']}{tilt}",
        f"Source values {row['original_min']:g} to {row['original_max']:g} HU",
        f"Covered: {' x '.join(f'{100 * share:.0f} %' for share in row['coverage'])}",
        f"Lung {row['lung_ml']} ml, body {row['body_width_mm']} mm wide",
        f"List: {row['section']}",
    ]
    warnings = "".join(map(_warning, row["warnings"]))
    return (
        f'<section class="volume"><a href="{picture}"><img alt="three planes" loading="lazy" src="{picture}" '
        f'width="{PICTURE_SIZE[0]}" height="{PICTURE_SIZE[1]}"></a>'
        f"<div><code>{row['volume']}</code>{warnings}<p class=\"facts\">{escape(chr(10).join(facts))}</p></div>"
        f"{_histogram(row['histogram'], 'small', _SMALL)}</section>"
    )


def _histogram(counts: Sequence[int], kind: str, size: tuple[int, int]) -> str:
    """Histogram as SVG: share of the voxels on a square-root axis, as air would hide all the rest."""
    top, height = max(max(counts), 1) ** 0.5, size[1]
    steps = "".join(f"V{height * (1 - count**0.5 / top):.0f}h1" for count in counts)
    return (
        f'<figure class="{kind}"><svg width="{size[0]}" height="{height}" viewBox="0 0 {len(counts)} {height}" '
        f'preserveAspectRatio="none"><path d="M0 {height}{steps}V{height}z"/></svg></figure>'
    )
