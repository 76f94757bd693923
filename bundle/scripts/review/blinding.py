"""Does anything but the anatomy tell a reader which cases are synthetic? Every study is checked before it is handed out.

What is sure to leak (`find_leaks`) is a fault of the study: sizes and times of files, other names, fields or text than every
case has. What separates the two kinds of cases by a number that anybody could compute (`telling_features`) may also be a
fault of the generator, and is told to the organiser.
"""

from __future__ import annotations

import base64
import gzip
import json
import re
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any, Callable, Mapping, Optional, Sequence

import numpy as np
from scipy import ndimage, stats

from ..files import PathLike
from .viewer import write_reader_page

SIGNIFICANCE = 0.01  # of all features together
_SCRIPT = re.compile(rb'prditVolume\((\{.*?\}),"([A-Za-z0-9+/=]*)"\);\n(?://[^\n]*\n)?')
_BLOCK = 3  # voxels along each axis, whose spread is taken for noise
_LOW = 0.2  # quantile of these spreads


def read_volume_script(path: PathLike) -> tuple[np.ndarray, dict[str, Any]]:
    """What `write_volume_script` wrote: the volume, int16 (X, Y, Z), and the fields beside it.

    Raises:
        ValueError: in one line, when it is no such script.
    """
    return _parts(path)[:2]


def _parts(path: PathLike) -> tuple[np.ndarray, dict[str, Any], str]:
    """A script's volume, its fields, and the text around both, without the filling."""
    content = Path(path).read_bytes()
    try:
        found = _SCRIPT.search(content)
        header = json.loads(found[1])  # type: ignore[index]
        voxels = np.frombuffer(gzip.decompress(base64.b64decode(found[2])), "<i2")  # type: ignore[index]
        volume = voxels.reshape(header["shape"][::-1]).T
    except Exception:  # a damaged file fails anywhere
        raise ValueError(f"{path} is no volume of a reader study, or damaged") from None
    around = content[: found.start()] + content[found.end() :]  # type: ignore[union-attr]
    return volume, header, around.decode(errors="replace")


def find_leaks(folder: PathLike, page: Mapping[str, Any]) -> list[str]:
    """What in a reader's folder differs between cases, or says more than the study does; empty where nothing is wrong.

    Args:
        folder: of the reader.
        page: all that its page may know, as for `write_reader_page`; nothing in it may depend on which cases are real.
    """
    folder = Path(folder)
    cases = [*page["cases"], *([page["trial"]] if page["trial"] else [])]
    paths = {case["id"]: folder / case["script"] for case in cases}
    there = {path for path in folder.rglob("*") if path.is_file()}
    expected = {folder / "index.html", *paths.values()}
    if there != expected:
        strange = sorted(str(path.relative_to(folder)) for path in there ^ expected)
        return [f"files that are too many or missing: {', '.join(strange)}"]
    leaks = _odd_ones("size of its file", {name: path.stat().st_size for name, path in paths.items()})
    everything = [folder, *folder.rglob("*")]
    leaks += _odd_ones("time of its file", {str(p.relative_to(folder)): p.stat().st_mtime_ns for p in everything})
    leaks += _odd_ones("rights of its file", {name: path.stat().st_mode for name, path in paths.items()})
    leaks += [
        f"{case['id']}: its entry in the page has other fields" for case in cases if set(case) != {"id", "script"}
    ]
    leaks += _odd_ones("name of its file", {c["id"]: c["script"].replace(c["id"], "") for c in cases})
    frames = {}
    for name, path in paths.items():
        volume, header, around = _parts(path)
        if header.pop("name") != name:
            leaks.append(f"{name}: its script has another name in it")
        if volume.min() == volume.max():
            leaks.append(f"{name}: it is empty")
        frames[name] = json.dumps(header, sort_keys=True) + around
    leaks += _odd_ones("text around its voxels", frames)
    with tempfile.TemporaryDirectory() as plain:
        write_reader_page(plain, page)
        if (Path(plain) / "index.html").read_bytes() != (folder / "index.html").read_bytes():
            leaks.append("index.html says something else than the same page of any other study does")
    return leaks


