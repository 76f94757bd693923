"""CT volumes as NIfTI: read with the geometry that the file states, written so that every viewer shows them right."""

from __future__ import annotations

import gzip
import math
from typing import Optional, Sequence

import nibabel as nib
import numpy as np
from nibabel.arrayproxy import ArrayProxy

from ..files import PathLike, whole_file
from .geometry import one_volume, require_plausible
from .intensity import HU, PAPER_COMPAT, PAPER_COMPAT_STEP

# step of the stored integers, what viewers show black and white, what the header says
_STORAGE = {
    HU: (1.0, (-1000.0, 400.0), "in HU"),
    PAPER_COMPAT: (PAPER_COMPAT_STEP, (0.0, 1.0), "scaled to 0-1, not HU"),
}
PAIR_SUFFIXES = (".hdr", ".hdr.gz")
_SINGLES, _PAIRS = (nib.Nifti1Image, nib.Nifti2Image), (nib.Nifti1Pair, nib.Nifti2Pair)
_HEADER_BYTES = 540  # of NIfTI 2
_CODES = range(1, 6)  # of a form that is to be used
_UNIT_MM = {1: 1000.0, 2: 1.0, 3: 0.001}  # metre, millimetre, micron in xyzt_units; unknown is mm
_ROUNDING_RAD = 0.01  # angles of a qform and a sform that say the same


