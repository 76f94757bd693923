"""report.html: one file with everything in it, that opens from disk without a network."""

from __future__ import annotations

from html import escape
from typing import Any, Callable, Mapping, Sequence

import numpy as np
from monai.data import Dataset

from ..data.pictures import BONE_WINDOW, LUNG_WINDOW, MEDIASTINAL_WINDOW, preview_picture
from ..metrics import ANATOMY_NAMES, HU_BANDS, ORGAN_NAMES
from .comparison import is_beyond_chance
from .figures import dot_plot, legend, line_plot
from .page import STYLE, as_array, data_uri, formatted, minus
from .records import Records
from .report_memorisation import memorisation_section
from .set_metrics import EXCESS_LIKENESS, LIKENESS
from .volume_sets import VolumeSet

WINDOWS = {"lung": LUNG_WINDOW, "mediastinal": MEDIASTINAL_WINDOW, "bone": BONE_WINDOW}
BAD = ' class="bad"'
OVERVIEW = {
    "Fidelity": ("FID", "HU-Wasserstein (HU)", "log10 spectrum error"),
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
    size_mm = results["settings"]["field_of_view_mm"]
    parts = [
        _head(results),
        _overview(results),
        _distances(results),
        _properties(results, shown),
        _plots(results, {name: records[name] for name in shown}),
        "<h2>Example slices</h2><p>Middle slices, the patient's right on the left of the picture, anterior on top (axial) "
        "or left (sagittal). Volumes are evenly spaced in their list, not chosen.</p>",
        *(_slices(name, volumes(name), size_mm, num_slices) for name in shown),
        memorisation_section(results, sets, volumes, size_mm),
        _methods(results),
    ]
    body = "\n".join(parts)
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">{REPORT_MARK}'
        f'<meta name="viewport" content="width=device-width"><style>{STYLE}</style></head><body>\n{body}\n</body></html>\n'
    )


def _head(results: Mapping[str, Any]) -> str:
    sets = ", ".join(f"{escape(name)} (N = {one['num_volumes']:,})" for name, one in results["sets"].items())
    notes = "".join(f"<p>{escape(warning)}</p>" for warning in results["warnings"])
    features = (
        f" FID, MMD, KID and neighbours by {escape(results['features']['label'])}." if _has_features(results) else ""
    )
    short = "".join(f"<p><b>{escape(line)}</b></p>" for line in results["headlines"].values())
    return (
        f"<h1>Evaluation of generated CT</h1>{short}<p>Volumes: {sets}. Compared on {_grid(results)}.{features}</p>"
        + (f'<div class="notes">{notes}</div>' if notes else "")
    )


def _has_features(results: Mapping[str, Any]) -> bool:
    return results["features"]["sha256"] is not None


def _grid(results: Mapping[str, Any]) -> str:
    grid, size = results["settings"]["grid"], results["settings"]["field_of_view_mm"]
    spacing = " × ".join(f"{side / n:.3g}" for side, n in zip(size, grid))
    return f"{' × '.join(map(str, grid))} voxels of {spacing} mm"


def _overview(results: Mapping[str, Any]) -> str:
    """What counts most, a line per generator: fidelity beside diversity, as either is easily had without the other."""
    columns = {title: [n for n in names if n in results["meaning"]] for title, names in OVERVIEW.items()}
    listed = [name for names in columns.values() for name in names]
    if not listed:
        return ""
    lines = {name: {**results["properties"][name], **found} for name, found in results["distances"].items()}
    lines["real volumes, halves of them"] = {**results["properties"]["real"], **results["floor"]["distances"]}
    rows = ""
    for name, line in lines.items():
        alike = name in results["distances"] and is_beyond_chance(line.get(EXCESS_LIKENESS))
        cells = [f'<td{BAD if alike and n == EXCESS_LIKENESS else ""}>{_cell(line[n])}</td>' for n in listed]
        rows += f"<tr><th>{escape(name)}</th>{''.join(cells)}</tr>"
    titles = "".join(f'<th colspan="{len(names)}">{title}</th>' for title, names in columns.items() if names)
    heads = "".join(f"<th>{escape(name)}</th>" for name in listed)
    return (
        "<h2>Fidelity and diversity</h2><p>Volumes can look real one by one and still all be the same chest. Likeness is "
        "the mean correlation between two coarse volumes of a set; its excess over that of the real volumes is 0 where "
        f'generated volumes differ as real ones do.</p><div class="wide"><table class="overview"><thead><tr><th></th>{titles}'
        f"</tr><tr><th></th>{heads}</tr></thead><tbody>{rows}</tbody></table></div>"
    )


