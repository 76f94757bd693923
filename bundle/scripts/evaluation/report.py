"""report.html: one file with everything in it, that opens from disk without a network."""

from __future__ import annotations

import base64
import io
from html import escape
from typing import Any, Callable, Iterable, Mapping, Sequence

import numpy as np
import torch
from monai.data import Dataset
from PIL import Image

from ..inferers.writers import BONE_WINDOW, LUNG_WINDOW, MEDIASTINAL_WINDOW, preview_picture
from ..metrics import ANATOMY_NAMES, HU_BANDS
from .figures import dot_plot, legend, line_plot
from .records import Records
from .volume_sets import VolumeSet

WINDOWS = {"lung": LUNG_WINDOW, "mediastinal": MEDIASTINAL_WINDOW, "bone": BONE_WINDOW}
NUM_WORST = 4
NUM_LISTED = 20
STYLE = """
:root { font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; color: #1c1c1c; }
body { max-width: 1120px; margin: 2rem auto 4rem; padding: 0 1.2rem; background: #fff; }
h1 { font-size: 1.6rem; margin: 0 0 .3rem; } h2 { font-size: 1.2rem; margin: 2.4rem 0 .4rem; }
p { max-width: 78ch; margin: .4rem 0; } .quiet, caption, small { color: #5a5a5a; } small { font-size: .82rem; }
table { border-collapse: collapse; margin: .8rem 0; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .32rem .7rem .32rem 0; vertical-align: top; border-bottom: 1px solid #e4e4e4; }
thead th { border-bottom: 1.5px solid #777; } tbody th { font-weight: 500; } td small { white-space: nowrap; }
tr.group th { padding-top: .9rem; font-weight: 650; border-bottom: 1px solid #aaa; }
.notes { border-left: 4px solid #E69F00; background: #fff8e8; padding: .5rem .9rem; margin: 1rem 0; }
.notes p { margin: .25rem 0; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(430px, 1fr)); gap: 1rem 1.4rem; }
figure { margin: 0; } figcaption { font-size: .87rem; color: #444; } svg { width: 100%; height: auto; }
svg text { font-size: 12px; fill: #333; } .grid { stroke: #ececec; } .axis { stroke: #555; }
.band { stroke: #bbb; stroke-dasharray: 3 3; }
.legend .key { margin-right: 1.2rem; } .legend .key span { display: inline-block; width: 1.6em; height: .35em;
  margin-right: .4em; vertical-align: middle; border-radius: 2px; }
.slices img { width: 100%; background: #000; display: block; } .slices { margin: .8rem 0 1.4rem; }
.columns { display: grid; grid-template-columns: repeat(3, 1fr); font-size: .82rem; color: #444; text-align: center; }
.bad { color: #a40000; font-weight: 600; } .hash { font-family: ui-monospace, monospace; font-size: .8rem; }
@media print { body { margin: 0; } figure, tr, .slices { break-inside: avoid; } }
"""


def formatted(value: float) -> str:
    """Three significant digits, whole numbers from a thousand on, a real minus sign."""
    text = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:#.3g}".rstrip(".")
    if "e" in text:
        text = f"{value:.2e}"
    return text.replace("-", "−")


def number(estimate: Mapping[str, Any]) -> str:
    """'value [low, high]' of an estimate, or why there is none."""
    if estimate["value"] is None:
        return str(estimate["note"])
    if estimate["low"] is None:
        return formatted(estimate["value"])
    return f"{formatted(estimate['value'])} [{formatted(estimate['low'])}, {formatted(estimate['high'])}]"


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
        _distances(results),
        _properties(results, shown),
        _plots(results, {name: records[name] for name in shown}),
        "<h2>Example slices</h2><p>Middle slices, the patient's right on the left of the picture, anterior on top (axial) "
        "or left (sagittal). Volumes are evenly spaced in their list, not chosen.</p>",
        *(_slices(name, volumes(name), size_mm, num_slices) for name in shown),
        _memorisation(results, sets, volumes, size_mm),
        _methods(results),
    ]
    body = "\n".join(parts)
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>Evaluation of generated CT</title>'
        f'<meta name="viewport" content="width=device-width"><style>{STYLE}</style></head><body>\n{body}\n</body></html>\n'
    )


