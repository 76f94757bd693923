"""The table and the picture of baselines.py, from the volumes of its systems."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np
from quality import FIRST_REFERENCE, records_of  # which finds the bundle, too

from scripts.data import chest_phantom
from scripts.data.pictures import plane_picture, stacked, titled
from scripts.files import write_json, write_text
from scripts.metrics import SIZE_NAMES
from scripts.pages import formatted, number

CONFIGS = Path(__file__).resolve().parents[1] / "bundle" / "configs"
GRID, FIELD_OF_VIEW_MM = [32, 32, 32], 320.0
NUM_REFERENCE = 128  # phantoms that no system has seen
PHANTOMS = "other phantoms"
NUM_SHOWN, PIXELS = 6, 160
DISTANCES = ["FID", "KID", "MMD", "HU-Wasserstein (HU)", "log10 spectrum error", "precision", "recall"]
PROPERTIES = ["seams, stride 4", "seams, stride 8", "grain (HU)", "likeness", "lung vessels (%)", "bone pieces"]
CRITICS = {"critics": "pairs", "batch_size": 8, "lr": 1.0e-3, "critic_channels": [8, 16, 32, 64], "num_seeds": 2}


class Row(NamedTuple):
    """A system: the records of its trainings, the folder of its volumes, and what one of them costs."""

    stages: list[dict[str, Any]]
    volumes: Path
    cost: dict[str, float]


def positive(word: str) -> int:
    """A whole number of at least 1 from a command line."""
    if not word.isdecimal() or int(word) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, got {word!r}")
    return int(word)


def config_files(names: list[str]) -> list[str]:
    return [str(CONFIGS / f"{name}.yaml") for name in names]


def bundle(run_id: str, stack: list[str], **settings: Any) -> float:
    """One command of the bundle, as a user types it; the seconds that it took."""
    command = [sys.executable, "-W", "ignore", "-m", "monai.bundle", "run", run_id]
    command += ["--config_file", str(config_files(stack))]
    start = time.monotonic()
    subprocess.run(command + [part for name, one in settings.items() for part in (f"--{name}", str(one))], check=True)
    return time.monotonic() - start


def write_phantoms(folder: Path, first: int, count: int) -> list[str]:
    """Phantoms as NIfTI, those that are not there yet; their names."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"phantom_{first + index}.nii.gz" for index in range(count)]
    missing = [path for path in paths if not path.is_file()]
    if missing:
        with ProcessPoolExecutor(mp_context=get_context("fork")) as pool:
            list(pool.map(_write_phantom, missing))
    return [path.name for path in paths]


def _write_phantom(path: Path) -> None:
    seed = int(path.name[len("phantom_") : -len(".nii.gz")])
    volume = chest_phantom(seed, GRID, [FIELD_OF_VIEW_MM] * 3).astype(np.float32)
    part = path.with_name(f"part_{os.getpid()}_{path.name}")  # another process may write the same one
    nib.save(nib.Nifti1Image(volume, np.diag([FIELD_OF_VIEW_MM / GRID[0]] * 3 + [1.0])), part)
    part.rename(path)


def write_report(folder: Path, rows: dict[str, Row], num_samples: int, critic_steps: int) -> None:
    """`table.md` and `samples.png` in a folder; phantoms that are in no other set have a row, too."""
    write_phantoms(folder / "phantoms", FIRST_REFERENCE + 1000, num_samples)
    sets = {name: str(row.volumes) for name, row in rows.items()} | {PHANTOMS: str(folder / "phantoms")}
    compared: dict[str, Any] = {"generated_dirs": sets, "num_phantoms": NUM_REFERENCE}
    bundle("run", ["evaluate"], metrics=DISTANCES + PROPERTIES, output_dir=folder / "report", **compared)
    measured = json.loads((folder / "report" / "metrics.json").read_text())
    columns = {name: _measured(measured, name) for name in sets}
    failed = failures({name: Path(one) for name, one in sets.items()})
    for name in sets:
        columns[name]["failed seeds"] = f"{len(failed[name])} of {measured['sets'][name]['num_volumes']}"
        columns[name] |= _costs(rows[name]) if name in rows else {}
    write_json(folder / "failed_seeds.json", failed)
    parts = [_table(columns)]
    if critic_steps and len(rows) > 1:  # of each pair
        compared["generated_dirs"] = {name: str(row.volumes) for name, row in rows.items()}
        bundle(
            "run", ["evaluate", "wscore"], num_steps=critic_steps, output_dir=folder / "wscore", **CRITICS, **compared
        )
        parts.append(_critics(json.loads((folder / "wscore" / "wscore.json").read_text())["log_ratio"]))
    write_text(folder / "table.md", "\n".join(parts))
    picture({name: Path(one) for name, one in sets.items()}).save(folder / "samples.png")
    print("\n".join(parts))


