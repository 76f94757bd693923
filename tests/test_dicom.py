"""DICOM files to series: grouping, geometry, pixels, and what is refused."""

import dataclasses
import random

import numpy as np
import pydicom
import pytest
from dicom_series import AXIAL, base, rewrite, save, truncate, uid, write_enhanced, write_series
from pydicom.uid import RLELossless

from scripts.data.dicom import BadSeries, LeftOut, Series, assemble, read_series, read_slices


def ct(*shape, seed=0):
    return np.random.default_rng(seed).integers(-1000, 1000, shape).astype(np.float32)


def series_in(paths, **options):
    return assemble([item for path in paths for item in read_slices(path)], **options)


def only(results):
    (result,) = results
    assert isinstance(result, Series), result.reason
    return result


def reason(results):
    (result,) = results
    assert isinstance(result, BadSeries)
    return result.reason


def test_slices_are_sorted_by_place_whatever_their_names(tmp_path):
    volume = ct(10, 6, 8)
    paths = write_series(tmp_path, volume)
    random.Random(0).shuffle(paths)
    series = only(series_in(paths))
    assert np.array_equal(read_series(series), volume)
    expected = [[0, 0, -1.5, 10], [0, -2, 0, 20], [3, 0, 0, -5], [0, 0, 0, 1]]  # axes slice, row, column; RAS
    np.testing.assert_allclose(series.affine, expected, atol=1e-6)


def test_series_from_head_to_feet_is_turned_with_its_pixels(tmp_path):
    volume = ct(10, 6, 8)
    series = only(series_in(write_series(tmp_path, volume, step=(0, 0, -3.0))))
    assert np.array_equal(read_series(series), volume[::-1])
    assert series.affine[2].tolist() == [3, 0, 0, -32]


@pytest.mark.parametrize("degrees", [0.0, 18.5, -25.0])
def test_tilted_gantry_becomes_a_shear(tmp_path, degrees):
    """The table moves along z while the slices lean: each pixel keeps its own place."""
    angle = np.radians(degrees)
    orientation = (1, 0, 0, 0, np.cos(angle), -np.sin(angle))
    paths = write_series(tmp_path, ct(9, 4, 5), orientation=orientation, GantryDetectorTilt=degrees)
    series = only(series_in(paths))
    assert series.tilt_degrees == pytest.approx(abs(degrees), abs=1e-4)
    place = series.affine @ [7, 3, 2, 1]
    lps = np.add((-10, -20, -5 + 7 * 3), np.multiply(orientation[3:], 3 * 2)) + np.multiply(orientation[:3], 2 * 1.5)
    np.testing.assert_allclose(place[:3], lps * [-1, -1, 1], atol=1e-4)


def test_tilt_that_the_geometry_does_not_show_is_refused(tmp_path):
    paths = write_series(tmp_path, ct(9, 4, 5), GantryDetectorTilt=12.0)
    assert "GantryDetectorTilt says 12" in reason(series_in(paths))


def test_oblique_slices_keep_their_place(tmp_path):
    rotation, _ = np.linalg.qr(np.random.default_rng(1).normal(size=(3, 3)))
    orientation = (*rotation[:, 0], *rotation[:, 1])
    step = 3 * np.cross(rotation[:, 0], rotation[:, 1])
    series = only(series_in(write_series(tmp_path, ct(9, 4, 5), orientation=orientation, step=step)))
    assert series.tilt_degrees < 0.01
    np.testing.assert_allclose(
        series.affine[:3, :3],
        np.diag([-1, -1, 1]) @ np.stack([step, 2 * rotation[:, 1], 1.5 * rotation[:, 0]], 1),
        atol=1e-5,
    )


def test_rescale_is_taken_slice_by_slice(tmp_path):
    """PET-CT exports scale each slice on its own."""
    volume = ct(10, 6, 8)
    paths = write_series(tmp_path, volume)
    rewrite(paths[3], lambda item: setattr(item, "RescaleIntercept", -1000))
    found = read_series(only(series_in(paths)))
    assert np.array_equal(found[3], volume[3] + 24) and np.array_equal(found[4], volume[4])
    assert found.dtype == np.int16


