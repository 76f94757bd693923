"""CT series from DICOM files in any layout: grouped and sorted by geometry, checked, decoded to HU."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, Iterable, Sequence, Union

import numpy as np
import pydicom
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError
from pydicom.uid import (
    CTImageStorage,
    EnhancedCTImageStorage,
    LegacyConvertedEnhancedCTImageStorage,
    MediaStorageDirectoryStorage,
)

MIN_SLICES = 8  # fewer are scouts, bolus tracking, key images
_CT_STORAGE = (CTImageStorage, EnhancedCTImageStorage, LegacyConvertedEnhancedCTImageStorage)
_HEADER_TAGS = (
    "SOPClassUID SOPInstanceUID Modality ImageType PatientID StudyInstanceUID SeriesInstanceUID AcquisitionNumber "
    "ImagePositionPatient ImageOrientationPatient PixelSpacing Rows Columns RescaleSlope RescaleIntercept "
    "GantryDetectorTilt NumberOfFrames SharedFunctionalGroupsSequence PerFrameFunctionalGroupsSequence"
).split()
_SAME_PLACE_MM = 0.01
_GAP_TOLERANCE = 0.1  # share of the slice distance
MAX_TILT_DEGREES = 0.5  # less is rounding of the tags


class LeftOut(ValueError):
    """A file that is not wanted but no reason to worry: a localizer, a report."""


@dataclass(frozen=True, slots=True)
class Slice:
    """One CT image: a file, or a frame of one. Lengths are in mm, in DICOM's LPS frame."""

    path: str
    frame: int
    instance: str
    patient: str
    study: str
    series: str
    acquisition: str
    position: tuple[float, ...]  # of the first pixel's centre
    orientation: tuple[float, ...]  # unit vectors along a row, then down a column
    spacing: tuple[float, ...]  # between rows, between columns
    shape: tuple[int, int]  # rows, columns
    slope: float
    intercept: float
    tilt_tag: float  # degrees


@dataclass(frozen=True)
class Series:
    """A regular stack of slices, sorted along the patient."""

    slices: tuple[Slice, ...]

    @property
    def affine(self) -> np.ndarray:
        """RAS affine (4, 4) of the axes slice, row, column; it carries the tilt of the gantry as a shear."""
        first, last = self.slices[0], self.slices[-1]
        affine = np.eye(4)
        affine[:3, 0] = np.subtract(last.position, first.position) / (len(self.slices) - 1)
        affine[:3, 1] = np.multiply(first.orientation[3:], first.spacing[0])
        affine[:3, 2] = np.multiply(first.orientation[:3], first.spacing[1])
        affine[:3, 3] = first.position
        return np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine

    @property
    def files(self) -> list[str]:
        """All files, each once."""
        return sorted({item.path for item in self.slices})

    @property
    def step_mm(self) -> float:
        """Distance of the slices."""
        return float(np.linalg.norm(self.affine[:3, 0]))

    @property
    def tilt_degrees(self) -> float:
        """Angle between the stack's axis and the slices' normal."""
        step = self.affine[:3, 0]
        normal = np.cross(self.affine[:3, 2], self.affine[:3, 1])
        cosine = abs(step @ normal) / (np.linalg.norm(step) * np.linalg.norm(normal))
        return math.degrees(math.acos(min(float(cosine), 1.0)))


@dataclass(frozen=True)
class BadSeries:
    """Slices that are no usable series, and why."""

    slices: tuple[Slice, ...]
    reason: str


def is_dicom(path: Path) -> bool:
    """Whether a file starts as DICOM does, or is called like it; old archives lack the preamble."""
    with open(path, "rb") as file:
        return file.read(132)[128:] == b"DICM" or path.suffix.lower() in (".dcm", ".ima")


def read_slices(path: Union[str, Path]) -> list[Slice]:
    """The CT images of a DICOM file, without their pixels.

    Raises:
        LeftOut: when the file is beside the point: a localizer, report, secondary capture or directory.
        ValueError: with the reason, when it cannot be read, or is a CT image without geometry.
    """
    try:
        item = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=_HEADER_TAGS, force=True)
        kind = item.get("SOPClassUID") or item.file_meta.get("MediaStorageSOPClassUID")
    except (InvalidDicomError, OSError, EOFError, ValueError, AttributeError, KeyError, NotImplementedError):
        kind = None
    if kind is None:
        raise ValueError("not readable as DICOM: empty, truncated or another format")
    if kind == MediaStorageDirectoryStorage:
        raise LeftOut("DICOM directory")
    if kind not in _CT_STORAGE:
        modality = item.get("Modality", "unknown")
        if modality in ("CT", "SR", "PR", "KO", "DOC", "SEG", "REG", "RTSTRUCT", "OT"):
            raise LeftOut("report, annotation or secondary capture")
        raise ValueError(f"not CT: modality {modality}")
    if "LOCALIZER" in item.get("ImageType", []):
        raise LeftOut("localizer")
    try:
        return [_slice(str(path), frame, item, tags) for frame, tags in enumerate(_frames(item))]
    except (KeyError, AttributeError, TypeError, ValueError, IndexError):
        raise ValueError("a CT image without position, orientation, pixel spacing or size") from None


