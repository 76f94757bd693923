"""DICOM files with bytes of their headers changed at random: they never stop their neighbours."""

import numpy as np
import pytest
from dicom_series import ct, write_enhanced, write_series

from scripts.data.dicom import LeftOut, Refused, Series, assemble, read_series, read_slices

PIXEL_DATA = b"\xe0\x7f\x10\x00"


def read_noisy(path, content, rng):
    """Changes 1 to 12 bytes of the header; the slices that are found, none where the file is refused."""
    noisy = bytearray(content)
    for place in rng.integers(0, content.rindex(PIXEL_DATA) + 12, rng.choice([1, 3, 12])):
        noisy[place] = rng.integers(256)
    path.write_bytes(noisy)
    try:
        return read_slices(path)
    except (LeftOut, Refused) as error:
        assert "\n" not in str(error)
        return []


@pytest.mark.parametrize("kind", ["slice", "enhanced"])
@pytest.mark.parametrize("count", [150, pytest.param(10_000, marks=pytest.mark.slow)])
def test_noise_in_headers(tmp_path, kind, count):
    volume, rng = ct(10, 4, 4), np.random.default_rng(0)
    paths = write_series(tmp_path, volume, "a", PixelPaddingValue=-2000, AcquisitionTime="101112.5", KVP=120)
    neighbours = [item for path in write_series(tmp_path, volume, "b") for item in read_slices(path)]
    path = paths[9] if kind == "slice" else write_enhanced(tmp_path / "e", volume)
    content = path.read_bytes()
    rest = [item for path in paths[:9] for item in read_slices(path)] if kind == "slice" else []
    for _ in range(count):
        found = read_noisy(path, content, rng)
        results = assemble([*neighbours, *rest, *found])
        whole = [result for result in results if isinstance(result, Series)]
        assert any(set(neighbours) == set(series.slices) for series in whole)
        told = {item.path for result in results for item in result.slices}
        assert {item.path for item in [*rest, *found]} <= told
        for series in whole:
            if any(item.path == str(path) for item in series.slices):
                try:
                    assert read_series(series).shape == (len(series.slices), *series.slices[0].shape)
                except ValueError as error:
                    assert "pixel data cannot be decoded" in str(error) or "contradict each other" in str(error)
