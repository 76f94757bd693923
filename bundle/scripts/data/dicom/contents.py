"""Whether slices have the same pixels, told without decoding them: a decoder may end the process."""

from __future__ import annotations

import hashlib
from typing import Hashable, Sequence, Union

import pydicom
from pydicom.dataset import Dataset
from pydicom.encaps import generate_frames
from pydicom.tag import Tag

from .headers import Slice
from .opened import OpenedDicom

_TAGS = [Tag(name) for name in ("PixelData", "NumberOfFrames", "ExtendedOffsetTable", "ExtendedOffsetTableLengths")]
_SAMPLES = 3  # compared to learn whether equal instances are copies


class Contents:
    """Fingerprints of the stored pixels of slices. Each file is read once, and only when it is asked for."""

    def __init__(self) -> None:
        self._files: dict[str, list[bytes]] = {}

    def of(self, item: Slice) -> Hashable:
        """Equal for slices with the same HU."""
        if item.path not in self._files:
            self._files[item.path] = _fingerprints(item.path)
        found = self._files[item.path]
        # what cannot be read is like nothing else, and is told when the series is read
        pixels = found[item.frame] if item.frame < len(found) else (item.path, item.frame)
        return pixels, item.slope, item.intercept

    def instances_are_copies(self, places: Sequence[Sequence[Slice]]) -> bool:
        """Whether slices with the same place and instance UID have the same pixels: a few of them are compared.

        They have not where several patients got the same UIDs.
        """
        pairs = []
        for items in places:
            by_instance: dict[tuple[str, int], Slice] = {}
            for item in items if len(items) > 1 else ():
                other = by_instance.setdefault((item.instance, item.frame), item)
                # compressed anew it is still the same image
                if other is not item and other.syntax == item.syntax:
                    pairs.append((other, item))
        sampled = pairs[:: max(1, len(pairs) // _SAMPLES)]
        return all(self.of(first) == self.of(second) for first, second in sampled)


def _fingerprints(path: str) -> list[bytes]:
    try:
        with OpenedDicom(path) as file:
            item = pydicom.dcmread(file, specific_tags=_TAGS, force=True)
        return [hashlib.blake2b(frame, digest_size=16).digest() for frame in _stored_frames(item)]
    except Exception:  # damaged: each damage has its own error in pydicom
        return []


def _stored_frames(item: Dataset) -> Sequence[Union[bytes, memoryview]]:
    element, count = item["PixelData"], int(item.get("NumberOfFrames") or 1)
    if element.is_undefined_length:
        offsets = "ExtendedOffsetTable" in item
        extended = (item.ExtendedOffsetTable, item.ExtendedOffsetTableLengths) if offsets else None
        return list(generate_frames(element.value, number_of_frames=count, extended_offsets=extended))
    length = len(element.value) // count
    view = memoryview(element.value)
    return [view[start : start + length] for start in range(0, count * length, length)]
