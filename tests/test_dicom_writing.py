"""DICOM series that we write, as others read them: ITK, dcm2niix, dciodvfy, pydicom, and our own reader."""

import shutil
import subprocess

import itk
import nibabel as nib
import numpy as np
import pydicom
import pytest
from dicom_series import only, series_in
from pydicom.uid import CTImageStorage

from scripts.data.dicom import read_series
from scripts.data.dicom.writing import Origin, series_uid, write_series

ORIGIN = Origin("test", True, "Synthetic CT, seed 0", "Drawn by a test.", "CHEST", {"Manufacturer": "PRDiT"})
SPACING = (0.7, 0.9, 2.5)


def turned(degrees, axis):
    """Rotation about an axis of the patient, (4, 4)."""
    a, b = [other for other in range(3) if other != axis]
    matrix, angle = np.eye(4), np.radians(degrees)
    matrix[[a, a, b, b], [a, b, a, b]] = np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle)
    return matrix


def placed(matrix, origin=(-103.25, 41.5, -1234.567)):
    affine = matrix @ np.diag([*SPACING, 1.0])
    affine[:3, 3] = origin
    return affine


AFFINES = {
    "RAS": placed(np.eye(4)),
    "LPS": placed(np.diag([-1.0, -1.0, 1.0, 1.0])),
    "left-handed": placed(np.diag([1.0, -1.0, -1.0, 1.0])[[0, 1, 2, 3]] @ np.diag([-1.0, 1, 1, 1])),
    "slices first": placed(np.eye(4)[[1, 2, 0, 3]]),
    "sagittal, from the feet": placed(np.eye(4)[[2, 0, 1, 3]] @ np.diag([-1.0, 1, -1, 1])),
    "oblique": placed(turned(17, 0) @ turned(-9, 1) @ turned(31, 2)),
}


@pytest.fixture(params=AFFINES)
def written(request, tmp_path):
    """Noise in HU, where its voxels lie, and the folder of its series."""
    volume = np.random.default_rng(3).integers(-1024, 3072, (7, 9, 11)).astype(np.int16)
    write_series(volume, AFFINES[request.param], tmp_path / "ct_dicom", ORIGIN)
    return volume, AFFINES[request.param], tmp_path / "ct_dicom"


def assert_same(volume, affine, found, found_affine):
    """Equal HU at places that are equal to 0.01 mm, whatever the order of the axes; affines are RAS."""
    index = np.stack(np.meshgrid(*map(np.arange, found.shape), indexing="ij"), -1).reshape(-1, 3)
    world = index @ found_affine[:3, :3].T + found_affine[:3, 3]
    source = np.rint((world - affine[:3, 3]) @ np.linalg.inv(affine[:3, :3]).T).astype(int)
    error = np.linalg.norm(source @ affine[:3, :3].T + affine[:3, 3] - world, axis=1)
    assert error.max() < 0.01
    assert len(np.unique(source, axis=0)) == volume.size and source.min() == 0
    assert np.array_equal(volume[tuple(source.T)], found.ravel())


def headers(folder):
    return [pydicom.dcmread(path) for path in sorted(folder.glob("*.dcm"))]


def test_our_reader_reads_it_back(written):
    volume, affine, folder = written
    series = only(series_in(sorted(folder.iterdir()), min_slices=2))
    assert_same(volume, affine, read_series(series), series.affine)
    assert series.tilt_degrees < 1e-4 and series.warnings == [
        "ImageType says DERIVED: reformatted or processed images?"
    ]


def test_itk_reads_it_back(written):
    volume, affine, folder = written
    names = itk.GDCMSeriesFileNames.New(Directory=str(folder))
    (uid,) = names.GetSeriesUIDs()
    image = itk.imread(list(names.GetFileNames(uid)), itk.F)
    found = np.eye(4)
    found[:3, :3] = itk.array_from_matrix(image.GetDirection()) * np.array(image.GetSpacing())
    found[:3, 3] = image.GetOrigin()
    assert_same(volume, affine, itk.array_from_image(image).transpose(2, 1, 0), np.diag([-1.0, -1, 1, 1]) @ found)


@pytest.mark.skipif(shutil.which("dcm2niix") is None, reason="dcm2niix is not installed")
def test_dcm2niix_reads_it_back(written, tmp_path):
    volume, affine, folder = written
    (tmp_path / "nifti").mkdir()
    subprocess.run(["dcm2niix", "-o", tmp_path / "nifti", folder], check=True, capture_output=True)
    (path,) = (tmp_path / "nifti").glob("*.nii")
    image = nib.load(path)
    assert_same(volume, affine, image.get_fdata(), image.affine)


def test_slices_are_numbered_from_head_to_feet_and_look_as_radiologists_do(written):
    volume, affine, folder = written
    items = headers(folder)
    assert [item.InstanceNumber for item in items] == list(range(1, len(items) + 1))
    directions = np.reshape(items[0].ImageOrientationPatient, (2, 3)).astype(float)
    normal = np.cross(*directions)
    along = [float(np.dot(item.ImagePositionPatient, normal)) for item in items]
    assert np.allclose(along, [item.SliceLocation for item in items], atol=1e-5)
    assert normal[2] > 0.7 and (np.diff(along) < 0).all()  # the next slice lies nearer to the feet
    assert directions[0][0] > 0.7 and directions[1][1] > 0.7  # to the patient's left, to the back
    assert np.allclose(np.diff(along), -float(items[0].SpacingBetweenSlices), atol=1e-4)
    assert items[0].SliceThickness == items[0].SpacingBetweenSlices


@pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="dicom3tools is not installed")
def test_dciodvfy_finds_no_error(written):
    """Its dictionary of 2022 does not know SyntheticData (0008,001C), which is younger."""
    for path in (written[2] / "0001.dcm", written[2] / "0002.dcm"):
        found = subprocess.run(["dciodvfy", "-new", path], capture_output=True, text=True).stderr.splitlines()
        assert "CTImage" in found
        assert [line for line in found if line.startswith(("Error", "Warning")) and "(0008,001c)" not in line] == []


def test_what_a_series_says_of_itself(written):
    items = headers(written[2])
    shared = [
        "PatientID", "PatientName", "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID", "ImageType",
        "Rows", "Columns", "PixelSpacing", "ImageOrientationPatient",
    ]  # fmt: skip
    assert all(item[name].value == items[0][name].value for item in items for name in shared)
    first = items[0]
    uids = [item.SOPInstanceUID for item in items]
    uids += [first.StudyInstanceUID, first.SeriesInstanceUID, first.FrameOfReferenceUID]
    assert len(set(uids)) == len(uids) and all(uid.is_valid and uid.startswith("2.25.") for uid in uids)
    assert all(item.file_meta.MediaStorageSOPInstanceUID == item.SOPInstanceUID for item in items)
    assert first.file_meta.MediaStorageSOPClassUID == first.SOPClassUID == CTImageStorage
    assert first.SyntheticData == "YES" and first.ContentQualification == "RESEARCH" and first.Modality == "CT"
    assert first.ImageType == ["DERIVED", "SECONDARY", "AXIAL"] and first.BodyPartExamined == "CHEST"
    assert str(first.PatientName).startswith("Synthetic^") and first.PatientID.startswith("SYNTHETIC-")
    assert first.PatientBirthDate == first.PatientSex == first.AccessionNumber == ""
    assert [first.WindowCenter[0], first.WindowWidth[0]] == [40, 400] and first.RescaleSlope == 1
    assert first.ImagesInAcquisition == len(items) and "no patient" in first.PatientComments
    dates = {str(element.value) for element in first.iterall() if element.VR in ("DA", "DT", "TM")}
    assert dates <= {"", "20000101", "000000"}


@pytest.mark.parametrize(
    ("values", "stored"),
    [((-1024, 3071), ("0", 12, "uint16")), ((-1025, 3071), ("1", 16, "int16")), ((-32768, 32767), ("1", 16, "int16"))],
)
def test_values_are_stored_as_scanners_do_where_they_fit(tmp_path, values, stored):
    volume = np.linspace(*values, 4 * 5 * 6).reshape(4, 5, 6)
    volume[0, 0, :2] = values
    write_series(volume, np.eye(4), tmp_path / "a", ORIGIN)
    items = headers(tmp_path / "a")
    assert (str(items[0].PixelRepresentation), items[0].BitsStored, str(items[0].pixel_array.dtype)) == stored
    assert items[0].HighBit == items[0].BitsStored - 1
    found = np.stack(
        [item.pixel_array.astype(int) * int(item.RescaleSlope) + int(item.RescaleIntercept) for item in items]
    )
    assert_same(np.rint(volume), np.eye(4), found.transpose(2, 1, 0)[::-1, ::-1, ::-1], np.eye(4))


def test_uids_follow_from_the_volume_and_what_made_it(tmp_path):
    volume = np.random.default_rng(0).integers(-1000, 1000, (4, 5, 6))
    uid = series_uid(volume, np.eye(4), ORIGIN)
    write_series(volume, np.eye(4), tmp_path / "a", ORIGIN)
    write_series(volume, np.eye(4), tmp_path / "b", ORIGIN)
    for one, other in zip(sorted((tmp_path / "a").iterdir()), sorted((tmp_path / "b").iterdir())):
        assert one.read_bytes() == other.read_bytes()
    assert headers(tmp_path / "a")[0].SeriesInstanceUID == uid
    # stored in another order of its axes it is the same volume
    assert (
        series_uid(volume[::-1], np.array([[-1.0, 0, 0, 3], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]), ORIGIN) == uid
    )
    changed = volume.copy()
    changed[0, 0, 0] += 1
    others = [
        series_uid(changed, np.eye(4), ORIGIN),
        series_uid(volume, np.diag([1.0, 1, 1.01, 1]), ORIGIN),
        series_uid(volume, np.eye(4), Origin("other", *list(vars(ORIGIN).values())[1:])),
    ]
    assert len({uid, *others}) == 4


@pytest.mark.parametrize(
    ("change", "fact"),
    [
        (
            lambda volume, affine: (volume, affine @ [[1, 0.01, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]),
            "tilted",
        ),
        (
            lambda volume, affine: (volume, affine @ [[1, 0, 0, 0], [0, 1, 0.01, 0], [0, 0, 1, 0], [0, 0, 0, 1]]),
            "tilted",
        ),
        (lambda volume, affine: (volume * np.nan, affine), "not numbers"),
        (lambda volume, affine: (volume + 40_000, affine), "more than 16 bits hold"),
    ],
)
def test_what_dicom_cannot_hold_is_refused(tmp_path, change, fact, one_line):
    with pytest.raises(ValueError) as refused:
        write_series(*change(np.zeros((4, 5, 6)), np.diag([2.0, 2, 2, 1])), tmp_path / "a", ORIGIN)
    one_line(refused, fact)
    assert not list(tmp_path.iterdir())
