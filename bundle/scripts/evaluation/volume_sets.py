"""The sets of volumes to compare: where they are, that they are comparable, and the grid they are compared on."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Mapping, Optional, Sequence, Union

import nibabel as nib
import numpy as np

from ..data import ct_datalist
from ..data.geometry import three
from ..data.ingest.places import list_files
from ..data.intensity import PAPER_COMPAT
from ..data.phantoms import phantom, shapes
from ..files import sha256_of

ROLES = ("real", "training")  # of the sets that generators are compared with; each is also the set's name
REFERENCE = "reference phantoms"  # what reports call the real set where it is phantoms
FIRST_REFERENCE_PHANTOM = 2_000_000  # seeds that no training or validation set has


@dataclass
class VolumeSet:
    """Volumes that are measured together.

    Attributes:
        name: in tables; 'real', 'training', or that of a generator.
        items: {'image': path of a file or DICOM folder, or seed of a phantom}, and 'series' for DICOM.
        folder: they come from; None for phantoms.
        paper_compat: whether they are scaled per volume as in the published pipelines, and so are not in HU.
        hashes: sha256 of each volume's files, filled in by `hash_volumes`.
    """

    name: str
    items: list[dict[str, Any]]
    folder: Optional[Path] = None
    paper_compat: bool = False
    hashes: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.items)

    @property
    def role(self) -> str:
        """'real', 'training', or 'generated'."""
        return self.name if self.name in ROLES else "generated"

    @property
    def inputs(self) -> list[dict[str, Any]]:
        """What `LoadCTd` needs of each item."""
        return [{key: item[key] for key in ("image", "series", "intensity") if key in item} for item in self.items]

    @property
    def sha256(self) -> str:
        """Of the whole set, whatever the order and names of its files."""
        return hashlib.sha256("".join(sorted(self.hashes)).encode()).hexdigest()

    def label(self, index: int) -> str:
        """Name of a volume for people: its path in the folder, or its seed."""
        image = self.items[index]["image"]
        if isinstance(image, int):
            return f"phantom {image}"
        path = Path(image)  # a dataset.json may name files elsewhere
        return str(path.relative_to(self.folder)) if self.folder and path.is_relative_to(self.folder) else path.name


def load_sets(
    real_dir: Optional[str],
    generated_dir: Optional[str],
    generated_dirs: Optional[dict[str, str]] = None,
    training_dir: Optional[str] = None,
    real_section: str = "all",
    num_phantoms: int = 64,
    max_volumes: Optional[int] = None,
    intensity: Optional[Mapping[str, str]] = None,
) -> dict[str, VolumeSet]:
    """All sets of an evaluation by name: 'real', 'training' where it is another folder, and the generators'.

    `intensity` says of sets by name that they are scaled, '0 to 1' or '-1 to 1', and no HU; see `real_set` for the rest.

    Raises:
        ValueError: in one line, when a folder is missing, empty, given twice, or must not be compared with the others.
    """
    sets = generated_sets(generated_dir, generated_dirs, max_volumes)
    sets.insert(0, real_set(real_dir, real_section, num_phantoms, max_volumes))
    if training_dir is not None:
        section = "training" if (Path(training_dir) / "dataset.json").is_file() else "all"
        sets.insert(1, real_set(training_dir, section, role="training"))
    for name, one in (intensity or {}).items():
        _set_intensity(name, one, sets)
    check_sets(sets)
    hash_volumes(sets)
    return {one.name: one for one in sets}


def _set_intensity(name: str, intensity: str, sets: Sequence[VolumeSet]) -> None:
    found = {one.name: one for one in sets if one.folder is not None}
    if name not in found:
        raise ValueError(f"intensity names {name}, but the folders to compare are {', '.join(found)}")
    found[name].paper_compat = True
    for item in found[name].items:
        item["intensity"] = intensity


def real_set(
    real_dir: Optional[str],
    section: str = "all",
    num_phantoms: int = 64,
    max_volumes: Optional[int] = None,
    role: str = "real",
) -> VolumeSet:
    """The real volumes, or those that the generator was trained on.

    Args:
        real_dir: prepared data set or any folder that `ct_datalist` reads; None for phantoms that no training set has.
        section: 'training' or 'validation' of the data set, or 'all'.
        num_phantoms: number of phantoms where real_dir is None.
        max_volumes: at most so many, evenly spaced in the list.
        role: 'real' or 'training'.

    Raises:
        ValueError: in one line.
    """
    if real_dir is None:
        seeds = range(FIRST_REFERENCE_PHANTOM, FIRST_REFERENCE_PHANTOM + num_phantoms)
        return VolumeSet("real", [{"image": seed} for seed in seeds])
    if section not in ("all", "training", "validation"):
        raise ValueError(f"real_section must be all, training or validation, not {section}")
    lists = ct_datalist(real_dir, setting=f"{role}_dir")
    items = lists["training"] + lists["validation"] if section == "all" else lists[section]
    items = list({(item["image"], item.get("series")): item for item in items}.values())
    return VolumeSet(role, _at_most(items, max_volumes), Path(real_dir), _is_paper_compat(Path(real_dir)))


def generated_sets(
    generated_dir: Optional[str], generated_dirs: Optional[Mapping[str, str]], max_volumes: Optional[int] = None
) -> list[VolumeSet]:
    """The generated volumes: one folder of NIfTI, or several with a name each.

    Raises:
        ValueError: in one line.
    """
    folders = dict(generated_dirs or {})
    if generated_dir is not None:
        folders = {"generated": generated_dir, **folders}
    if not folders:
        raise ValueError("generated_dir is not given: name a folder of generated NIfTI")
    return [_generated_set(name, Path(folder), max_volumes) for name, folder in folders.items()]


def _generated_set(name: str, folder: Path, max_volumes: Optional[int]) -> VolumeSet:
    if name in (*ROLES, REFERENCE):
        raise ValueError(f"generated_dirs: {name} is the name of another set; choose another one")
    setting = "generated_dir" if name == "generated" else f"generated_dirs['{name}']"
    if not folder.is_dir():
        raise ValueError(f"{setting} {folder} is no folder")
    paths = sorted(path for path in list_files([folder], Counter()) if path.endswith((".nii", ".nii.gz")))
    if not paths:
        raise ValueError(f"{setting} {folder} holds no NIfTI file")
    scaled = _is_paper_compat(folder)
    items = [{"image": path, **({"intensity": PAPER_COMPAT} if scaled else {})} for path in paths]
    return VolumeSet(name, _at_most(items, max_volumes), Path(os.path.abspath(folder)), scaled)


def _at_most(items: list[dict[str, Any]], count: Optional[int]) -> list[dict[str, Any]]:
    if count is None or len(items) <= count:
        return items
    return [items[int(i)] for i in np.linspace(0, len(items) - 1, count)]


def _is_paper_compat(folder: Path) -> bool:
    """Whether dataset.json or a volume's JSON says that HU were scaled away, volume by volume."""
    of_volumes = (path for path in sorted(folder.glob("*.json")) if _has_volume(path))
    for path in (folder / "dataset.json", *islice(of_volumes, 1)):
        try:
            if json.loads(path.read_text()).get("intensity") == PAPER_COMPAT:
                return True
        except (OSError, ValueError, AttributeError, RecursionError):
            continue
    return False


