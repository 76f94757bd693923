"""What became of each CT: report.csv for programs, report.html to look at; neither says who a patient is."""

from __future__ import annotations

import csv
import io
from collections import Counter
from pathlib import Path
from typing import Any, Sequence

from ...files import write_text
from ...pages import render
from ..intensity import HU
from .volume_job import PICTURE_SIZE

COLUMNS = (
    "volume patient section status reason warnings kind slices original_shape original_spacing_mm original_axes "
    "tilt_degrees original_min original_max coverage lung_ml body_width_mm"
).split()
HU_TICKS = (-800, -400, 0, 400, 800)
SIZES = {"small": (200, 70), "large": (560, 150)}  # width, height of histograms


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
    accepted, rejected = ([row for row in rows if row["status"] == status] for status in ("accepted", "rejected"))
    others = ", ".join(f"{count} {kind}" for kind, count in sorted(left_out.items()) if count)
    facts = {
        "Volumes": f"{len(accepted)} accepted, {len(rejected)} rejected",
        "Patients": len({row["patient"] for row in accepted}),
        "Split": f"{dataset['numTraining']} training, {dataset['numValidation']} validation, by patient",
        "Grid": f"{_text(dataset['size'])} voxels of {_text(dataset['spacing_mm'])} mm, RAS",
        "Values": "HU" if dataset["intensity"] == HU else "per-volume scale 0 to 1 (paper_compat), not HU",
        "Left out": others or "no other files",
    }
    return render(
        "data/ingest/report.html",
        facts=facts,
        notes=notes,
        accepted=accepted,
        rejected=rejected,
        total=[sum(column) for column in zip(*(row["histogram"] for row in accepted))],
        ticks=HU_TICKS,
        sizes=SIZES,
        picture_size=PICTURE_SIZE,
        text=_text,
    )