def _measured(measured: dict[str, Any], name: str) -> dict[str, str]:
    found = {one: number(measured["distances"][name][one]) for one in DISTANCES}
    return found | {one: number(measured["properties"][name][one]) for one in PROPERTIES}


def _costs(row: Row) -> dict[str, str]:
    total = {key: sum(one[key] for one in row.stages) for key in ("tflop", "core_seconds", "wall_seconds")}
    return {
        "parameters (million)": formatted(row.cost["parameters"]),
        "training (TFLOP)": formatted(total["tflop"]),
        "training (minutes of one core's time)": formatted(total["core_seconds"] / 60),
        "training (minutes by the clock)": formatted(total["wall_seconds"] / 60),
        "steps": " + ".join(f"{one['steps']:,} of {one['batch_size']}" for one in row.stages),
        "rates": " + ".join(f"{one['rate']:g}" for one in row.stages),
        "a volume (GFLOP)": formatted(1000 * row.cost["tflop"]),
        "a volume (seconds of one core)": formatted(row.cost["core_seconds"]),
    }


def _table(columns: dict[str, dict[str, str]]) -> str:
    """Markdown: a line per number, a column per set."""
    lines = ["| | " + " | ".join(columns) + " |", "|" + "---|" * (len(columns) + 1)]
    names = list(dict.fromkeys(name for one in columns.values() for name in one))
    lines += [f"| {name} | " + " | ".join(one.get(name, "") for one in columns.values()) + " |" for name in names]
    return "\n".join(lines) + "\n"


def _critics(ratios: dict[str, dict[str, Any]]) -> str:
    """Markdown of log ratios: above 0, the row is nearer to the phantoms than the column."""

    def cell(one: Any) -> str:
        if one is None or one["mean"] is None:
            return ""
        return formatted(one["mean"]) + (f" ± {formatted(one['std'])}" if one["std"] is not None else "")

    return _table({other: {name: cell(row.get(other)) for name, row in ratios.items()} for other in ratios})


def failures(folders: dict[str, Path]) -> dict[str, list[int]]:
    """Which volumes of each folder are no chest, counted from 0.

    A volume has failed where one of `SIZE_NAMES` is no number, or further from the nearest of those of as many phantoms as
    their whole range is wide.
    """
    sizes = {
        name: records_of(_volumes(one), FIELD_OF_VIEW_MM)["anatomy"][:, : len(SIZE_NAMES)]
        for name, one in folders.items()
    }
    low, high = sizes[PHANTOMS].amin(0), sizes[PHANTOMS].amax(0)
    margin = high - low
    good = {name: ((one >= low - margin) & (one <= high + margin)).all(1) for name, one in sizes.items()}
    return {name: (~one).nonzero()[:, 0].tolist() for name, one in good.items()}


def _volumes(folder: Path) -> np.ndarray:
    paths = sorted(folder.glob("*.nii.gz"))
    return np.stack([np.asanyarray(nib.load(path).dataobj) for path in paths]).astype(np.float32).clip(-1000, 1000)


def picture(folders: dict[str, Path]) -> Any:
    """A row per set: coronal planes of its first volumes, the phantoms last."""
    rows = []
    for name, folder in folders.items():
        size_mm = [FIELD_OF_VIEW_MM] * 3
        planes = [plane_picture(one, "coronal", "soft tissue", size_mm, PIXELS) for one in _volumes(folder)[:NUM_SHOWN]]
        rows.append(titled(stacked(planes, across=True), name))
    return stacked(rows)