def _head(results: Mapping[str, Any]) -> str:
    sets = ", ".join(f"{escape(name)} (N = {one['num_volumes']:,})" for name, one in results["sets"].items())
    notes = "".join(f"<p>{escape(warning)}</p>" for warning in results["warnings"])
    return (
        f"<h1>Evaluation of generated CT</h1><p>Volumes: {sets}. Compared on {_grid(results)}. "
        f"Features: {escape(results['features']['label'])}.</p>"
        + (f'<div class="notes">{notes}</div>' if notes else "")
    )


def _grid(results: Mapping[str, Any]) -> str:
    grid, size = results["settings"]["grid"], results["settings"]["field_of_view_mm"]
    spacing = " × ".join(f"{side / n:.3g}" for side, n in zip(size, grid))
    return f"{' × '.join(map(str, grid))} voxels of {spacing} mm"


def _distances(results: Mapping[str, Any]) -> str:
    half = results["floor"]["num_volumes"]
    columns = [*results["distances"].values(), results["floor"]["distances"]]
    heads = [
        f"{escape(name)}<br><small>N = {results['sets'][name]['num_volumes']:,} against "
        f"{results['sets']['real']['num_volumes']:,}</small>"
        for name in results["distances"]
    ]
    heads.append(f"floor: real against real<br><small>N = {half:,} against {half:,}, lowest and highest of 5</small>")
    return (
        "<h2>Distance to the real volumes</h2><p>Brackets are 95 % bootstrap intervals over volumes. The floor is what two "
        "random halves of the real volumes have between them: a generator can hardly do better.</p>"
        + _table(results, columns, heads)
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
    edges = sorted({hu for band in HU_BANDS.values() for hu in band if low < hu < high})
    figures = [
        (
            line_plot({n: _histogram(r, low) for n, r in records.items()}, "HU", "share of voxels per HU", True, edges),
            f"Hounsfield units of all voxels, clipped to {low:g} to {high:g}; bins of 10 HU. Dashed: edges of the bands.",
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
                {n: _profile(r, results) for n, r in records.items()}, "voxel border along x", "mean |difference| (HU)"
            ),
            "Mean difference between neighbouring sagittal slices. Regular spikes are seams between patches.",
        ),
    ]
    for index, label in enumerate(ANATOMY_NAMES):
        values = {name: one["anatomy"][:, index].tolist() for name, one in records.items()}
        figures.append((dot_plot(values, label), "By thresholds. One dot per volume, the bar is the median."))
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
        [_array(volumes, int(i)) for i in indices], size_mm, pixels=200, windows=list(WINDOWS.values())
    )
    titles = "".join(f"<span>{title} window, {low:g} to {high:g} HU</span>" for title, (low, high) in WINDOWS.items())
    image = (
        f'<img src="{_data_uri(picture)}" alt="{escape(name)}: axial, coronal and sagittal slices in three windows">'
    )
    return f'<figure class="slices"><figcaption><b>{escape(name)}</b></figcaption><div class="columns">{titles}</div>{image}</figure>'


def _memorisation(
    results: Mapping[str, Any],
    sets: Mapping[str, VolumeSet],
    volumes: Callable[[str], Dataset],
    size_mm: Sequence[float],
) -> str:
    found = results["memorisation"]
    if not found:
        return ""
    against = found["against"]
    parts = [
        f"<h2>Memorised volumes</h2><p>For each generated volume the nearest of the {escape(against)} volumes, by coarse "
        "voxels (mirrored copies too) and by features. A distance is given as a share of the usual one: the median distance "
        f"between {escape(against)} volumes and the nearest other one. It tells something only if these are the volumes "
        "that the generator was trained on. A copy that is shifted, scaled or changed in part may pass.</p>"
    ]
    for name in results["distances"]:
        parts.append(_memorised_by(name, found[name], against, sets, volumes, size_mm))
    return "".join(parts)


def _memorised_by(
    name: str,
    one: Mapping[str, Any],
    against: str,
    sets: Mapping[str, VolumeSet],
    volumes: Callable[[str], Dataset],
    size_mm: Sequence[float],
) -> str:
    if "flagged" not in one:
        return f"<p>{escape(name)}: {escape(one['note'])}.</p>"
    ratios = {space: np.array(one[space]["ratio"]) for space in ("voxels", "features")}
    least = np.minimum(*ratios.values())
    flagged, total = len(one["flagged"]), len(least)
    kind = ' class="bad"' if flagged else ""
    parts = [
        f"<p><b>{escape(name)}</b>: <span{kind}>{flagged} of {total:,} volumes flagged</span>, which are nearer than "
        f"{one['threshold']:g} of the usual distance. Of the {one['num_training']:,} {escape(against)} volumes themselves, "
        f"{one['training_flagged']} would be.</p>",
        _listing(_nearest_rows(name, one, against, sets, ratios, np.argsort(least))),
        '<div class="plots">',
        *(
            f"<figure>{dot_plot(_ratio_columns(name, one, against, space), 'nearest / usual distance', 0.0)}"
            f"<figcaption>Distance to the nearest {escape(against)} volume by {space}.</figcaption></figure>"
            for space in ("voxels", "features")
        ),
        "</div>",
        _worst(name, one, against, volumes, size_mm, np.argsort(least)[:NUM_WORST].tolist()),
    ]
    return "".join(parts)


