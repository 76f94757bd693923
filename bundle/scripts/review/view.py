"""`view.html` for folders of NIfTI in HU, whoever made them: one folder, and another one to look at beside it."""

from __future__ import annotations

from collections import Counter
from functools import partial
from pathlib import Path
from typing import Optional, Sequence

import numpy as np

from ..data.ingest.places import list_files
from ..data.training.transforms import LoadCTd
from ..errors import require_writable
from ..files import hold, release, remove_leftovers, sha256_of
from ..words import count
from .viewer import Viewed, write_view

_SUFFIXES = (".nii", ".nii.gz")


def view_folders(
    source_dir: str,
    output_dir: str,
    beside_dir: Optional[str] = None,
    max_volumes: int = 24,
    hu_window: Sequence[float] = (-1000.0, 1000.0),
) -> None:
    """Writes `view.html` and the volumes that it shows.

    Args:
        source_dir: folder of NIfTI in HU.
        output_dir: of the page.
        beside_dir: another folder, whose volumes are to be looked at beside those of the first.
        max_volumes: of each folder, the first by name.
        hu_window: volumes that were clipped to it are HU, too.

    Raises:
        ValueError: in one line, when a folder is missing or holds no NIfTI; or, after all else is written, when volumes
            were left out that cannot be read or are not HU.
    """
    folders = {"source_dir": source_dir, **({} if beside_dir is None else {"beside_dir": beside_dir})}
    groups = _group_names(list(folders.values()))
    volumes, notes = [], ["For research only, not for diagnosis."]
    for (setting, folder), group in zip(folders.items(), groups):
        found = _nifti_files(setting, Path(folder))
        if len(found) > max_volumes:
            notes.append(f"{max_volumes} of {len(found)} volumes in {group} are shown, the first by name")
        volumes += [_viewed(path, Path(folder), group, hu_window) for path in found[:max_volumes]]
    output = require_writable(output_dir, "output_dir")
    hold(output, "output_dir")
    remove_leftovers(output)
    left_out = write_view(output, volumes, "Volumes of " + " and ".join(groups), notes)
    release(output)
    print(f"view.html of {count(len(volumes) - len(left_out), 'volume')} is in {output_dir}")
    if left_out:
        raise ValueError(f"{count(len(left_out), 'volume')} left out: " + "; ".join(left_out.values()))


def _nifti_files(setting: str, folder: Path) -> list[str]:
    found = sorted(path for path in list_files([folder], Counter()) if path.lower().endswith(_SUFFIXES))
    if not found:
        raise ValueError(f"{setting} {folder} holds no NIfTI file")
    return found


def _group_names(folders: Sequence[str]) -> list[str]:
    """Names of the folders; their paths where that is the same name."""
    names = [Path(folder).resolve().name for folder in folders]
    return names if len(set(names)) == len(names) else [str(folder) for folder in folders]


def _viewed(path: str, folder: Path, group: str, hu_window: Sequence[float]) -> Viewed:
    file = Path(path)
    name = file.relative_to(folder.absolute()) if file.is_relative_to(folder.absolute()) else Path(file.name)
    short = str(name)
    for suffix in (".gz", ".nii"):
        short = short[: -len(suffix)] if short.lower().endswith(suffix) else short
    return Viewed(short, partial(_load, path, hu_window), group, digest=sha256_of(path))


def _load(path: str, hu_window: Sequence[float]) -> tuple[np.ndarray, list[float]]:
    volume = LoadCTd("image", grid=[1, 1, 1], field_of_view_mm=1.0, hu_window=hu_window)({"image": path})["image"]
    limits = np.iinfo(np.int16)
    hu = np.rint(volume.as_tensor()[0].numpy()).clip(limits.min, limits.max).astype(np.int16)
    return hu, [float(side) for side in volume.pixdim]