def read_nifti(path: PathLike) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Reads one volume: its array (X, Y, Z), as stored or scaled to float, its RAS affine in mm, and warnings.

    Raises:
        ValueError: with the reason, where the file does not say how the patient lies, or says it in two ways.
        Exception: of nibabel, NumPy or gzip, where the file is damaged.
    """
    header, voxels = read_header(path)
    shape = one_volume(header.get_data_shape())
    affine, warnings = _geometry(header, shape)
    require_plausible(shape, affine)
    offset, least = float(header["vox_offset"]), header.single_vox_offset if header.is_single else 0
    if not offset >= least:
        raise ValueError(f"cannot be read: its voxels start within its header (vox_offset {offset:g}); export it again")
    return _values(voxels, header).reshape(shape, order="F"), affine, warnings


def read_header(path: PathLike) -> tuple[nib.Nifti1Header, str]:
    """The header as it stands in a file, since nibabel's loader repairs it without a word, and the file of the voxels.

    Raises:
        ValueError: with the reason, where it is no NIfTI.
        Exception: of nibabel or gzip, where the file is damaged.
    """
    kinds = _PAIRS if str(path).lower().endswith(PAIR_SUFFIXES) else _SINGLES
    files = kinds[0].filespec_to_file_map(str(path))
    with files.get("header", files["image"]).get_prepare_fileobj() as file:
        start = file.read(_HEADER_BYTES)
        file.seek(0)
        header = _kind_of(start, kinds).header_class.from_fileobj(file, check=False)
    return header, str(files["image"].filename)


def _kind_of(start: bytes, kinds: Sequence[type[nib.Nifti1Pair]]) -> type[nib.Nifti1Pair]:
    for kind in kinds:
        if kind.header_class.may_contain_header(start):
            return kind
    if 348 in (int.from_bytes(start[:4], "little"), int.from_bytes(start[:4], "big")):
        raise ValueError("its orientation is not known: it is an Analyze file, not NIfTI")
    raise ValueError("cannot be read: it does not start like a NIfTI file; export it again")


def _values(name: str, header: nib.Nifti1Header) -> np.ndarray:
    """All voxels; of a compressed file to its very end, where its checksum is."""
    if not name.lower().endswith(".gz"):
        return _scaled(ArrayProxy(name, header))
    with gzip.open(name) as stream:
        array = _scaled(ArrayProxy(stream, header))
        while stream.read(1 << 20):
            pass
    return array


def _scaled(stored: ArrayProxy) -> np.ndarray:
    """Whole numbers stay what they are where nothing scales them; all else becomes float."""
    array = np.asanyarray(stored.get_unscaled())
    slope, inter = np.float32(stored.slope), np.float32(stored.inter)
    return array if slope == 1 and inter == 0 else array * slope + inter


def _geometry(header: nib.Nifti1Header, shape: Sequence[int]) -> tuple[np.ndarray, list[str]]:
    """The RAS affine in mm that the coded forms of a header agree on, and warnings."""
    coded = [name for name in ("sform", "qform") if int(header[f"{name}_code"]) in _CODES]
    if not coded:
        raise ValueError("its orientation is not known: sform_code and qform_code are 0")
    forms = {name: form for name in coded if (form := _form(header, name)) is not None}
    if not forms:
        raise ValueError(f"its geometry is not known: size or direction of the voxels is no number in its {coded[0]}")
    affine, *other = forms.values()
    warnings = [f"its {name} is damaged; the other form was used" for name in coded if name not in forms]
    warnings += _contradictions(affine, other[0], shape) if other else _other_sizes(header, affine, shape)
    scaled = affine.copy()
    scaled[:3] *= _UNIT_MM.get(int(header["xyzt_units"]) & 7, 1.0)
    return scaled, warnings


def _form(header: nib.Nifti1Header, name: str) -> Optional[np.ndarray]:
    """Affine of a form; None where it has none."""
    if name == "sform":
        affine = np.asarray(header.get_sform(), float)
    else:
        header = header.copy()
        header["pixdim"][0] = header["pixdim"][0] or 1  # the standard's reading of 0
        try:
            affine = np.asarray(header.get_qform(), float)
        except Exception:  # nibabel raises different kinds for sizes and for the quaternion
            return None
    columns = np.linalg.norm(affine[:3, :3], axis=0)
    usable = np.isfinite(affine).all() and columns.all() and abs(np.linalg.det(affine[:3, :3] / columns)) > 1e-2
    return affine if usable else None


def _contradictions(sform: np.ndarray, qform: np.ndarray, shape: Sequence[int]) -> list[str]:
    """Warnings about two forms that differ where one reading is certain; ValueError where none is."""
    difference, half_sides = sform - qform, np.subtract(shape, 1) / 2
    half_voxel = np.linalg.norm(sform[:3, :3], axis=0).min() / 2
    if _farthest(difference[:3, :3], half_sides) > half_voxel:
        if not _differ_by_shear(sform, qform):
            raise ValueError("its sform and qform contradict each other on how the patient lies or how large it is")
        return ["its sform is sheared, which the qform cannot hold; the sform was used"]
    apart = float(np.linalg.norm(difference[:3, :3] @ half_sides + difference[:3, 3]))
    return [f"its sform and qform place it {apart:.0f} mm apart; the sform was used"] if apart > half_voxel else []


def _farthest(matrix: np.ndarray, half_sides: np.ndarray) -> float:
    """Largest length of what a matrix (3, 3) makes of the corners of a box around 0."""
    corners = np.stack(np.meshgrid(*[(-half, half) for half in half_sides], indexing="ij"), -1).reshape(-1, 3)
    return float(np.linalg.norm(corners @ matrix.T, axis=1).max())


def _shear(affine: np.ndarray) -> float:
    """Largest angle by which two axes are not perpendicular, in radians."""
    directions = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    return math.asin(min(1.0, float(np.abs(directions.T @ directions - np.eye(3)).max())))


def _differ_by_shear(sform: np.ndarray, qform: np.ndarray) -> bool:
    """Whether the qform is the sform of a tilted gantry without its shear, all that a qform can hold."""
    shear = _shear(sform)
    sizes = [np.linalg.norm(form[:3, :3], axis=0) for form in (sform, qform)]
    cosines = np.einsum("ij,ij->j", sform[:3, :3] / sizes[0], qform[:3, :3] / sizes[1])
    turned = np.arccos(np.clip(cosines, -1, 1)).max()
    stretched = np.abs(np.log(sizes[0] / sizes[1])).max()
    return shear > _ROUNDING_RAD and turned < shear + _ROUNDING_RAD and stretched < 0.01 - math.log(math.cos(shear))


def _other_sizes(header: nib.Nifti1Header, affine: np.ndarray, shape: Sequence[int]) -> list[str]:
    """ValueError where pixdim, which repeats the voxel size, contradicts the only form by more than half a voxel."""
    own, told = np.linalg.norm(affine[:3, :3], axis=0), np.abs(np.asarray(header["pixdim"][1:4], float))
    comparable = np.isfinite(told).all() and told.all() and _shear(affine) < _ROUNDING_RAD
    if comparable and (np.abs(own - told) * shape > own / 2).any():
        own_text, told_text = (" x ".join(f"{value:g}" for value in sizes) for sizes in (own, told))
        raise ValueError(f"its voxel size is not known: {own_text} by its form, {told_text} by its pixdim")
    return []


def save_nifti(volume: np.ndarray, affine: np.ndarray, path: PathLike, description: str, intensity: str = HU) -> None:
    """Writes a volume (X, Y, Z) as int16 with its RAS affine in mm, in sform and qform; the same bytes every time.

    Args:
        volume: values.
        affine: (4, 4).
        path: ends in .nii.gz.
        description: at most 55 characters; what the values are is added.
        intensity: 'HU' or 'paper_compat'.
    """
    slope, display, unit = _STORAGE[intensity]
    image = nib.Nifti1Image(np.rint(volume / slope).astype(np.int16), affine)
    image.set_sform(affine, code="scanner")
    image.set_qform(affine, code="scanner")
    image.header.set_xyzt_units("mm")
    image.header["cal_min"], image.header["cal_max"] = display
    image.header["descrip"] = f"{description}, {unit}".encode()
    image.header.set_slope_inter(slope, 0)
    with whole_file(path) as file, gzip.GzipFile("", "wb", 1, file, mtime=0) as compressed:
        image.to_stream(compressed)