def _odd_ones(what: str, values: Mapping[str, Any]) -> list[str]:
    """Says which cases do not have the value that most have."""
    usual = Counter(values.values()).most_common(1)[0][0]
    odd = [name for name, value in values.items() if value != usual]
    return [f"{', '.join(sorted(odd))}: the {what} is unlike that of the others"] if odd else []


def _border(volume: np.ndarray) -> int:
    """Slices without any difference at the ends of the volume along z: padding."""
    flat = np.ptp(volume.reshape(-1, volume.shape[2]), axis=0) == 0
    return int(flat.size if flat.all() else flat.argmin() + flat[::-1].argmin())


def _noise(volume: np.ndarray) -> float:
    """Standard deviation within small blocks of soft tissue, HU, where it is low: away from the borders of organs."""
    values = volume.astype(np.float32)
    mean = ndimage.uniform_filter(values, _BLOCK)
    variance = ndimage.uniform_filter(values**2, _BLOCK) - mean**2
    tissue = (mean > -150) & (mean < 150)
    return float(np.sqrt(np.quantile(variance[tissue] if tissue.any() else variance, _LOW).clip(0)))


def _corners(volume: np.ndarray) -> float:
    return float(volume[:: volume.shape[0] - 1, :: volume.shape[1] - 1, :: volume.shape[2] - 1].mean())


FEATURES: dict[str, tuple[Callable[[np.ndarray], float], str]] = {  # name: of a volume (X, Y, Z), and what may help
    "smallest value": (lambda v: float(v.min()), "a higher lower end of hu_window"),
    "largest value": (lambda v: float(v.max()), "a lower upper end of hu_window"),
    "share of voxels at the smallest value": (lambda v: float((v == v.min()).mean()), "remove_table"),
    "share of voxels at the largest value": (lambda v: float((v == v.max()).mean()), "a lower upper end of hu_window"),
    "value at the corners": (_corners, "remove_table, or a smaller field_of_view_mm"),
    "empty slices at the ends": (_border, "a smaller field_of_view_mm"),
    "share of odd values": (lambda v: float((v % 2).mean()), "more blur"),
    "compressibility": (lambda v: float(len(gzip.compress(v.tobytes(), 1))), "more blur, or a coarser spacing"),
    "noise in soft tissue": (_noise, "more blur, or a coarser spacing"),
}


def features_of(volume: np.ndarray) -> dict[str, float]:
    """What a program without any idea of anatomy could sort volumes (X, Y, Z) by."""
    return {name: measure(volume) for name, (measure, _) in FEATURES.items()}


def telling_features(features: Sequence[Mapping[str, float]], synthetic: Sequence[bool]) -> list[dict[str, Any]]:
    """The features that sort the cases into real and synthetic better than chance.

    Mann-Whitney tests, at a level of 1 % for all features together (Bonferroni).

    Args:
        features: of each case, from `features_of`.
        synthetic: whether each case is.

    Returns:
        'feature', 'auc' (1 or 0: it sorts all cases), 'p_value' and 'remedy' of each.
    """
    truth, found = np.asarray(synthetic, bool), []
    for name in features[0]:
        values = np.array([one[name] for one in features])
        auc, p_value = _separation(values[truth], values[~truth])
        if p_value is not None and p_value * len(features[0]) < SIGNIFICANCE:
            remedy = FEATURES[name][1] if name in FEATURES else ""
            found.append({"feature": name, "auc": auc, "p_value": p_value, "remedy": remedy})
    return found


def _separation(high: np.ndarray, low: np.ndarray) -> tuple[float, Optional[float]]:
    if len(np.unique([*high, *low])) == 1:
        return 0.5, None
    test = stats.mannwhitneyu(high, low)
    return float(test.statistic / (len(high) * len(low))), float(test.pvalue)
