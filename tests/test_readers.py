"""Files of volumes: the geometry that they state, or the reason why they are not read."""

import gzip
import os

import itk
import nibabel as nib
import numpy as np
import pytest
from volume_files import header_mha, header_nrrd, nifti_bytes, put, raw, write

from scripts.data.readers import kind_of, parts_of, read_file

AFFINE = np.array([[-4.0, 0, 0, 30], [0, -5, 0, 20], [0, 0, 6, -40], [0, 0, 0, 1]])
VOLUME = np.arange(12 * 10 * 8).reshape(12, 10, 8).astype(np.int16) - 500
MIRRORED = np.diag([-1.0, 1, 1, 1]) @ AFFINE
SHEARED = AFFINE + np.array([[0, 0, 0, 0], [0, 0, 1.6, 0], [0, 0, 0, 0], [0, 0, 0, 0]])
MOVED = AFFINE + np.array([[0, 0, 0, 9], [0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]])


def in_units(affine, factor, unit):
    scaled = affine.copy()
    scaled[:3] *= factor
    return nifti_bytes(VOLUME, scaled, change=lambda content: put(content, 123, "B", unit))


def check(path, affine=AFFINE, volume=VOLUME, warning=None):
    found = read_file(path)
    np.testing.assert_allclose(np.asarray(found.affine), affine, atol=1e-3)
    np.testing.assert_array_equal(found[0].numpy(), volume)
    warnings = found.meta.get("warnings", [])
    assert not warnings if warning is None else len(warnings) == 1 and warning in warnings[0]
    return found


def refused(path, words):
    with pytest.raises(ValueError) as raised:
        read_file(path)
    message = str(raised.value)
    assert words in message and "\n" not in message and str(path.parent) not in message, message


