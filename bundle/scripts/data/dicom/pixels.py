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

from ..hounsfield import LOWEST_HU
from .geometry import Series
from .headers import Slice

HIGHEST_HU = 3071.0  # of 12 bits, the usual range of CT


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
        header, frames = _decode(path, [item for _, item in members])
        if volume is None:  # not before one slice is seen to be as large as its tags say
            volume = np.empty((len(series.slices), rows, columns), np.int16 if whole else np.float32)
        for (index, item), stored in zip(members, frames):
            hu = stored * np.float32(item.slope) + np.float32(item.intercept)
            padding = _padding(header, stored, item)
            if padding is not None:
                hu[padding] = LOWEST_HU
            volume[index] = np.clip(hu, -32768, 32767)
    assert volume is not None
    return volume


def _decode(path: str, members: Sequence[Slice]) -> tuple[Dataset, list[np.ndarray]]:
    """Header and stored values of some frames of a file, each (rows, columns)."""
    syntax = UID(members[0].syntax)
    _require_decoder(syntax)
    try:
        item = pydicom.dcmread(path, force=True)
        item.file_meta.TransferSyntaxUID = syntax  # old archives have none
        if syntax == JPEGExtended12Bit and item.BitsStored > 8:
            frames = _decode_extended(path, item, members)
        else:
            frames = list(iter_pixels(item, indices=[member.frame for member in members]))
    except Exception:  # each decoder raises its own kind
        raise ValueError(f"pixel data cannot be decoded: {_damage(syntax)}") from None
    if any(frame.shape != member.shape for frame, member in zip(frames, members)):
        raise ValueError("pixel data cannot be decoded: their size is not that of Rows and Columns")
    return item, frames


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


def _padding(header: Dataset, stored: np.ndarray, item: Slice) -> Optional[np.ndarray]:
    """Mask of the pixels that are no image; None where there is none above -1024 HU.

    Source: PS3.3 C.7.5.1.1.2. Scanners write the value with or without a sign, whatever the pixels have.
    """
    if "PixelPaddingValue" not in header:
        return None
    bits, signed = int(header.BitsStored), bool(header.PixelRepresentation)
    limits = [header[name].value for name in ("PixelPaddingValue", "PixelPaddingRangeLimit") if name in header]
    low, high = (change([_in_pixels(value, bits, signed) for value in limits]) for change in (min, max))
    highest = max(low * item.slope, high * item.slope) + item.intercept
    if highest <= LOWEST_HU:
        return None
    mask = (stored >= low) & (stored <= high)
    if highest <= HIGHEST_HU:  # the patient may have such HU, too: only what reaches the border is outside
        labels, _ = ndimage.label(mask)
        border = np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]])
        mask &= np.isin(labels, border)
    return mask


def _in_pixels(value: Any, bits: int, signed: bool) -> int:
    """A value as the pixels would hold it."""
    number = int.from_bytes(value[:2], "little") if isinstance(value, bytes) else int(value)
    number %= 2**bits
    return number - 2**bits if signed and number >= 2 ** (bits - 1) else number