def _frames(item: Dataset) -> Iterable[dict[str, Any]]:
    """For each frame the tags that describe its plane, wherever the file keeps them."""
    if "PerFrameFunctionalGroupsSequence" not in item:
        if int(item.get("NumberOfFrames") or 1) > 1:
            raise ValueError("frames without position")
        yield _flat([item])
        return
    shared = item.get("SharedFunctionalGroupsSequence") or [Dataset()]
    for own in item.PerFrameFunctionalGroupsSequence:
        groups = [element.value[0] for group in (shared[0], own) for element in group if element.VR == "SQ"]
        yield _flat([item, *(group for group in groups if len(group))])


def _flat(datasets: Sequence[Dataset]) -> dict[str, Any]:
    return {element.keyword: element.value for dataset in datasets for element in dataset if element.VR != "SQ"}


def _slice(path: str, frame: int, item: Dataset, tags: dict[str, Any]) -> Slice:
    position, orientation, spacing = (
        tuple(float(value) for value in tags[name])
        for name in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing")
    )
    if (len(position), len(orientation), len(spacing)) != (3, 6, 2) or min(spacing) <= 0:
        raise ValueError("incomplete geometry")
    series = item.get("SeriesInstanceUID") or str(Path(path).parent)  # some anonymizers remove it
    return Slice(
        path=path,
        frame=frame,
        instance=str(item.get("SOPInstanceUID", path)),
        patient=str(item.get("PatientID") or item.get("StudyInstanceUID") or Path(path).parent),
        study=str(item.get("StudyInstanceUID", "")),
        series=str(series),
        acquisition=str(item.get("AcquisitionNumber", "")),
        position=position,
        orientation=orientation,
        spacing=spacing,
        shape=(int(item.Rows), int(item.Columns)),
        slope=float(tags.get("RescaleSlope", 1)),
        intercept=float(tags.get("RescaleIntercept", 0)),
        tilt_tag=float(tags.get("GantryDetectorTilt") or 0),
    )


def assemble(slices: Iterable[Slice], min_slices: int = MIN_SLICES) -> list[Union[Series, BadSeries]]:
    """Sorts slices of any number of series into regular stacks, and says of the rest what is wrong with it.

    Slices belong together that share series, orientation, pixel spacing and size. Where two of them lie at one place,
    they are copies, or the series holds several acquisitions.

    Args:
        slices: in any order.
        min_slices: a stack has at least so many.
    """
    stacks = defaultdict(list)
    for item in sorted(slices, key=lambda item: (item.path, item.frame)):
        plane = tuple(round(value, 3) + 0.0 for value in (*item.orientation, *item.spacing))  # -0 is 0
        stacks[item.study, item.series, plane, item.shape].append(item)
    return [result for stack in stacks.values() for result in _assemble_stack(stack, min_slices)]


def _assemble_stack(stack: list[Slice], min_slices: int) -> list[Union[Series, BadSeries]]:
    acquisitions = defaultdict(list)
    for item in stack:
        acquisitions[item.acquisition].append(item)
    parts = [stack]
    if len(acquisitions) > 1 and _crowded(_without_copies(stack)):
        parts = list(acquisitions.values())
    results: list[Union[Series, BadSeries]] = []
    for part in parts:
        try:
            results.append(_regular(_without_copies(part), min_slices))
        except ValueError as error:
            results.append(BadSeries(tuple(part), str(error)))
    return results


def _along(stack: Sequence[Slice]) -> np.ndarray:
    """Position of each slice along the slices' normal, in mm."""
    orientation = np.asarray(stack[0].orientation)
    return np.array([item.position for item in stack]) @ np.cross(orientation[:3], orientation[3:])


def _crowded(stack: Sequence[Slice]) -> bool:
    return bool((np.diff(np.sort(_along(stack))) < _SAME_PLACE_MM).any())


