"""What a DICOM object is, from its SOP class, Modality and ImageType: CT, something beside it, or something else."""

from __future__ import annotations

import re
from typing import Sequence

from pydicom.uid import (
    UID,
    CTImageStorage,
    EnhancedCTImageStorage,
    LegacyConvertedEnhancedCTImageStorage,
    MediaStorageDirectoryStorage,
)

_CT_STORAGE = (CTImageStorage, EnhancedCTImageStorage, LegacyConvertedEnhancedCTImageStorage)
# PS3.3 C.7.3.1.1.1, Modality. Other texts are never repeated: what stands there may be anything.
_IMAGES = "BI CR DX DR ES GM IO IVUS MG MR NM OP OPT PT PX RF SM US XA XC".split()
_RADIOTHERAPY = "PLAN RTDOSE RTIMAGE RTPLAN RTRECORD RTSTRUCT".split()
_BESIDE = "ASMT AU CT DOC ECG EPS FID HD KO OT PR REG RESP RWV SEG SR TEXTUREMAP".split()
_BESIDE_CLASSES = re.compile(
    "Capture|Segmentation|SR|Report|PresentationState|KeyObject|Document|Encapsulated|Waveform"
)
# Words of ImageType and FrameType for images of slabs or of surfaces, whose voxels are no HU of one slice.
_DERIVED_SLABS = (
    ("MIP", r"\bMIP\b|\bMAX ?IP\b|\bMAXIMUM\b"),
    ("MinIP", r"\bMINIP\b|\bMIN IP\b|\bMINIMUM\b"),
    ("average of slices", r"\bAVERAGED?\b|\bAVG\b|\bMEAN\b|\bMEAN ?IP\b|\bAVE ?IP\b"),
    ("projection image", r"\bPROJECTION\b|\bRAYSUM\b"),
    ("3D rendering", r"\bVRT?\b|\bSSD\b|\b3D\b|\bRENDER(ING|ED)?\b|\bCURVED\b"),
    ("subtraction or statistics of images", r"\bSUBTRACTION\b|\bSTD DEVIATION\b"),
    ("screen capture", r"\bSCREEN ?SAVE\b|\bSCREENSHOT\b"),
)


class LeftOut(ValueError):
    """A file that is not wanted but no reason to worry: a localizer, a report."""


def require_ct(sop_class: str, modality: str, has_place: bool) -> None:
    """LeftOut where an object is beside the point, ValueError where it is an image of another modality.

    Args:
        sop_class: of the object.
        modality: as in the tag.
        has_place: it is an image with a position, as CT has.
    """
    modality, name = modality.strip().upper(), UID(sop_class).keyword
    if sop_class == MediaStorageDirectoryStorage:
        raise LeftOut("DICOM directory")
    if sop_class in _CT_STORAGE and modality not in _IMAGES:
        return
    if modality in _RADIOTHERAPY or name.startswith("RT"):
        raise LeftOut("radiotherapy object")
    if modality == "CT" and not name and has_place:
        raise ValueError("its SOP class is not known: damaged, or of one maker alone")
    if modality in _BESIDE or _BESIDE_CLASSES.search(name):
        raise LeftOut("report, annotation or secondary capture")
    raise ValueError(f"not CT: modality {modality}" if modality in _IMAGES else "not CT: another modality")


def is_derived(image_type: Sequence[str]) -> bool:
    """Whether images were computed from others, and still are slices.

    Raises:
        LeftOut: for a localizer, and for what is computed of a slab, named by its ImageType.
    """
    words = [re.sub("[^A-Z0-9]+", " ", str(value).upper()).strip() for value in image_type]
    text = " ; ".join(words)
    if re.search(r"\b(LOCALIZER|SCOUT|TOPOGRAM)\b", text):
        raise LeftOut("localizer")
    for name, pattern in _DERIVED_SLABS:
        if re.search(pattern, text):
            raise LeftOut(name)
    return "DERIVED" in words
