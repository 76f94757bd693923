"""DICOM files one by one: headers, geometry, pixels, and what is refused."""

import dataclasses
import random
import warnings

import numpy as np
import pydicom
import pytest
from dicom_series import (
    base,
    compress,
    ct,
    only,
    reason,
    rewrite,
    save,
    series_in,
    truncate,
    uid,
    write_enhanced,
    write_series,
)
from pydicom.uid import CTImageStorage, HTJ2KLossless, ImplicitVRLittleEndian, RLELossless

from scripts.data.dicom import LeftOut, Refused, Series, is_dicom, read_series, read_slices
from scripts.data.dicom.headers import keep_pydicom_quiet
from scripts.data.dicom.opened import OpenedDicom
from scripts.data.ingest.sources import find_sources


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
    volume = ct(8, 32, 40)
    paths = write_series(tmp_path, volume)
    for path in paths:
        compress(path, syntax)
    assert pydicom.dcmread(paths[0]).file_meta.TransferSyntaxUID.is_compressed
    assert np.array_equal(read_series(only(series_in(paths))), volume)


@pytest.mark.parametrize("sign", [0, 1])
def test_jpeg_extended_of_12_bits(tmp_path, sign):
    """Lossy, and read by no plugin of pydicom."""
    rows = np.add.outer(np.arange(32), np.arange(40)) * 10.0 - 900
    volume = np.stack([rows + 5 * i for i in range(8)])  # below 0: negative numbers are the upper half of 12 bits
    volume = volume if sign else volume + 600
    tags = {"PixelRepresentation": 0, "BitsStored": 12, "HighBit": 11, "intercept": -4096 if sign else -1024}
    paths = write_series(tmp_path, volume, **tags)
    for path in paths:
        compress(path, "JPEGExtendedProcess2_4", quality=98)
        if sign:
            rewrite(path, lambda item: item.update({"PixelRepresentation": 1, "RescaleIntercept": 0}))
    assert np.abs(read_series(only(series_in(paths))) - volume).max() < 10


def test_multi_frame_file(tmp_path, monkeypatch):
    """It is decoded once, not once a frame."""
    volume, reads, dcmread = ct(9, 6, 8), [], pydicom.dcmread
    series = only(series_in([write_enhanced(tmp_path / "e", volume, order=[3, 0, 8, 1, 2, 7, 6, 4, 5])]))
    monkeypatch.setattr(pydicom, "dcmread", lambda *args, **more: reads.append(args) or dcmread(*args, **more))
    assert np.array_equal(read_series(series), volume) and len(reads) == 1
    assert series.affine[2].tolist() == [3, 0, 0, -5]


def test_empty_and_unknown_functional_groups(tmp_path):
    """Sequences may be empty; private tags with lengths that do not fit are nobody's business."""
    groups = [{"DerivationImageSequence": None, "UnassignedPerFrameConvertedAttributesSequence": {}} for _ in range(9)]
    path = write_enhanced(tmp_path / "e", ct(9, 6, 8), groups=groups)
    item = pydicom.dcmread(path)
    for frame in item.PerFrameFunctionalGroupsSequence:
        block = frame.UnassignedPerFrameConvertedAttributesSequence[0].private_block(0x7005, "TOSHIBA_MEC_CT3", True)
        block.add_new(0x40, "UN", b"0.264 ")  # a double of 8 bytes in pydicom's dictionary
    item.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    item.save_as(path, implicit_vr=True, little_endian=True)
    assert np.array_equal(read_series(only(series_in([path]))), ct(9, 6, 8))


def test_more_functional_groups_than_frames_are_refused(tmp_path):
    path = write_enhanced(tmp_path / "e", ct(9, 6, 8))
    rewrite(path, lambda item: setattr(item, "NumberOfFrames", 7))
    with pytest.raises(Refused, match="NumberOfFrames is 7, but the positions are those of 9 frames"):
        read_slices(path)


@pytest.mark.parametrize("implicit", [True, False])
@pytest.mark.parametrize("little", [True, False])
def test_files_without_preamble_and_transfer_syntax(tmp_path, implicit, little):
    if implicit and not little:
        pytest.skip("there is no such transfer syntax")
    volume = ct(8, 6, 8)
    for path in write_series(tmp_path, volume):
        item = pydicom.dcmread(path)
        if not little:
            item.PixelData = np.frombuffer(item.PixelData, "<i2").astype(">i2").tobytes()
        bare = pydicom.Dataset({element.tag: element for element in item})
        bare.save_as(path, implicit_vr=implicit, little_endian=little)
        assert is_dicom(path) and path.suffix == "" and path.read_bytes()[128:132] != b"DICM"
    assert np.array_equal(read_series(only(series_in(tmp_path.iterdir()))), volume)


