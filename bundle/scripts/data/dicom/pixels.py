"""Pixels of a series to HU."""

from __future__ import annotations

from collections import defaultdict
from typing import Any, Optional, Sequence

import numpy as np
import pydicom
from pydicom.dataset import Dataset
from pydicom.pixels import get_decoder, iter_pixels
from pydicom.uid import UID, JPEGExtended12Bit
from scipy import ndimage

from ..hounsfield import HIGHEST_HU, LOWEST_HU
from .geometry import Series
from .headers import Slice
from .opened import OpenedDicom


def read_series(series: Series) -> np.ndarray:
    """Decodes a series to HU, (slices, rows, columns), int16 where the rescale is whole, else float32.

    What PixelPaddingValue names becomes -1024, air.

    Raises:
        ValueError: with the reason, when pixels are truncated, damaged or do not fit their tags.
    """
    whole = all(item.slope.is_integer() and item.intercept.is_integer() for item in series.slices)
    rows, columns = series.slices[0].shape
    files = defaultdict(list)
    for index, item in enumerate(series.slices):
        files[item.path].append((index, item))
    volume: Optional[np.ndarray] = None
    for path, members in files.items():
        limits, frames = _decode(path, [item for _, item in members])
        if volume is None:  # not before one slice is seen to be as large as its tags say
            volume = np.empty((len(series.slices), rows, columns), np.int16 if whole else np.float32)
        for (index, item), stored in zip(members, frames):
            hu = stored * np.float32(item.slope) + np.float32(item.intercept)
            if limits:
                _clear_padding(hu, stored, limits)
            volume[index] = np.clip(hu, -32768, 32767)
    assert volume is not None
    return volume


def _decode(path: str, members: Sequence[Slice]) -> tuple[list[int], list[np.ndarray]]:
    """Lowest and highest value of the padding, if there is one, and stored values of frames, each (rows, columns)."""
    syntax = UID(members[0].syntax)
    _require_decoder(syntax)
    try:
        with OpenedDicom(path) as file:
            item = pydicom.dcmread(file, force=True)
        shifted = int(item.get("HighBit") or 0) >= int(item.get("BitsStored") or 16)
        item.file_meta.TransferSyntaxUID = syntax  # old archives have none
        if syntax == JPEGExtended12Bit and item.BitsStored > 8:
            frames = _decode_extended(path, item, members)
        else:
            frames = list(iter_pixels(item, indices=[member.frame for member in members]))
        limits = _padding_limits(item)
    except Exception:  # each decoder raises its own kind
        raise ValueError(f"pixel data cannot be decoded: {_damage(syntax)}") from None
    if shifted:  # pydicom, as all others, does not look at it
        raise ValueError(f"HighBit {item.HighBit} and BitsStored {item.BitsStored} contradict each other")
    if any(frame.shape != member.shape for frame, member in zip(frames, members)):
        raise ValueError("pixel data cannot be decoded: their size is not that of Rows and Columns")
    return limits, frames


def _require_decoder(syntax: UID) -> None:
    try:
        decoder = get_decoder(syntax)
    except NotImplementedError:
        name = syntax.name if syntax.name != syntax else "an unknown transfer syntax"  # a private one is its maker's
        raise ValueError(f"pixel data cannot be decoded: {name} is not supported, convert the files") from None
    if not decoder.is_available:
        needed = " or ".join(sorted({text.split(" - requires ")[-1] for text in decoder.missing_dependencies}))
        raise ValueError(f"pixel data cannot be decoded: {syntax.name} needs {needed}; install it or convert the files")


def _damage(syntax: UID) -> str:
    packed = f" ({syntax.name})" if syntax.is_compressed else ""
    return f"damaged, truncated or not what their tags say{packed}"


def _decode_extended(path: str, item: Dataset, members: Sequence[Slice]) -> list[np.ndarray]:
    """12-bit JPEG, which pydicom leaves to nobody: GDCM reads it when it reads the whole file."""
    import gdcm

    reader = gdcm.ImageReader()
    reader.SetFileName(path)
    if not reader.Read():
        raise ValueError
    content = reader.GetImage().GetBuffer().encode("utf-8", "surrogateescape")
    stored = np.frombuffer(content, "<u2").reshape(-1, item.Rows, item.Columns)
    unused = 16 - item.BitsStored
    signed = (stored << unused).view(np.int16) if item.PixelRepresentation else stored << unused
    return [signed[member.frame] >> unused for member in members]


def _padding_limits(item: Dataset) -> list[int]:
    """PixelPaddingValue and its range, as the pixels hold them, or nothing.

    Source: PS3.3 C.7.5.1.1.2. Scanners write them with or without a sign, whatever the pixels have.
    """
    names = [name for name in ("PixelPaddingValue", "PixelPaddingRangeLimit") if item.get(name) is not None]
    if "PixelPaddingValue" not in names:
        return []
    bits, signed = int(item.BitsStored), bool(item.PixelRepresentation)
    limits = [_in_pixels(item[name].value, bits, signed) for name in names]
    return [min(limits), max(limits)]


def _in_pixels(value: Any, bits: int, signed: bool) -> int:
    number = int.from_bytes(value[:2], "little") if isinstance(value, bytes) else int(value)
    number %= 2**bits
    return number - 2**bits if signed and number >= 2 ** (bits - 1) else number


def _clear_padding(hu: np.ndarray, stored: np.ndarray, limits: Sequence[int]) -> None:
    """Makes the pixels that are no image air, in place."""
    mask = (stored >= limits[0]) & (stored <= limits[1])
    highest = hu[mask].max(initial=LOWEST_HU)
    if LOWEST_HU < highest <= HIGHEST_HU:  # the patient may have such HU, too: only what reaches the border is outside
        labels, _ = ndimage.label(mask)
        border = np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]])
        mask &= np.isin(labels, border)
    hu[mask] = LOWEST_HU
