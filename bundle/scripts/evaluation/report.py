"""report.html: one file with everything in it, that opens from disk without a network."""

from __future__ import annotations

from typing import Any, Callable, Mapping, Sequence

import numpy as np
from markupsafe import Markup
from monai.data import Dataset
from PIL import Image

from ..data.pictures import BONE_WINDOW, LUNG_WINDOW, MEDIASTINAL_WINDOW, preview_picture
from ..metrics import ANATOMY_NAMES, HU_BANDS, ORGAN_NAMES
from ..pages import as_array, formatted, minus, render
from .comparison import is_beyond_chance
from .figures import colours_of, dot_plot, line_plot
from .headline import reference_of, shown_name
from .records import Records
from .report_memorisation import memorised
from .set_metrics import EXCESS_LIKENESS, LIKENESS
from .volume_sets import VolumeSet

WINDOWS = {"lung": LUNG_WINDOW, "mediastinal": MEDIASTINAL_WINDOW, "bone": BONE_WINDOW}
OVERVIEW = {
    "Fidelity": ("FID", "FID, Astra", "HU-Wasserstein (HU)", "log10 spectrum error"),
    "Diversity": (LIKENESS, EXCESS_LIKENESS, "recall", "coverage"),
}
REPORT_MARK = "<title>Evaluation of generated CT</title>"


def report_html(
    results: Mapping[str, Any],
    records: Mapping[str, Records],
    sets: Mapping[str, VolumeSet],
    volumes: Callable[[str], Dataset],
    num_slices: int,
) -> str:
    """The whole page.

    Args:
        results: what metrics.json holds.
        records: of each set.
        sets: for the names of their volumes.
        volumes: a set's volumes on the common grid, in HU.
        num_slices: volumes of each set to show.
    """
    shown = ["real", *results["distances"]]
    size_mm, grid = results["settings"]["field_of_view_mm"], results["settings"]["grid"]
    names = {name: shown_name(name, results) for name in results["sets"]}
    return render(
        "evaluation/report.html",
        results=results,
        names=names,
        reference=reference_of(results),
        spacing=[f"{side / n:.3g}" for side, n in zip(size_mm, grid)],
        formatted=formatted,
        overview=_overview(results),
        distances=_distances(results),
        properties=_properties(results, shown),
        colours={names[name]: colour for name, colour in colours_of(shown).items()},
        figures=_figures(results, {names[name]: records[name] for name in shown}),
        windows=WINDOWS,
        slices={names[name]: _slices(volumes(name), size_mm, num_slices) for name in shown},
        memorised=memorised(results, sets, volumes, size_mm),
    )


def _distances(results: Mapping[str, Any]) -> dict[str, Any]:
    counts = {name: f"{one['num_volumes']:,}" for name, one in results["sets"].items()}
    half = f"{results['floor']['num_volumes']:,}"
    columns = {
        (name, f"N = {counts[name]} against {counts['real']}"): found for name, found in results["distances"].items()
    }
    floor = (f"floor: halves of the {reference_of(results)}", f"N = {half} against {half}, range of 5 splits")
    return _table(results, {**columns, floor: results["floor"]["distances"]})


def _properties(results: Mapping[str, Any], shown: Sequence[str]) -> dict[str, Any]:
    counts = {name: f"N = {results['sets'][name]['num_volumes']:,}" for name in shown}
    return _table(results, {(shown_name(name, results), counts[name]): results["properties"][name] for name in shown})


def _table(results: Mapping[str, Any], columns: Mapping[tuple[str, str], Mapping[str, Any]]) -> dict[str, Any]:
    """Columns by title and what stands small below it, and their metrics by group, both in the order of the table."""
    groups: dict[str, list[str]] = {}
    for metric in next(iter(columns.values())):
        groups.setdefault(results["meaning"][metric]["group"], []).append(metric)
    return {"columns": columns, "groups": groups}


def _overview(results: Mapping[str, Any]) -> dict[str, Any]:
    """What counts most, a line per generator: fidelity beside diversity, as either is easily had without the other."""
    listed = {title: [n for n in names if n in results["meaning"]] for title, names in OVERVIEW.items()}
    lines = {name: {**results["properties"][name], **found} for name, found in results["distances"].items()}
    alike = [(name, EXCESS_LIKENESS) for name in lines if is_beyond_chance(lines[name].get(EXCESS_LIKENESS))]
    lines[f"{reference_of(results)}, halves of them"] = {
        **results["properties"]["real"],
        **results["floor"]["distances"],
    }
    return {"columns": {title: names for title, names in listed.items() if names}, "lines": lines, "bad": alike}


def _figures(results: Mapping[str, Any], records: Mapping[str, Records]) -> list[tuple[Markup, str]]:
    """Plots with their captions."""
    low, high = results["settings"]["hu_window"]
    size, stride = (max(results["settings"][name], default=0) for name in ("field_of_view_mm", "seam_strides"))
    edges = sorted({hu for band in HU_BANDS.values() for hu in band if low < hu < high})
    histograms, spectra = {n: _histogram(r, low) for n, r in records.items()}, {n: _spectrum(r, size) for n, r in records.items()}  # fmt: skip
    borders = range(stride, results["settings"]["grid"][0], stride) if stride else ()
    profiles = {n: _profile(r, results) for n, r in records.items()}
    figures = [
        (
            line_plot(histograms, "HU", "share of voxels per HU", True, edges),
            f"Hounsfield units of all voxels, clipped to {minus(low)} to {minus(high)}; bins of 10 HU. Dashed: edges of the bands.",
        ),
        (
            line_plot(spectra, "spatial frequency (cycles / mm)", "power (HU²)", True),
            "Radial power spectrum, mean over volumes. Too low on the right is blur, too high is grain.",
        ),
        (
            line_plot(profiles, "voxel border along x", "mean |difference| (HU)", bands=borders),
            "Mean difference between neighbouring sagittal slices. Spikes at the dashed lines, the borders of patches of "
            f"stride {stride}, are seams.",
        ),
    ]
    for entry, labels, source in (
        ("anatomy", ANATOMY_NAMES, "By thresholds"),
        ("organs", ORGAN_NAMES, "By TotalSegmentator"),
    ):
        for index, label in enumerate(labels if entry in next(iter(records.values())) else ()):
            values = {name: one[entry][:, index].tolist() for name, one in records.items()}
            figures.append((dot_plot(values, label), f"{source}. One dot per volume, the bar is the median."))
    return figures


def _histogram(records: Records, low: float, width: int = 10) -> tuple[np.ndarray, np.ndarray]:
    counts = records["histogram"].double().sum(0).numpy()
    width = min(width, len(counts))
    counts = counts[: len(counts) // width * width].reshape(-1, width).sum(1)
    return low + width * (np.arange(len(counts)) + 0.5), counts / counts.sum() / width


def _spectrum(records: Records, size_mm: float) -> tuple[np.ndarray, np.ndarray]:
    power = records["spectrum"].mean(0).numpy()[1:]
    return np.arange(1, 1 + len(power)) / size_mm, power


def _profile(records: Records, results: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    along_x = records["profile"].mean(0).numpy()[: results["settings"]["grid"][0] - 1]
    return np.arange(1, 1 + len(along_x)), along_x


def _slices(volumes: Dataset, size_mm: Sequence[float], count: int) -> Image.Image:
    indices = np.unique(np.linspace(0, len(volumes) - 1, min(count, len(volumes))).round().astype(int))
    shown = [as_array(volumes, int(i)) for i in indices]
    return preview_picture(shown, size_mm, pixels=200, windows=list(WINDOWS.values()))
