"""What the header of a DICOM file says: the CT slices in it and their places, or why there are none."""

from __future__ import annotations

import logging
import math
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Iterator, Optional, Sequence, Union

import pydicom
from pydicom.datadict import dictionary_VR
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset, FileDataset
from pydicom.tag import Tag
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from ...errors import is_bad_input
from .kinds import LeftOut, is_derived, require_ct
from .opened import OpenedDicom


def keep_pydicom_quiet() -> None:
    """pydicom warns of odd values by printing them: UIDs, dates, names. Nothing that identifies a patient is printed."""
    pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
    logging.getLogger("pydicom").setLevel(logging.CRITICAL + 1)
    warnings.filterwarnings("ignore", module=r"pydicom\b")


keep_pydicom_quiet()

_GEOMETRY = ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "Rows", "Columns")
# What parts the acquisitions, phases, time points and reconstructions of one series, the surest first.
_MARKS = (
    ("AcquisitionNumber", "FrameAcquisitionNumber"),
    ("TemporalPositionIndex", "TemporalPositionIdentifier"),
    ("StackID",),
    ("NominalPercentageOfCardiacPhase",),
    ("TriggerTime",),
    ("ConvolutionKernel",),
    ("KVP",),
    ("SliceThickness",),
    ("AcquisitionTime", "FrameAcquisitionDateTime", "AcquisitionDateTime"),
)
ACQUISITION_MARK, TIME_MARK = 0, len(_MARKS) - 1
# Functional groups that hold them in multi-frame files; the last two keep what an old file had, as it was.
_FRAME_GROUPS = (
    "PlanePositionSequence PlaneOrientationSequence PixelMeasuresSequence PixelValueTransformationSequence "
    "FrameContentSequence TemporalPositionSequence CardiacSynchronizationSequence CTImageFrameTypeSequence "
    "CTAcquisitionDetailsSequence CTReconstructionSequence UnassignedPerFrameConvertedAttributesSequence "
    "UnassignedSharedConvertedAttributesSequence"
).split()
_PER_FRAME, _SHARED = "PerFrameFunctionalGroupsSequence", "SharedFunctionalGroupsSequence"
_TOP_LEVEL = (
    "SOPClassUID SOPInstanceUID Modality ImageType PatientID StudyInstanceUID SeriesInstanceUID RescaleSlope "
    "RescaleIntercept GantryDetectorTilt NumberOfFrames SamplesPerPixel PhotometricInterpretation"
).split() + [_PER_FRAME, _SHARED]
_KEYWORDS = [*_GEOMETRY, *_TOP_LEVEL, *(name for names in _MARKS for name in names), *_FRAME_GROUPS, "FrameType"]
_TAGS = {keyword: Tag(keyword) for keyword in _KEYWORDS}
_VRS = {keyword: dictionary_VR(tag) for keyword, tag in _TAGS.items()}
_PLAIN_VRS = ("CS", "DS", "DT", "IS", "TM", "UI")
_HEADER_TAGS = [tag for keyword, tag in _TAGS.items() if keyword not in _FRAME_GROUPS]
_LONGEST_MM = 1.0e5  # no scanner's coordinates are larger
_PIXEL_MM = (0.01, 100.0)


class Refused(ValueError):
    """A DICOM file that is no CT slice to take: why, and what it belongs to, as far as that can be read."""

    def __init__(self, reason: str, patient: str, study: str, series: str) -> None:
        super().__init__(reason)
        self.patient, self.study, self.series = patient, study, series


@dataclass(frozen=True, slots=True)
class Slice:
    """One CT image: a file, or a frame of one. Lengths are in mm, in DICOM's LPS frame."""

    path: str
    frame: int
    instance: str
    patient: str  # '' where an anonymizer removed it
    study: str
    series: str
    marks: tuple[str, ...]  # of the acquisition, see _MARKS
    position: tuple[float, ...]  # of the first pixel's centre
    orientation: tuple[float, ...]  # unit vectors along a row, then down a column
    spacing: tuple[float, ...]  # between rows, between columns
    shape: tuple[int, int]  # rows, columns
    slope: float
    intercept: float
    rescaled: bool  # slope and intercept are those of tags
    tilt_tag: float  # degrees
    derived: bool  # computed from other images
    syntax: str  # transfer syntax