@pytest.mark.parametrize("start", [b"\x08\0\x08\0", b"\x08\0" * 70, b"PK\3\4" * 40, bytes(200), b"\x02\0\1\0UI\x80\0"])
def test_other_files_are_not_taken_for_dicom(tmp_path, start):
    (tmp_path / "x").write_bytes(start)
    assert not is_dicom(tmp_path / "x")


def test_frames_without_position_are_refused(tmp_path):
    path = save(base(ct(9, 6, 8), ("m",), NumberOfFrames=9), tmp_path / "m")
    with pytest.raises(ValueError, match="without position"):
        read_slices(path)


@pytest.mark.parametrize("tag", ["ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "Rows"])
def test_images_without_geometry_are_refused(tmp_path, tag):
    path = write_series(tmp_path, ct(1, 4, 4))[0]
    rewrite(path, lambda item: delattr(item, tag))
    with pytest.raises(ValueError, match="without position, orientation, pixel spacing or size") as raised:
        read_slices(path)
    assert not isinstance(raised.value, LeftOut)


@pytest.mark.parametrize(
    ("tags", "words"),
    [
        ({"PixelSpacing": [1e-30, 1e-30]}, "PixelSpacing is 1e-30"),
        ({"PixelSpacing": [1e30, 1e30]}, "PixelSpacing is not 2 possible numbers"),
        ({"ImagePositionPatient": ["nan", "0", "0"]}, "ImagePositionPatient is not 3 possible numbers"),
        ({"RescaleSlope": "inf"}, "RescaleSlope is not 1 possible number"),
        ({"RescaleSlope": "nan"}, "RescaleSlope is not 1 possible number"),
        ({"RescaleSlope": "0"}, "RescaleSlope is 0"),
        ({"RescaleSlope": None}, "RescaleSlope is empty"),
        ({"RescaleIntercept": None}, "RescaleIntercept is empty"),
        ({"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB"}, "colour images"),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "colour images"),
        ({"SOPClassUID": "1.2.3.4"}, "SOP class is not known"),
    ],
)
def test_impossible_values_are_named(tmp_path, tags, words):
    path = write_series(tmp_path, ct(1, 4, 4))[0]

    def change(item):
        for name, value in tags.items():
            setattr(item, name, value)
        item.file_meta.MediaStorageSOPClassUID = item.SOPClassUID

    rewrite(path, change)
    with pytest.raises(Refused, match=words) as raised:
        read_slices(path)
    assert (raised.value.patient, raised.value.series) == ("ID-0042", uid("series", "a"))


def test_unknown_vr_of_one_file_is_its_own(tmp_path):
    path = write_series(tmp_path, ct(1, 4, 4))[0]
    path.write_bytes(path.read_bytes().replace(b"\x08\0\x08\0CS", b"\x08\0\x08\0OR"))
    with pytest.raises(Refused, match="its header is damaged: ImageType cannot be read"):
        read_slices(path)


def test_deeply_nested_sequences_are_refused(tmp_path):
    path = write_series(tmp_path, ct(1, 4, 4))[0]
    item = b"\x08\0\x40\x11SQ\0\0\xff\xff\xff\xff" + b"\xfe\xff\0\xe0\xff\xff\xff\xff"
    content, at = path.read_bytes(), path.read_bytes().index(b"\x10\0\x10\0PN")
    path.write_bytes(content[:at] + item * 3000 + content[at:])
    with pytest.raises(Refused, match="not readable as DICOM"):
        read_slices(path)


def test_nothing_of_a_header_is_printed(tmp_path, caplog):
    """pydicom warns of odd values by printing them."""
    tags = {"StudyInstanceUID": "1.2.777.00123", "SpecificCharacterSet": "ISO_IR 999", "PatientID": "SECRET" * 20}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        paths = write_series(tmp_path, ct(8, 4, 4), **tags)
    truncate(paths[0], 0.4)
    caplog.clear()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        keep_pydicom_quiet()
        caplog.set_level(0)
        for path in paths[1:]:
            assert read_slices(path)[0].study == "1.2.777.00123"
        with pytest.raises(ValueError):
            read_series(Series(tuple(replace_path(read_slices(paths[1])[0], path) for path in paths)))
    assert not caught and not caplog.records


def replace_path(item, path):
    return dataclasses.replace(item, path=str(path))


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


@pytest.mark.parametrize("syntax", ["JPEG2000Lossless", "JPEGLSLossless", "RLELossless"])
def test_damaged_compressed_slices_are_called_so(tmp_path, syntax):
    paths = write_series(tmp_path, ct(9, 32, 40))
    compress(paths[4], syntax)
    name = pydicom.dcmread(paths[4]).file_meta.TransferSyntaxUID.name
    content = bytearray(paths[4].read_bytes())
    content[-len(content) // 2 :] = bytes(len(content) - len(content) // 2)
    paths[4].write_bytes(content)
    with pytest.raises(ValueError, match="pixel data cannot be decoded: damaged") as raised:
        read_series(only(series_in(paths)))
    assert name in str(raised.value)


def test_transfer_syntaxes_that_nobody_reads_are_named(tmp_path):
    paths = write_series(tmp_path, ct(9, 6, 8))
    for path in paths:
        rewrite(path, lambda item: item.compress(RLELossless))
        rewrite(path, lambda item: setattr(item.file_meta, "TransferSyntaxUID", HTJ2KLossless))
    with pytest.raises(ValueError, match="High-Throughput JPEG 2000 .* needs pylibjpeg"):
        read_series(only(series_in(paths)))


@pytest.mark.parametrize(
    ("sign", "bits", "stored", "tag"),
    [
        (0, 16, 63536, ("US", 63536)),  # GE's -2000 in unsigned pixels
        (0, 16, 63536, ("SS", -2000)),
        (1, 16, 2000, ("US", 2000)),
        (0, 12, 4095, ("US", 4095)),
        (1, 12, 2047, ("SS", 2047)),
    ],
)
def test_padding_becomes_air(tmp_path, sign, bits, stored, tag):
    """In the pixels' own sign; bone with the same value inside the patient stays."""
    intercept, volume = 0 if sign else -1024, ct(8, 16, 16)
    value, dtype = stored, "<i2" if sign else "<u2"
    pixels = np.clip(volume, -1000, 1000) - intercept
    pixels[:, :3, :3] = value
    if value < 5000:
        pixels[:, 8, 8] = value
    more = {"PixelRepresentation": sign, "BitsStored": bits, "HighBit": bits - 1}
    paths = write_series(tmp_path, volume, intercept=intercept, **more)
    for path, plane in zip(paths, pixels):

        def change(item, plane=plane):
            item.PixelData = plane.astype(dtype).tobytes()
            item.add_new(0x00280120, *tag)

        rewrite(path, change)
    found = read_series(only(series_in(paths)))
    expected = pixels + intercept
    expected[:, :3, :3] = -1024
    assert np.array_equal(found, expected)


def test_padding_range_becomes_air(tmp_path):
    volume = ct(8, 16, 16)
    volume[:, 0, :4] = [2000, 2010, 2019, 2021]
    paths = write_series(tmp_path, volume, PixelPaddingValue=3024, PixelPaddingRangeLimit=3044, PixelRepresentation=0)
    expected = volume.copy()
    expected[:, 0, :3] = -1024
    assert np.array_equal(read_series(only(series_in(paths))), expected)


def test_bits_above_those_that_are_stored_are_refused(tmp_path):
    """ACR-NEMA kept 12 bits in the upper ones of 16; decoders read the lower ones, which look like HU."""
    paths = write_series(tmp_path, ct(9, 4, 4), PixelRepresentation=0, BitsStored=12, HighBit=15)
    with pytest.raises(ValueError, match="HighBit 15 and BitsStored 12 contradict"):
        read_series(only(series_in(paths)))


def test_series_of_derived_images_are_warned_of(tmp_path):
    for kind, count in (("ORIGINAL", 0), ("DERIVED", 1)):
        paths = write_series(tmp_path / kind, ct(8, 4, 4), ImageType=[kind, "SECONDARY", "REFORMATTED"])
        assert len(only(series_in(paths)).warnings) == count


@pytest.mark.parametrize(
    ("tags", "kind"),
    [
        ({"ImageType": ["DERIVED", "SECONDARY", "MIP"]}, "^MIP"),
        ({"ImageType": ["DERIVED", "SECONDARY", "AXIAL", "CT_SOM5 MIP"]}, "^MIP"),
        ({"ImageType": ["DERIVED", "SECONDARY", "REFORMATTED", "MIN IP"]}, "MinIP"),
        ({"ImageType": ["DERIVED", "SECONDARY", "MINIP"]}, "MinIP"),
        ({"ImageType": ["DERIVED", "SECONDARY", "REFORMATTED", "AVERAGE"]}, "average"),
        ({"ImageType": ["DERIVED", "SECONDARY", "PROJECTION IMAGE"]}, "projection"),
        ({"ImageType": ["DERIVED", "PRIMARY", "VOLUME RENDERING"]}, "3D rendering"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.481.2", "Modality": "RTDOSE"}, "radiotherapy"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.481.5", "Modality": "RTPLAN"}, "radiotherapy"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.66.4", "Modality": "SEG"}, "report"),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}, "localizer"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.88.67", "Modality": "SR"}, "report"),  # dose report
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7", "Modality": "CT"}, "secondary capture"),
    ],
)
def test_what_lies_beside_the_ct_is_left_out(tmp_path, tags, kind):
    path = save(base(ct(4, 4), ("x",), **tags), tmp_path / "x")
    with pytest.raises(LeftOut, match=kind):
        read_slices(path)


