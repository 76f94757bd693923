"""MetaImage and NRRD, read by ITK where the header says how the patient lies; ITK itself assumes what is missing."""

from __future__ import annotations

import re
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Iterator

import numpy as np

from ..files import PathLike
from .geometry import one_volume, require_plausible

META_SUFFIXES, NRRD_SUFFIXES = (".mha", ".mhd"), (".nrrd", ".nhdr")
_HEADER_BYTES = 1 << 20  # at most
_NRRD_SPACES = ("right-anterior-superior", "left-anterior-superior", "left-posterior-superior", "ras", "las", "lps")
_MOST_AXES = 10  # of MetaIO's arrays: with more of them it ends the process
_ROUNDING = 1e-2  # of directions' lengths
_UNIT_MM = {"": 1.0, "?": 1.0, "mm": 1.0, "millimeter": 1.0, "cm": 10.0, "m": 1000.0, "meter": 1000.0, "um": 0.001}


def read_itk(path: PathLike) -> tuple[np.ndarray, np.ndarray]:
    """Reads one volume: its array (X, Y, Z) as it is stored, and its RAS affine in mm.

    Raises:
        ValueError: with the reason, where the header does not say how the patient lies or is no volume's.
        Exception: of ITK, where the file is damaged.
    """
    import itk  # takes long, and few need it

    unit_mm = _stated_unit(Path(path))
    with _ascii_name(Path(path)) as name:
        header = itk.ImageIOFactory.CreateImageIO(name, itk.CommonEnums.IOFileMode_ReadMode)
        if header is None:
            raise ValueError("not readable as MetaImage or NRRD: damaged, or not what its name says")
        header.SetFileName(name)
        header.ReadImageInformation()
        if header.GetNumberOfComponents() != 1:
            raise ValueError(f"its voxels are {header.GetNumberOfComponents()} numbers each, HU are one")
        shape = one_volume([header.GetDimensions(axis) for axis in range(header.GetNumberOfDimensions())])
        lps = np.eye(4)
        for axis in range(3):
            direction = np.array(header.GetDirection(axis)[:3])
            if abs(np.linalg.norm(direction) - 1) > _ROUNDING:
                raise ValueError("its voxel size is not known: TransformMatrix has directions that are not of length 1")
            lps[:3, axis] = direction * header.GetSpacing(axis)
            lps[axis, 3] = header.GetOrigin(axis)
        affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ lps
        affine[:3] *= unit_mm
        require_plausible(shape, affine)
        stored = itk.array_view_from_image(itk.imread(name, None if _has_image_type(header) else itk.F))
    return stored.T.reshape(shape, order="F"), affine


def _has_image_type(header: Any) -> bool:
    """Whether ITK's wheels have an image of such voxels. Where they have none, it looks for one for half a minute."""
    kinds = ("unsigned_char", "short", "unsigned_short", "int", "unsigned_int", "float", "double")
    import itk

    is_scalar = header.GetPixelType() == itk.CommonEnums.IOPixel_SCALAR
    return is_scalar and header.GetComponentTypeAsString(header.GetComponentType()) in kinds


@contextmanager
def _ascii_name(path: Path) -> Iterator[str]:
    """A name for a file that ITK can open: it takes none but UTF-8, so others are linked."""
    try:
        str(path).encode()
        yield str(path)
    except UnicodeEncodeError:
        with TemporaryDirectory() as folder:
            link = Path(folder, "folder")
            link.symlink_to(path.parent.absolute(), target_is_directory=True)  # the data may lie beside the header
            named = link / path.name
            if not path.name.isascii():
                named = Path(folder, "volume" + path.suffix)
                named.symlink_to(path.absolute())
            yield str(named)


def _stated_unit(path: Path) -> float:
    """The unit of length in mm; ValueError where the header does not say how the axes lie in the patient."""
    with open(path, "rb") as file:
        head = file.read(_HEADER_BYTES)
    if path.suffix.lower() in NRRD_SUFFIXES:
        fields = _fields(re.split(rb"\r?\n\r?\n", head, maxsplit=1)[0], rb"^([^#:\r\n]+):[ \t]*([^=\r\n][^\r\n]*)")
        stated = fields.get("space", "").lower() in _NRRD_SPACES and "(" in fields.get("space directions", "")
        what, units = "space, space directions", set(re.findall(r'"([^"]*)"', fields.get("space units", "")))
    else:
        head = re.split(rb"(?i)ElementDataFile", head, maxsplit=1)[0]
        fields = _fields(head, rb"^[ \t]*(\w+)[ \t]*=[ \t]*([^\r\n]*)")
        stated = bool({"transformmatrix", "rotation", "orientation"} & fields.keys())
        axes = fields.get("ndims", "")
        if not (axes.isdecimal() and int(axes) <= _MOST_AXES):
            raise ValueError("its header has no possible number of axes (NDims)")
        what, units = "TransformMatrix", {fields.get("distanceunits", "")}
        if not {"elementspacing", "elementsize"} & fields.keys():
            raise ValueError("its voxel size is not known: its header has neither ElementSpacing nor ElementSize")
    if not stated:
        raise ValueError(f"its orientation is not known: its header does not say how the patient lies ({what})")
    unit = units.pop().strip().lower() if len(units) == 1 else ""
    if units or unit.rstrip("s") not in _UNIT_MM:
        raise ValueError("its voxel size is not known: its header has a unit of length that is none of mm, cm, m, um")
    return _UNIT_MM[unit.rstrip("s")]


def _fields(head: bytes, pattern: bytes) -> dict[str, str]:
    found = re.findall(pattern, head, re.MULTILINE)
    return {key.strip().decode("latin-1").lower(): value.strip().decode("latin-1") for key, value in found}