def is_dicom(path: Path) -> bool:
    """Whether a file is called like DICOM or starts as it does: with a preamble, or in old archives with a first tag."""
    with open(path, "rb") as file:
        start = file.read(132)
    return start[128:] == b"DICM" or path.suffix.lower() in (".dcm", ".ima") or _starts_with_tags(start)


def _starts_with_tags(start: bytes) -> bool:
    """Whether bytes are two DICOM elements in ascending order, as a file without preamble begins."""
    for order in ("little", "big"):
        tags: list[tuple[int, int]] = []
        offset = 0
        while len(tags) < 2 and offset + 8 <= len(start):
            group, element = (int.from_bytes(start[offset + i : offset + i + 2], order) for i in (0, 2))  # type: ignore
            tags.append((group, element))
            explicit = start[offset + 4 : offset + 6]
            if explicit.isalpha() and explicit.isupper():
                length = int.from_bytes(start[offset + 6 : offset + 8], order)
            else:
                length = int.from_bytes(start[offset + 4 : offset + 8], order)
            offset += 8 + length
            if length > 64 or group not in (2, 8) or element > 0x1FF:
                break
        else:
            return len(tags) == 2 and tags[0] < tags[1]
    return False


def read_slices(path: Union[str, Path]) -> list[Slice]:
    """The CT images of a DICOM file, without their pixels.

    Raises:
        LeftOut: when the file is beside the point: a localizer, report, secondary capture or directory.
        Refused: with the reason, when it is a CT image that cannot be used, an image of another modality, or damaged.
        OSError: when it cannot be opened.
    """
    folder = str(Path(path).parent)
    with OpenedDicom(path) as file:
        item = _read_header(file)
    if item is None:
        raise Refused("not readable as DICOM: empty, truncated or another format", "", "", folder)
    head = _Tags([item])
    study = head.text("StudyInstanceUID")
    # some anonymizers remove who and what it is
    patient, series = head.text("PatientID") or study or folder, head.text("SeriesInstanceUID") or folder
    try:
        require_ct(_sop_class(item), head.text("Modality"), head.has("ImagePositionPatient"))
        grey = head.text("PhotometricInterpretation") in ("", "MONOCHROME1", "MONOCHROME2")
        if not grey or (head.whole("SamplesPerPixel") or 1) > 1:
            raise ValueError("colour images, no HU")
        owner = (str(path), head.text("SOPInstanceUID") or str(path), head.text("PatientID"), study, series)
        return [_slice(owner, frame, tags, _transfer_syntax(item)) for frame, tags in enumerate(_frames(item))]
    except LeftOut:
        raise
    except Exception as error:  # pydicom has an error for each damage of a header
        raise Refused(str(error) if is_bad_input(error) else "its header is damaged", patient, study, series) from None


def _read_header(file: BinaryIO) -> Optional[FileDataset]:
    try:
        item = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=_HEADER_TAGS, force=True)
        return item if _sop_class(item) else None
    except Exception:  # as above
        return None


def _sop_class(item: FileDataset) -> str:
    return str(item.get("SOPClassUID") or item.file_meta.get("MediaStorageSOPClassUID") or "")


def _transfer_syntax(item: FileDataset) -> str:
    """What the file says, or what pydicom found where it says nothing."""
    stated = item.file_meta.get("TransferSyntaxUID")
    if stated:
        return str(stated)
    implicit, little = item.original_encoding
    return str(ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian if little else ExplicitVRBigEndian)


class _Tags:
    """Tags of a slice, wherever the file keeps them. Only what is asked for is decoded: no private tag ever is."""

    def __init__(self, datasets: Sequence[Dataset]) -> None:
        self.datasets = datasets

    def value(self, keyword: str) -> Any:
        """The first that is not empty, texts as a list of its parts; None where there is none."""
        tag = _TAGS[keyword]
        for dataset in self.datasets:
            if tag in dataset:
                try:
                    value = _plain_parts(dataset.get_item(tag), _VRS[keyword]) or dataset[tag].value
                except Exception:  # as above
                    raise ValueError(f"its header is damaged: {keyword} cannot be read") from None
                if value is not None and not (hasattr(value, "__len__") and len(value) == 0):
                    return value
        return None

    def has(self, keyword: str) -> bool:
        return any(_TAGS[keyword] in dataset for dataset in self.datasets)

    def texts(self, keyword: str) -> list[str]:
        value = self.value(keyword)
        values = [] if value is None else [value] if isinstance(value, (str, int, float)) else value
        return [str(part).strip() for part in values]

    def text(self, keyword: str) -> str:
        """One text; '' where there is none or it cannot be read."""
        try:
            return sys.intern("\\".join(self.texts(keyword)))  # once in memory for all slices of a series
        except Exception:  # it only tells things apart
            return ""

    def numbers(self, keyword: str, count: int) -> Optional[tuple[float, ...]]:
        value = self.value(keyword)
        if value is None:
            return None
        try:
            numbers = tuple(float(part) for part in (value if hasattr(value, "__iter__") else [value]))
        except (TypeError, ValueError):
            numbers = ()
        if len(numbers) != count or not all(math.isfinite(part) and abs(part) < _LONGEST_MM for part in numbers):
            raise ValueError(f"{keyword} is not {count} possible number{'s' * (count > 1)}")
        return numbers

    def whole(self, keyword: str) -> Optional[int]:
        numbers = self.numbers(keyword, 1)
        return None if numbers is None else int(numbers[0])