@pytest.mark.parametrize(
    ("modality", "sop_class", "words"),
    [
        ("MR", "1.2.840.10008.5.1.4.1.1.4", "modality MR"),
        ("PT", "1.2.840.10008.5.1.4.1.1.128", "modality PT"),
        ("DX", "1.2.840.10008.5.1.4.1.1.1.1", "modality DX"),
        ("Zyxmann", "1.2.840.10008.5.1.4.1.1.4", "another modality"),  # what stands there may be anything
        ("PT", CTImageStorage, "modality PT"),
    ],
)
def test_other_modalities_are_refused(tmp_path, modality, sop_class, words):
    path = save(base(ct(4, 4), ("x",), SOPClassUID=sop_class, Modality=modality), tmp_path / "x")
    with pytest.raises(Refused, match=f"^not CT: {words}$"):
        read_slices(path)


def test_one_reject_for_the_files_of_a_series(tmp_path):
    write_series(tmp_path / "pet", ct(9, 4, 4), "pet", SOPClassUID="1.2.840.10008.5.1.4.1.1.128", Modality="PT")
    for path in write_series(tmp_path / "bare", ct(9, 4, 4), "bare"):
        rewrite(path, lambda item: delattr(item, "ImageOrientationPatient"))
    for number in range(3):
        (tmp_path / f"{number}.dcm").write_bytes(b"<html>")
    sources = find_sources(tmp_path).sources
    assert sorted((source.reason, source.num_slices) for source in sources) == [
        (
            "a CT image without position, orientation, pixel spacing or size: ImageOrientationPatient is missing (9 files)",
            9,
        ),
        ("not CT: modality PT (9 files)", 9),
        ("not readable as DICOM: empty, truncated or another format (3 files)", 3),
    ]
    assert len({source.key for source in sources}) == 3