def _ratio_columns(name: str, one: Mapping[str, Any], against: str, space: str) -> dict[str, list[float]]:
    return {against: one[space]["training_ratio"], name: one[space]["ratio"]}


def _nearest_rows(
    name: str,
    one: Mapping[str, Any],
    against: str,
    sets: Mapping[str, VolumeSet],
    ratios: Mapping[str, np.ndarray],
    order: Iterable[int],
) -> list[list[str]]:
    rows = []
    for index in list(order)[:NUM_LISTED]:
        space = min(ratios, key=lambda key: ratios[key][index])
        flag = '<span class="bad">near copy</span>' if index in one["flagged"] else ""
        mirrored = " (mirrored)" if one[space]["mirrored"][index] else ""
        rows.append(
            [
                escape(sets[name].label(index)),
                escape(sets[against].label(one[space]["nearest"][index])) + mirrored,
                formatted(float(ratios["voxels"][index])),
                formatted(float(ratios["features"][index])),
                flag,
            ]
        )
    return rows


def _listing(rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{text}</th>" for text in ("volume", "nearest", "by voxels", "by features", ""))
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<details><summary>The {len(rows)} nearest</summary><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></details>"


def _worst(
    name: str,
    one: Mapping[str, Any],
    against: str,
    volumes: Callable[[str], Dataset],
    size_mm: Sequence[float],
    order: Sequence[int],
) -> str:
    """Rows of a generated volume (left) and the nearest one (right), which is mirrored if so it is nearer."""
    generated, training = volumes(name), volumes(against)
    rows = []
    for index in map(int, order):
        space = min(("voxels", "features"), key=lambda key: one[key]["ratio"][index])
        other = _array(training, one[space]["nearest"][index])
        pair = [_array(generated, index), other[::-1] if one[space]["mirrored"][index] else other]
        rows.append(np.hstack([np.asarray(preview_picture([v], size_mm, 170, [MEDIASTINAL_WINDOW])) for v in pair]))
    image = f'<img src="{_data_uri(Image.fromarray(np.vstack(rows)))}" alt="nearest pairs of {escape(name)}">'
    return (
        '<figure class="slices"><div class="columns" style="grid-template-columns: 1fr 1fr">'
        f"<span>{escape(name)}, nearest first</span><span>the nearest of {escape(against)}</span></div>{image}</figure>"
    )


def _methods(results: Mapping[str, Any]) -> str:
    settings, features = results["settings"], results["features"]
    hashes = "".join(
        f'<tr><th>{escape(name)}</th><td>{one["num_volumes"]:,}</td><td class="hash">{one["sha256"]}</td></tr>'
        for name, one in results["sets"].items()
    )
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    return (
        f"<h2>How it was measured</h2><p>Volumes are oriented to RAS, cropped or padded with air around their centre, "
        f"resampled (trilinear) only where the spacing is no whole fraction, and averaged to {_grid(results)}. HU are "
        f"clipped to {settings['hu_window'][0]:g} to {settings['hu_window'][1]:g}. {escape(settings['feature_preprocessing'])}"
        f"</p><p>Feature network: {escape(features['label'])}, sha256 of its weights "
        f'<span class="hash">{features["sha256"]}</span>. {settings["num_bootstrap"]} bootstrap samples (FID: at most 100), '
        f"seed {settings['seed']}. {escape(versions)}.</p>"
        "<table><thead><tr><th>set</th><th>N</th><th>sha256 of its files</th></tr></thead>"
        f'<tbody>{hashes}</tbody></table><p class="quiet">For research only, not for diagnosis. The same numbers, with '
        "more digits, are in metrics.json.</p>"
    )


def _array(volumes: Dataset, index: int) -> np.ndarray:
    return np.asarray(torch.as_tensor(volumes[index]["image"])[0])


def _data_uri(picture: Image.Image) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, format="png", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