def _plain_parts(element: Any, vr: str) -> list[str]:
    """Parts of an ASCII text that was not decoded yet, which takes pydicom most of the time of a header; or nothing."""
    value = element.value if isinstance(element, RawDataElement) else None
    if not isinstance(value, bytes) or (element.VR or vr) not in _PLAIN_VRS:
        return []
    text = value.decode("latin-1").strip(" \0")
    return text.split("\\") if text else []


def _frames(item: Dataset) -> Iterator[_Tags]:
    """The tags of each frame."""
    head = _Tags([item])
    count = head.whole("NumberOfFrames") or 1
    own = head.value(_PER_FRAME)
    if own is None:
        if count > 1:
            raise ValueError("frames without position: a multi-frame file without functional groups")
        yield head
        return
    if len(own) != count:
        raise ValueError(f"NumberOfFrames is {count}, but the positions are those of {len(own)} frames")
    shared = (head.value(_SHARED) or [Dataset()])[0]
    for groups in own:
        sequences = (_Tags([holder]).value(name) for name in _FRAME_GROUPS for holder in (groups, shared))
        yield _Tags([*(sequence[0] for sequence in sequences if sequence is not None), item])


def _slice(owner: tuple[str, str, str, str, str], frame: int, tags: _Tags, syntax: str) -> Slice:
    derived = is_derived([*tags.texts("ImageType"), *tags.texts("FrameType")])
    missing = [name for name in _GEOMETRY if tags.value(name) is None]
    if missing:
        reason = "a CT image without position, orientation, pixel spacing or size"
        raise ValueError(f"{reason}: {', '.join(missing)} {'are' if len(missing) > 1 else 'is'} missing")
    position, orientation, spacing = (
        tags.numbers(name, count)
        for name, count in (("ImagePositionPatient", 3), ("ImageOrientationPatient", 6), ("PixelSpacing", 2))
    )
    assert position is not None and orientation is not None and spacing is not None
    if not all(_PIXEL_MM[0] <= side <= _PIXEL_MM[1] for side in spacing):
        raise ValueError(f"PixelSpacing is {spacing[0]:g} and {spacing[1]:g} mm, which no CT has")
    shape = tags.whole("Rows") or 0, tags.whole("Columns") or 0
    if min(shape) < 1:
        raise ValueError("Rows or Columns is 0")
    rescale = [tags.numbers(name, 1) for name in ("RescaleSlope", "RescaleIntercept")]
    for name, numbers in zip(("RescaleSlope", "RescaleIntercept"), rescale):
        if numbers is None and tags.has(name):
            raise ValueError(f"{name} is empty: its values may be HU or not")
    if rescale[0] == (0.0,):
        raise ValueError("RescaleSlope is 0")
    path, instance, patient, study, series = owner
    return Slice(
        path=path,
        frame=frame,
        instance=instance,
        patient=patient,
        study=study,
        series=series,
        marks=tuple(next(filter(None, map(tags.text, names)), "") for names in _MARKS),
        position=position,
        orientation=orientation,
        spacing=spacing,
        shape=shape,
        slope=1.0 if rescale[0] is None else rescale[0][0],
        intercept=0.0 if rescale[1] is None else rescale[1][0],
        rescaled=None not in rescale,
        tilt_tag=_tilt(tags),
        derived=derived,
        syntax=syntax,
    )


def _tilt(tags: _Tags) -> float:
    """0 where it cannot be read: position and orientation say all."""
    try:
        return (tags.numbers("GantryDetectorTilt", 1) or (0.0,))[0]
    except ValueError:
        return 0.0