def _without_copies(stack: Sequence[Slice]) -> list[Slice]:
    """Leaves one of several slices with the same place and the same instance or the same pixels."""
    places = np.rint(_along(stack) / _SAME_PLACE_MM).astype(int).tolist()
    kept = []
    ordered = sorted(zip(places, range(len(stack))))
    for _, group in groupby(ordered, key=lambda pair: pair[0]):
        items = [stack[index] for _, index in group]
        unique = list({item.instance + f"/{item.frame}": item for item in reversed(items)}.values())[::-1]
        if len(unique) > 1:
            try:
                first = _pixels(unique[0].path, [unique[0]])[0]
                unique = unique[:1] + [
                    item for item in unique[1:] if not np.array_equal(first, _pixels(item.path, [item])[0])
                ]
            except ValueError:
                pass  # what cannot be decoded is told when the series is read
        kept += unique
    return kept


def _regular(stack: list[Slice], min_slices: int) -> Series:
    """Sorts one stack; ValueError with the reason when it is no regular one."""
    if len(stack) < min_slices:
        raise ValueError(f"{len(stack)} slices, at least {min_slices} are needed")
    directions = np.reshape(stack[0].orientation, (2, 3))
    if not np.allclose(directions @ directions.T, np.eye(2), atol=1e-3):
        raise ValueError("rows and columns have no perpendicular directions of length 1")
    along = _along(stack)
    order = np.argsort(along, kind="stable")
    stack, along = [stack[index] for index in order], along[order]
    steps = np.diff([item.position for item in stack], axis=0)
    gaps = np.linalg.norm(steps, axis=1)
    distance = float(np.median(gaps))
    if gaps.min() < _SAME_PLACE_MM:
        raise ValueError(f"{int((gaps < _SAME_PLACE_MM).sum())} places hold two different slices")
    uneven = np.abs(gaps - distance) > _GAP_TOLERANCE * distance
    if uneven.any():
        raise ValueError(_describe_gaps(along, gaps, distance, uneven))
    if np.abs(steps - steps.mean(axis=0)).max() > _GAP_TOLERANCE * distance:
        raise ValueError("the slices are shifted against each other")
    series = Series(tuple(stack))
    tilt, normal_z = stack[0].tilt_tag, abs(np.cross(*directions)[2])
    if abs(tilt) > 1 and series.tilt_degrees < MAX_TILT_DEGREES and normal_z > 0.999:
        raise ValueError(f"GantryDetectorTilt says {tilt:g} degrees, position and orientation say none")
    return series


def _describe_gaps(along: np.ndarray, gaps: np.ndarray, distance: float, uneven: np.ndarray) -> str:
    missing = np.rint(gaps[uneven] / distance) - 1
    whole = np.abs(gaps[uneven] - (missing + 1) * distance) <= _GAP_TOLERANCE * distance
    if whole.all() and (missing > 0).all():
        places = [f"{along[i]:.1f} and {along[i + 1]:.1f}" for i in np.flatnonzero(uneven)]
        count = int(missing.sum())
        return f"{count} slice{'s are' if count > 1 else ' is'} missing, between {'; '.join(places[:4])} mm" + (
            f" and {len(places) - 4} other places" if len(places) > 4 else ""
        )
    return f"spacing varies from {gaps.min():.2f} to {gaps.max():.2f} mm"


def read_series(series: Series) -> np.ndarray:
    """Decodes a series to HU, (slices, rows, columns), int16 where the rescale is whole, else float32.

    Raises:
        ValueError: with the reason, when pixels are truncated, damaged or do not fit their tags.
    """
    whole = all(item.slope.is_integer() and item.intercept.is_integer() for item in series.slices)
    rows, columns = series.slices[0].shape
    volume = np.empty((len(series.slices), rows, columns), np.int16 if whole else np.float32)
    files = defaultdict(list)
    for index, item in enumerate(series.slices):
        files[item.path].append((index, item))
    for path, members in files.items():
        for (index, item), stored in zip(members, _pixels(path, [item for _, item in members])):
            hu = stored * np.float32(item.slope) + np.float32(item.intercept)
            volume[index] = np.clip(hu, -32768, 32767)
    return volume


def _pixels(path: str, members: Sequence[Slice]) -> list[np.ndarray]:
    """Stored values of some frames of a file, each (rows, columns)."""
    try:
        stored = pydicom.dcmread(path, force=True).pixel_array
    except Exception as error:  # each decoder raises its own kind
        what = "needs python-gdcm" if "plugin" in str(error) else "damaged, truncated or not what their tags say"
        raise ValueError(f"pixel data cannot be decoded: {what}") from None
    frames = [stored[item.frame] for item in members] if stored.ndim == 3 else [stored]
    if any(frame.shape != item.shape for frame, item in zip(frames, members)):
        raise ValueError("pixel data cannot be decoded: damaged, truncated or not what their tags say")
    return frames