def _has_volume(path: Path) -> bool:
    """Whether the volume that a JSON may describe lies beside it; reports have none."""
    return any(path.with_suffix(suffix).is_file() for suffix in (".nii", ".nii.gz"))


def check_sets(sets: Sequence[VolumeSet]) -> None:
    """Raises a ValueError in one line where sets must not be compared."""
    for index, one in enumerate(sets):
        for other in sets[index + 1 :]:
            if one.folder and other.folder and _nested(one.folder, other.folder):
                if {one.role, other.role} != set(ROLES):
                    raise ValueError(f"{one.name} and {other.name} share files: {one.folder} and {other.folder}")
            if one.paper_compat != other.paper_compat:
                scaled, plain = (one, other) if one.paper_compat else (other, one)
                raise ValueError(
                    f"{scaled.name} is scaled volume by volume, no HU, and {plain.name} is not: they are never mixed in one "
                    "number; the setting intensity says of folders that they are scaled"
                )


def _nested(a: Path, b: Path) -> bool:
    a, b = a.resolve(), b.resolve()
    return a == b or a in b.parents or b in a.parents


def generators(sets: Mapping[str, VolumeSet]) -> list[str]:
    """Names of the sets that generators made."""
    return [name for name, one in sets.items() if one.role == "generated"]