def test_broken_slopes_are_not_rounded(tmp_path):
    volume = ct(8, 6, 8)
    found = read_series(only(series_in(write_series(tmp_path, volume, slope=0.5))))
    assert found.dtype == np.float32 and np.array_equal(found, volume)


def test_run_length_compression(tmp_path):
    volume = ct(8, 6, 8)
    paths = write_series(tmp_path, volume)
    for path in paths:
        rewrite(path, lambda item: item.compress(RLELossless))
    assert np.array_equal(read_series(only(series_in(paths))), volume)


@pytest.mark.parametrize("syntax", ["JPEGLosslessProcess14_1", "JPEG2000Lossless", "JPEGLSLossless"])
def test_lossless_jpeg_compression(tmp_path, syntax):
    gdcm = pytest.importorskip("gdcm")
    volume = ct(8, 32, 40)
    paths = write_series(tmp_path, volume)
    for path in paths:
        reader, change, writer = gdcm.ImageReader(), gdcm.ImageChangeTransferSyntax(), gdcm.ImageWriter()
        reader.SetFileName(str(path))
        assert reader.Read()
        change.SetTransferSyntax(gdcm.TransferSyntax(getattr(gdcm.TransferSyntax, syntax)))
        change.SetInput(reader.GetImage())
        assert change.Change()
        writer.SetFileName(str(path))
        writer.SetFile(reader.GetFile())
        writer.SetImage(change.GetOutput())
        assert writer.Write()
    assert pydicom.dcmread(paths[0]).file_meta.TransferSyntaxUID.is_compressed
    assert np.array_equal(read_series(only(series_in(paths))), volume)


def test_multi_frame_file(tmp_path):
    volume = ct(9, 6, 8)
    series = only(series_in([write_enhanced(tmp_path / "e", volume, order=[3, 0, 8, 1, 2, 7, 6, 4, 5])]))
    assert np.array_equal(read_series(series), volume)
    assert series.affine[2].tolist() == [3, 0, 0, -5]


def test_frames_without_position_are_refused(tmp_path):
    path = save(base(ct(9, 6, 8), ("m",), NumberOfFrames=9), tmp_path / "m")
    with pytest.raises(ValueError, match="without position"):
        read_slices(path)


def test_series_in_one_folder_are_told_apart(tmp_path):
    volumes = [ct(10, 6, 8, seed=1), ct(12, 6, 8, seed=2)]
    paths = [path for name, volume in zip("ab", volumes) for path in write_series(tmp_path, volume, name)]
    found = sorted((read_series(item) for item in series_in(paths)), key=len)
    assert all(np.array_equal(a, b) for a, b in zip(found, volumes))


def test_acquisitions_of_one_series_are_told_apart(tmp_path):
    """With and without contrast medium, stored as one series."""
    volumes = [ct(10, 6, 8, seed=1), ct(10, 6, 8, seed=2)]
    paths = []
    for number, volume in enumerate(volumes):
        paths += write_series(tmp_path / str(number), volume, "a", AcquisitionNumber=number)
    for number, path in enumerate(paths):
        rewrite(path, lambda item: setattr(item, "SOPInstanceUID", uid(number)))
    found = [read_series(item) for item in series_in(paths)]
    assert len(found) == 2 and all(np.array_equal(a, b) for a, b in zip(found, volumes))


def test_copies_of_slices_are_left_out(tmp_path):
    volume = ct(10, 6, 8)
    paths = write_series(tmp_path / "one", volume) + write_series(tmp_path / "two", volume)
    rewrite(paths[13], lambda item: setattr(item, "SOPInstanceUID", uid("copy")))  # the same pixels, another name
    assert np.array_equal(read_series(only(series_in(paths))), volume)