@pytest.mark.parametrize(
    ("content", "affine", "warning"),
    [
        (nifti_bytes(VOLUME, AFFINE), AFFINE, None),
        (nifti_bytes(VOLUME, AFFINE, qform=0, qform_affine=MIRRORED), AFFINE, None),  # not to be used
        (nifti_bytes(VOLUME, AFFINE, sform=0), AFFINE, None),
        (nifti_bytes(VOLUME, MIRRORED, sform=0, qform_affine=AFFINE), AFFINE, None),
        (nifti_bytes(VOLUME, AFFINE, change=lambda c: put(c, 76, "f", 0)), AFFINE, None),  # qfac 0 means 1
        (nifti_bytes(VOLUME, SHEARED, qform=0), SHEARED, None),
        (nifti_bytes(VOLUME, SHEARED, qform_affine=AFFINE), SHEARED, "sheared"),
        (nifti_bytes(VOLUME, AFFINE, qform_affine=MOVED), AFFINE, "9 mm apart"),
        (nifti_bytes(VOLUME, AFFINE, change=lambda c: put(c, 280, "12f", *[0] * 12)), AFFINE, "sform is damaged"),
        (nifti_bytes(VOLUME, AFFINE, change=lambda c: put(c, 280, "f", np.nan)), AFFINE, "sform is damaged"),
        (nifti_bytes(VOLUME, AFFINE, change=lambda c: put(c, 256, "3f", 3, 3, 3)), AFFINE, "qform is damaged"),
        (nifti_bytes(VOLUME, AFFINE, change=lambda c: put(c, 80, "f", -4)), AFFINE, "qform is damaged"),
        (in_units(AFFINE, 1e-3, 1), AFFINE, None),
        (in_units(AFFINE, 1e3, 3), AFFINE, None),
        (in_units(AFFINE, 1, 0), AFFINE, None),
    ],
)
def test_nifti_is_where_its_coded_forms_say(tmp_path, content, affine, warning):
    check(write(tmp_path / "a.nii.gz", content), affine, warning=warning)
    check(write(tmp_path / "a.nii", content), affine, warning=warning)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (nifti_bytes(VOLUME, AFFINE, sform=0, qform=0), "sform_code and qform_code are 0"),
        (nifti_bytes(VOLUME, AFFINE, change=lambda c: put(c, 252, "2h", 9, -1)), "sform_code and qform_code are 0"),
        (nifti_bytes(VOLUME, AFFINE, qform_affine=MIRRORED), "contradict"),
        (nifti_bytes(VOLUME, SHEARED, qform_affine=MIRRORED), "contradict"),
        (nifti_bytes(VOLUME, AFFINE, qform_affine=AFFINE @ np.diag([1.2, 1, 1, 1])), "contradict"),
        (nifti_bytes(VOLUME, AFFINE, qform=0, change=lambda c: put(c, 80, "f", 1)), "voxel size is not known"),
        (nifti_bytes(VOLUME, AFFINE, qform=0, change=lambda c: put(c, 280, "12f", *[0] * 12)), "in its sform"),
        (nifti_bytes(VOLUME, AFFINE, qform=0, change=lambda c: put(c, 280, "f", np.inf)), "in its sform"),
        (nifti_bytes(VOLUME, AFFINE, sform=0, change=lambda c: put(c, 88, "f", 0)), "in its qform"),
        (nifti_bytes(VOLUME, AFFINE, sform=0, change=lambda c: put(c, 88, "f", np.nan)), "in its qform"),
        (nifti_bytes(VOLUME, AFFINE, sform=0, change=lambda c: put(c, 256, "3f", 3, 3, 3)), "in its qform"),
        (in_units(AFFINE, 40, 2), "field of view is 1920 x 2000 x 1920 mm"),
        (in_units(AFFINE, 1, 1), "field of view"),  # mm that are called metres
        (in_units(AFFINE, 1, 3), "voxel size is zero"),  # mm that are called microns
        (nifti_bytes(VOLUME, AFFINE, change=lambda c: put(c, 42, "3h", 30000, 30000, 30000)), "more than a body's"),
        (nifti_bytes(VOLUME, AFFINE, change=lambda c: put(c, 42, "h", -1)), "not one 3D volume"),
        (nifti_bytes(VOLUME[:, :, :0], AFFINE), "not one 3D volume"),
        (nifti_bytes(np.stack([VOLUME] * 2, -1), AFFINE), "not one 3D volume: its shape is (12, 10, 8, 2)"),
        (nifti_bytes(VOLUME + 1j, AFFINE, dtype=np.complex64), "complex"),
        (nifti_bytes(np.zeros((4, 4, 4)), AFFINE, dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")]), "no single numbers"),
        (nifti_bytes(VOLUME, AFFINE, change=lambda c: put(c, 70, "h", 1234)), "cannot be read"),
        (nifti_bytes(VOLUME, AFFINE, change=lambda c: put(c, 108, "f", 0)), "vox_offset 0"),
        (nifti_bytes(VOLUME, AFFINE, change=lambda c: put(c, 108, "f", 348)), "vox_offset 348"),
        (nifti_bytes(VOLUME, AFFINE, change=lambda c: put(c, 108, "f", np.nan)), "vox_offset nan"),
        (nifti_bytes(VOLUME, AFFINE)[:-100], "cannot be read"),
        (nifti_bytes(VOLUME, AFFINE, change=lambda c: put(c, 344, "4s", b"\0")), "Analyze"),
        (b"hello" * 200, "does not start like a NIfTI"),
        (b"hello", "does not start like a NIfTI"),
    ],
)
def test_nifti_that_nobody_can_place_is_refused(tmp_path, content, words):
    refused(write(tmp_path / "a.nii.gz", content), words)


def test_memory_is_asked_before_it_is_taken(tmp_path, monkeypatch):
    """Voxels of 0.02 mm keep the field of view of a header that lies within a body's."""
    from scripts.data import geometry

    small = AFFINE.copy()
    small[:3, :3] = np.diag([0.02] * 3)
    content = nifti_bytes(VOLUME, small, change=lambda c: put(c, 42, "3h", 30000, 30000, 30000))
    refused(write(tmp_path / "a.nii.gz", content), "30000 x 30000 x 30000 voxels, too many for the memory")
    monkeypatch.setattr(geometry, "machine_memory", lambda: None)  # as on a system that does not tell
    refused(tmp_path / "a.nii.gz", "")


def test_trailing_axes_of_one_are_no_axes(tmp_path):
    check(write(tmp_path / "a.nii.gz", nifti_bytes(VOLUME[..., None, None], AFFINE)))
    four = {"NDims": "4", "DimSize": "12 10 8 1", "ElementSpacing": "4 5 6 1", "Offset": "-30 -20 -40 0"}
    matrix = {"TransformMatrix": " ".join(map(str, np.eye(4, dtype=int).ravel()))}
    check(write(tmp_path / "a.mha", header_mha(VOLUME.shape, AFFINE, **four, **matrix) + raw(VOLUME)))


def test_gzip_is_read_to_its_checksum(tmp_path):
    content = bytearray(gzip.compress(nifti_bytes(VOLUME, AFFINE)))
    content[-8] ^= 1  # CRC32
    (tmp_path / "a.nii.gz").write_bytes(content)
    refused(tmp_path / "a.nii.gz", "cannot be read (BadGzipFile)")