def common_grid(
    sets: Mapping[str, VolumeSet],
    grid: Optional[Sequence[int]] = None,
    field_of_view_mm: Union[float, Sequence[float], None] = None,
) -> dict[str, list]:
    """The grid that all volumes are brought to: the given one, or that of the generated volumes.

    Args:
        sets: of `load_sets`.
        grid: voxels along each axis.
        field_of_view_mm: size along each axis, or of all axes.

    Returns:
        {'grid': [X, Y, Z], 'field_of_view_mm': [x, y, z]}.

    Raises:
        ValueError: in one line, when the generated volumes have several grids and none is given.
    """
    if (grid is None) != (field_of_view_mm is None):
        raise ValueError("grid and field_of_view_mm go together: give both, or none")
    if grid is not None and field_of_view_mm is not None:
        return {"grid": [int(side) for side in three(grid)], "field_of_view_mm": three(field_of_view_mm)}
    first: Optional[tuple[str, list[int], list[float]]] = None
    for item in (item for name in generators(sets) for item in sets[name].items):
        shape, size = _geometry(item["image"])
        if first is None:
            first = (item["image"], shape, size)
        elif shape != first[1] or not np.allclose(size, first[2], rtol=1e-3):
            raise ValueError(
                f"{item['image']} has a grid of {shape} over {_mm(size)} mm, {first[0]} one of {first[1]} over "
                f"{_mm(first[2])} mm: give --grid and --field_of_view_mm to bring all to one"
            )
    assert first is not None
    return {"grid": first[1], "field_of_view_mm": first[2]}


def _geometry(path: str) -> tuple[list[int], list[float]]:
    """Voxels and size in mm along x, y, z of a NIfTI, from its header."""
    try:
        image = nib.Nifti1Image.from_filename(path)
    except Exception:  # nibabel raises whatever it likes on a broken file
        raise ValueError(f"{path} cannot be read as a volume; remove it or make it again") from None
    if len(image.shape) != 3:
        raise ValueError(f"{path} is not one 3D volume: its shape is {image.shape}")
    order = np.argsort(nib.io_orientation(image.affine)[:, 0])
    sizes = nib.affines.voxel_sizes(image.affine) * image.shape
    return [image.shape[axis] for axis in order], [round(float(sizes[axis]), 4) for axis in order]


def _mm(size: Sequence[float]) -> str:
    return " x ".join(f"{side:g}" for side in size)


def hash_volumes(sets: Sequence[VolumeSet]) -> None:
    """Fills in the hash of each volume: of its file or files, or for a phantom of the code that draws it."""
    code = "".join(sha256_of(str(module.__file__)) for module in (phantom, shapes))

    def content_hash(item: dict[str, Any]) -> str:
        if isinstance(item["image"], int):
            return hashlib.sha256(f"{code} {item['image']}".encode()).hexdigest()
        slices = item["series"].slices if "series" in item else ()
        parts = [sha256_of(file) for file in dict.fromkeys(one.path for one in slices) or [item["image"]]]
        parts += [item["intensity"]] if "intensity" in item else []  # the same file read otherwise is another volume
        return parts[0] if len(parts) == 1 else hashlib.sha256("".join(parts).encode()).hexdigest()

    with ThreadPoolExecutor() as pool:
        for one in sets:
            one.hashes = list(pool.map(content_hash, one.items))