def _distances(results: Mapping[str, Any]) -> str:
    half = results["floor"]["num_volumes"]
    columns = [*results["distances"].values(), results["floor"]["distances"]]
    heads = [
        f"{escape(name)}<br><small>N = {results['sets'][name]['num_volumes']:,} against "
        f"{results['sets']['real']['num_volumes']:,}</small>"
        for name in results["distances"]
    ]
    heads.append(f"floor: real against real<br><small>N = {half:,} against {half:,}, range of 5 splits</small>")
    return (
        "<h2>Distance to the real volumes</h2><p>Brackets are 95 % bootstrap intervals over volumes. The floor is what two "
        "random halves of the real volumes have between them: a generator can hardly do better. FID and MMD grow as N "
        "shrinks, so compare generators at the same N.</p>" + _table(results, columns, heads)
    )


def _properties(results: Mapping[str, Any], shown: Sequence[str]) -> str:
    heads = [f"{escape(name)}<br><small>N = {results['sets'][name]['num_volumes']:,}</small>" for name in shown]
    return "<h2>Properties of the volumes</h2><p>Each is right where it is as in the real volumes.</p>" + _table(
        results, [results["properties"][name] for name in shown], heads
    )


def _table(results: Mapping[str, Any], columns: Sequence[Mapping[str, Any]], heads: Sequence[str]) -> str:
    """One row per metric, with a line over each group."""
    groups: dict[str, list[str]] = {}
    for metric in columns[0]:
        groups.setdefault(results["meaning"][metric]["group"], []).append(metric)
    rows = []
    for group, metrics in groups.items():
        title = group[0].upper() + group[1:]
        rows.append(f'<tr class="group"><th colspan="{len(columns) + 1}">{escape(title)}</th></tr>')
        for metric in metrics:
            meaning = results["meaning"][metric]
            facts = [meaning["meaning"]]
            facts += [results["features"]["label"]] if meaning["of_features"] else []
            facts += {"lower": ["lower is better"], "higher": ["higher is better"]}.get(meaning["better"], [])
            cells = "".join(f"<td>{_cell(column[metric])}</td>" for column in columns)
            rows.append(f"<tr><th>{escape(metric)}<br><small>{escape('; '.join(facts))}</small></th>{cells}</tr>")
    head = "".join(f"<th>{text}</th>" for text in ("", *heads))
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>" if rows else ""


def _cell(estimate: Mapping[str, Any]) -> str:
    if estimate["value"] is None:
        return f"<small>{escape(estimate['note'])}</small>"
    text = formatted(estimate["value"])
    if estimate["low"] is not None:
        text += f" <small>[{formatted(estimate['low'])}, {formatted(estimate['high'])}]</small>"
    return text + (f"<br><small>{escape(estimate['note'])}</small>" if estimate["note"] else "")