def test_scaled_types(tmp_path):
    for slope, inter, stored, dtype in (
        (0, 0, VOLUME, "i2"),
        (1, -1024, VOLUME + 1024, "u2"),
        (0.5, 0, VOLUME * 2, "i4"),
    ):
        content = nifti_bytes(stored, AFFINE, dtype=dtype, change=lambda c: put(c, 112, "2f", slope, inter))
        check(write(tmp_path / "a.nii.gz", content))
    check(write(tmp_path / "a.nii.gz", nifti_bytes(VOLUME + 0j, AFFINE, dtype=np.complex64)))
    image = nib.Nifti2Image(VOLUME.astype(">i2"), AFFINE)
    nib.save(image, tmp_path / "two.nii.gz")
    check(tmp_path / "two.nii.gz")


@pytest.mark.parametrize("name", ["ct.img", "ct.img.gz"])
def test_pairs_of_header_and_data(tmp_path, name):
    image = nib.Nifti1Pair(VOLUME, AFFINE)
    image.set_sform(AFFINE, 1)
    nib.save(image, tmp_path / name)
    header = tmp_path / name.replace("img", "hdr")
    check(header)
    assert kind_of(header) == "NIfTI" and parts_of(header) == (str(header), str(tmp_path / name))
    (tmp_path / name).unlink()
    refused(header, "cannot be opened: No such file")


def test_detached_data(tmp_path):
    (tmp_path / "a.raw.gz").write_bytes(gzip.compress(raw(VOLUME)))
    check(write(tmp_path / "a.nhdr", header_nrrd(VOLUME.shape, AFFINE, data="a.raw.gz")))
    (tmp_path / "b.raw").write_bytes(raw(VOLUME))
    check(write(tmp_path / "b.mhd", header_mha(VOLUME.shape, AFFINE, data="b.raw")))
    assert parts_of(tmp_path / "b.mhd") == (str(tmp_path / "b.mhd"), str(tmp_path / "b.raw"))


@pytest.mark.parametrize("space", ["left-posterior-superior", "right-anterior-superior", "LAS"])
def test_nrrd_in_all_spaces_of_a_patient(tmp_path, space):
    check(write(tmp_path / "a.nrrd", header_nrrd(VOLUME.shape, AFFINE, space) + raw(VOLUME)))


@pytest.mark.parametrize("dtype", ["int8", "uint16", "int64", "float32"])
def test_types_of_metaimage_and_nrrd(tmp_path, dtype):
    names = {"int8": "MET_CHAR", "uint16": "MET_USHORT", "int64": "MET_LONG_LONG", "float32": "MET_FLOAT"}
    volume = VOLUME % 100
    content = volume.astype(dtype).tobytes(order="F")
    check(
        write(tmp_path / "a.mha", header_mha(VOLUME.shape, AFFINE, ElementType=names[dtype]) + content), volume=volume
    )
    name = {"int64": "longlong", "float32": "float"}.get(dtype, dtype)
    check(write(tmp_path / "a.nrrd", header_nrrd(VOLUME.shape, AFFINE, type=name) + content), volume=volume)


def test_nrrd_with_a_list_of_one_number_a_voxel(tmp_path):
    """As 3D Slicer keeps sequences."""
    directions = header_nrrd(VOLUME.shape, AFFINE).decode().split("space directions: ")[1].split("\n")[0]
    more = {"dimension": "4", "sizes": "1 12 10 8", "space_directions": f"none {directions}"}
    header = header_nrrd(VOLUME.shape, AFFINE, kinds="list domain domain domain", **more)
    check(write(tmp_path / "a.nrrd", header + raw(VOLUME)))


@pytest.mark.parametrize(("unit", "factor"), [("um", 1e3), ("m", 1e-3), ("mm", 1), ("cm", 0.1)])
def test_units_of_length(tmp_path, unit, factor):
    """ITK ignores them."""
    scaled = AFFINE.copy()
    scaled[:3] *= factor
    check(write(tmp_path / "a.mha", header_mha(VOLUME.shape, scaled, DistanceUnits=unit) + raw(VOLUME)))
    units = " ".join([f'"{unit}"'] * 3)
    check(write(tmp_path / "a.nrrd", header_nrrd(VOLUME.shape, scaled, space_units=units) + raw(VOLUME)))