@pytest.mark.parametrize("content", [b"", b"DICM", b"\0" * 128 + b"DICM" + b"\xff" * 50, bytes(range(256)) * 2])
def test_broken_files_are_refused(tmp_path, content):
    path = tmp_path / "x.dcm"
    path.write_bytes(content)
    with pytest.raises(ValueError) as raised:
        read_slices(path)
    assert "\n" not in str(raised.value) and not isinstance(raised.value, LeftOut)


@pytest.mark.parametrize("where", ["everywhere", "behind the preamble", "in a sequence", "behind the pixels"])
def test_stretches_of_zeros_take_no_time(tmp_path, monkeypatch, where):
    """Downloads reserve their place on the disk; pydicom would see an element in each 8 zeros."""
    path, zeros = write_series(tmp_path, ct(8, 4, 4))[0], bytes(80_000)
    content = path.read_bytes()
    at = content.index(b"\x08\0\x16\0UI")  # SOPClassUID
    sequence = b"\x08\0\x06\0SQ\0\0\xff\xff\xff\xff" + b"\xfe\xff\0\xe0\xff\xff\xff\xff"
    path.write_bytes(
        {
            "everywhere": zeros,
            "behind the preamble": content[:132] + zeros,
            "in a sequence": content[:at] + sequence + zeros,
            "behind the pixels": content + zeros,
        }[where]
    )
    path = path.rename(path.with_suffix(".dcm"))
    reads = count_reads(monkeypatch)
    if where == "behind the pixels":
        assert np.array_equal(read_series(only(series_in(tmp_path.iterdir()))), ct(8, 4, 4))
    else:
        with pytest.raises(ValueError, match="not readable as DICOM"):
            read_slices(path)
    assert len(reads) < 8000  # a hundred for each of the other files


def count_reads(monkeypatch):
    reads, read = [], OpenedDicom.read

    def counted(self, *size):
        reads.append(size)
        return read(self, *size)

    monkeypatch.setattr(OpenedDicom, "read", counted)
    return reads