def _plots(results: Mapping[str, Any], records: Mapping[str, Records]) -> str:
    low, high = results["settings"]["hu_window"]
    size = max(results["settings"]["field_of_view_mm"])
    stride = max(results["settings"]["seam_strides"], default=0)
    edges = sorted({hu for band in HU_BANDS.values() for hu in band if low < hu < high})
    figures = [
        (
            line_plot({n: _histogram(r, low) for n, r in records.items()}, "HU", "share of voxels per HU", True, edges),
            f"Hounsfield units of all voxels, clipped to {minus(low)} to {minus(high)}; bins of 10 HU. Dashed: edges of the bands.",
        ),
        (
            line_plot(
                {n: _spectrum(r, size) for n, r in records.items()},
                "spatial frequency (cycles / mm)",
                "power (HU²)",
                True,
            ),
            "Radial power spectrum, mean over volumes. Too low on the right is blur, too high is grain.",
        ),
        (
            line_plot(
                {n: _profile(r, results) for n, r in records.items()},
                "voxel border along x",
                "mean |difference| (HU)",
                bands=range(stride, results["settings"]["grid"][0], stride) if stride else (),
            ),
            "Mean difference between neighbouring sagittal slices. Spikes at the dashed lines, the borders of patches of "
            f"stride {stride}, are seams.",
        ),
    ]
    for entry, labels, source in (
        ("anatomy", ANATOMY_NAMES, "By thresholds"),
        ("organs", ORGAN_NAMES, "By TotalSegmentator"),
    ):
        for index, label in enumerate(labels if entry in records["real"] else ()):
            values = {name: one[entry][:, index].tolist() for name, one in records.items()}
            figures.append((dot_plot(values, label), f"{source}. One dot per volume, the bar is the median."))
    body = "".join(f"<figure>{svg}<figcaption>{caption}</figcaption></figure>" for svg, caption in figures)
    return f'<h2>Distributions</h2>{legend(list(records))}<div class="plots">{body}</div>'


def _histogram(records: Records, low: float, width: int = 10) -> tuple[np.ndarray, np.ndarray]:
    counts = records["histogram"].double().sum(0).numpy()
    counts = counts[: len(counts) // width * width].reshape(-1, width).sum(1)
    return low + width * (np.arange(len(counts)) + 0.5), counts / counts.sum() / width


def _spectrum(records: Records, size_mm: float) -> tuple[np.ndarray, np.ndarray]:
    power = records["spectrum"].mean(0).numpy()[1:]
    return np.arange(1, 1 + len(power)) / size_mm, power


def _profile(records: Records, results: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    along_x = records["profile"].mean(0).numpy()[: results["settings"]["grid"][0] - 1]
    return np.arange(1, 1 + len(along_x)), along_x


def _slices(name: str, volumes: Dataset, size_mm: Sequence[float], count: int) -> str:
    indices = np.unique(np.linspace(0, len(volumes) - 1, min(count, len(volumes))).round().astype(int))
    picture = preview_picture(
        [as_array(volumes, int(i)) for i in indices], size_mm, pixels=200, windows=list(WINDOWS.values())
    )
    titles = "".join(
        f"<span>{title} window, {minus(low)} to {minus(high)} HU</span>" for title, (low, high) in WINDOWS.items()
    )
    image = f'<img src="{data_uri(picture)}" alt="{escape(name)}: axial, coronal and sagittal slices in three windows">'
    return f'<figure class="slices"><figcaption><b>{escape(name)}</b></figcaption><div class="columns">{titles}</div>{image}</figure>'


def _methods(results: Mapping[str, Any]) -> str:
    settings, features = results["settings"], results["features"]
    hashes = "".join(
        f'<tr><th>{escape(name)}</th><td>{one["num_volumes"]:,}</td><td class="hash">{one["sha256"]}</td></tr>'
        for name, one in results["sets"].items()
    )
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    network = (
        f"{escape(settings['feature_preprocessing'])}</p><p>Feature network: {escape(features['label'])}, sha256 of its "
        f'weights <span class="hash">{features["sha256"]}</span>. '
        if _has_features(results)
        else "</p><p>No metric that was asked for needs features. "
    )
    return (
        f"<h2>How it was measured</h2><p>Volumes are oriented to RAS, cropped or padded with air around their centre, "
        f"resampled (trilinear) only where the spacing is no whole fraction, and averaged to {_grid(results)}. HU are "
        f"clipped to {minus(settings['hu_window'][0])} to {minus(settings['hu_window'][1])}. {network}"
        f"{settings['num_bootstrap']} bootstrap samples (FID: at most 100), "
        f"seed {settings['seed']}. {escape(versions)}.</p>"
        "<table><thead><tr><th>set</th><th>N</th><th>sha256 of its files</th></tr></thead>"
        f'<tbody>{hashes}</tbody></table><p class="quiet">For research only, not for diagnosis. The same numbers, with '
        "more digits, are in metrics.json.</p>"
    )