@pytest.mark.parametrize(
    ("name", "header", "words"),
    [
        ("a.nrrd", header_nrrd(VOLUME.shape, AFFINE, space=None, space_dimension="3"), "orientation is not known"),
        ("a.nrrd", header_nrrd(VOLUME.shape, AFFINE, space="scanner-xyz"), "orientation is not known"),
        ("a.nrrd", header_nrrd(VOLUME.shape, AFFINE, space_directions=None, spacings="4 5 6"), "orientation is not"),
        ("a.nrrd", header_nrrd(VOLUME.shape, AFFINE, space_units='"mm" "mm" "m"'), "unit of length"),
        ("a.nrrd", header_nrrd(VOLUME.shape, AFFINE, sizes="30000 30000 30000"), "more than a body's"),
        ("a.nrrd", header_nrrd(VOLUME.shape, AFFINE, sizes="12 10 -8"), "cannot be read"),
        ("a.nrrd", header_nrrd(VOLUME.shape, AFFINE, sizes="12 10 9"), "cannot be read"),
        ("a.nrrd", b"hello", "orientation is not known"),
        ("a.mha", header_mha(VOLUME.shape, AFFINE, TransformMatrix=None), "orientation is not known"),
        ("a.mha", header_mha(VOLUME.shape, AFFINE, NDims="-3"), "number of axes"),  # ITK ends the process
        ("a.mha", header_mha(VOLUME.shape, AFFINE, NDims="93"), "number of axes"),
        ("a.mha", header_mha(VOLUME.shape, AFFINE, ElementSpacing=None), "neither ElementSpacing nor ElementSize"),
        ("a.mha", header_mha(VOLUME.shape, AFFINE, TransformMatrix="1 0 0 0 1 0 0 0 2"), "not of length 1"),
        ("a.mha", header_mha(VOLUME.shape, AFFINE, DistanceUnits="inch"), "unit of length"),
        ("a.mha", header_mha(VOLUME.shape, AFFINE, ElementNumberOfChannels="3"), "3 numbers each"),
        ("a.mha", header_mha(VOLUME.shape, AFFINE, ElementSpacing="400 500 600"), "more than a body's"),
        ("a.mha", header_mha(VOLUME.shape, AFFINE, ElementSpacing="1e-6 1e-6 1e-6"), "voxel size is zero"),
        ("a.mhd", header_mha(VOLUME.shape, AFFINE, data="gone.raw"), "cannot be read"),
    ],
)
def test_metaimage_and_nrrd_that_nobody_can_place_are_refused(tmp_path, name, header, words):
    refused(write(tmp_path / name, header + raw(VOLUME)), words)


def test_what_itk_writes_says_how_it_lies(tmp_path):
    image = itk.image_from_array(np.ascontiguousarray(VOLUME.T))
    for name in ("a.mha", "a.nrrd", "a.mhd", "a.nhdr"):
        itk.imwrite(image, str(tmp_path / name))
        check(tmp_path / name, np.diag([-1.0, -1, 1, 1]))


@pytest.mark.skipif(os.name != "posix", reason="names are bytes on POSIX alone")
def test_names_that_are_no_utf8(tmp_path):
    folder = tmp_path / os.fsdecode(b"M\xfcller")
    check(write(folder / os.fsdecode(b"\xfc.nrrd"), header_nrrd(VOLUME.shape, AFFINE) + raw(VOLUME)))
    (folder / "b.raw").write_bytes(raw(VOLUME))
    check(write(folder / "b.mhd", header_mha(VOLUME.shape, AFFINE, data="b.raw")))
    check(write(folder / os.fsdecode(b"\xfc.nii.gz"), nifti_bytes(VOLUME, AFFINE)))


# RAD-ChestCT


@pytest.mark.parametrize("kind", ["other", "text", "flat", "object", "npy", "header", "bytes", "empty"])
def test_npz_that_is_no_rad_chest_ct(tmp_path, kind):
    path, volume = tmp_path / "a.npz", np.random.default_rng(0).integers(-1000, 1000, (8, 16, 16)).astype(np.int16)
    arrays = {
        "text": np.array([[["a"]]]),
        "flat": volume[0],
        "object": np.array([[[None]]], object),
        "empty": volume[:0],
    }
    np.savez_compressed(path, **{"other" if kind == "other" else "ct": arrays.get(kind, volume)})
    content = bytearray(path.read_bytes())
    if kind == "npy":
        np.save(tmp_path / "a.npy", volume)
        content = (tmp_path / "a.npy").read_bytes()
    if kind == "header":  # claims more than is there
        np.savez(path, ct=volume)
        content = path.read_bytes().replace(b"(8, 16, 16)", b"(8, 16,999)")
    if kind == "bytes":
        content[500:600] = bytes(100)
    path.write_bytes(content)
    words = {"flat": "not one 3D volume", "empty": "not one 3D volume"}
    refused(path, words.get(kind, "no readable array"))