def test_two_different_slices_at_one_place_are_refused(tmp_path):
    paths = write_series(tmp_path, ct(10, 6, 8)) + write_series(tmp_path, ct(10, 6, 8, seed=1), "b")
    for number, path in enumerate(paths):
        rewrite(path, lambda item: setattr(item, "SeriesInstanceUID", uid("a")))
        rewrite(path, lambda item: setattr(item, "StudyInstanceUID", uid("a")))
    assert reason(series_in(paths)) == (
        "10 places hold two different slices, at -5.0, -2.0, 1.0, 4.0 mm and 6 other places"
    )


def test_missing_slices_are_named(tmp_path):
    paths = write_series(tmp_path, ct(20, 4, 4), left_out=(4, 5, 11))
    assert reason(series_in(paths)) == "3 slices are missing, between 4.0 and 13.0; 25.0 and 31.0 mm"


def test_varying_spacing_is_named(tmp_path):
    positions = [(0, 0, z) for z in (*range(10), *np.arange(10, 30, 2.5))]
    assert reason(series_in(write_series(tmp_path, ct(18, 4, 4), positions=positions))).startswith(
        "spacing varies from 1.00 to 2.50 mm"
    )


def test_slices_shifted_sideways_are_refused(tmp_path):
    positions = [(0.8 * (i % 2), 0, 3 * i) for i in range(10)]
    assert "shifted" in reason(series_in(write_series(tmp_path, ct(10, 4, 4), positions=positions)))


def test_few_slices_are_refused(tmp_path):
    assert reason(series_in(write_series(tmp_path, ct(7, 4, 4)))) == "7 slices, at least 8 are needed"
    only(series_in(write_series(tmp_path, ct(7, 4, 4)), min_slices=7))


def test_skewed_axes_are_refused(tmp_path):
    assert "perpendicular" in reason(series_in(write_series(tmp_path, ct(9, 4, 4), orientation=(1, 0, 0, 0.6, 0.8, 0))))


@pytest.mark.parametrize("tag", ["ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "Rows"])
def test_images_without_geometry_are_refused(tmp_path, tag):
    path = write_series(tmp_path, ct(1, 4, 4))[0]
    rewrite(path, lambda item: delattr(item, tag))
    with pytest.raises(ValueError, match="without position, orientation, pixel spacing or size") as raised:
        read_slices(path)
    assert not isinstance(raised.value, LeftOut)


@pytest.mark.parametrize("change", ["truncate", "rows"])
def test_pixels_that_do_not_fit_are_refused(tmp_path, change):
    paths = write_series(tmp_path, ct(9, 6, 8))
    if change == "truncate":
        truncate(paths[4], 0.95)
    series = only(series_in(paths))
    if change == "rows":
        wrong = dataclasses.replace(series.slices[4], shape=(5, 8))
        series = Series((*series.slices[:4], wrong, *series.slices[5:]))
    with pytest.raises(ValueError, match="cannot be decoded"):
        read_series(series)


@pytest.mark.parametrize(
    ("tags", "kind"),
    [
        ({"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}, "localizer"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.88.67", "Modality": "SR"}, "report"),  # dose report
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7", "Modality": "CT"}, "secondary capture"),
    ],
)
def test_what_lies_beside_the_ct_is_left_out(tmp_path, tags, kind):
    path = save(base(ct(4, 4), ("x",), **tags), tmp_path / "x")
    with pytest.raises(LeftOut, match=kind):
        read_slices(path)


def test_other_modalities_are_refused(tmp_path):
    path = save(base(ct(4, 4), ("x",), SOPClassUID="1.2.840.10008.5.1.4.1.1.4", Modality="MR"), tmp_path / "x")
    with pytest.raises(ValueError, match="not CT: modality MR"):
        read_slices(path)


@pytest.mark.parametrize("content", [b"", b"DICM", b"\0" * 128 + b"DICM" + b"\xff" * 50, bytes(range(256)) * 2])
def test_broken_files_are_refused(tmp_path, content):
    path = tmp_path / "x.dcm"
    path.write_bytes(content)
    with pytest.raises(ValueError) as raised:
        read_slices(path)
    assert "\n" not in str(raised.value) and not isinstance(raised.value, LeftOut)


def test_axial_is_what_it_says():
    assert np.cross(AXIAL[:3], AXIAL[3:]).tolist() == [0, 0, 1]
