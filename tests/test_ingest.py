"""From any CT to a prepared data set."""

import json

import nibabel as nib
import numpy as np
import pytest
import torch
from dicom_series import as_dicom, write_enhanced, write_series
from ingest import SIDE_MM, volumes_of, world, write_chest
from monai.data import MetaTensor

from scripts.data import chest_phantom, ct_datalist, grid_affine
from scripts.data.hounsfield import blank_warning
from scripts.data.ingest.preparation import Preparation
from scripts.data.ingest.pseudonyms import Pseudonym
from scripts.data.ingest.sources import find_sources
from scripts.data.resampling import resample

# the data set


def test_series_becomes_int16_hu_in_place(prepare, tmp_path, chest):
    write_chest(tmp_path / "in", np.rint(chest))
    status, folder, (record,) = prepare(tmp_path / "in")
    image = nib.load(folder / "volumes" / f"{record['volume']}.nii.gz")
    assert status == 0 and image.get_data_dtype() == np.int16
    np.testing.assert_allclose(np.asanyarray(image.dataobj), np.rint(np.maximum(chest, -1024)), atol=1)
    np.testing.assert_allclose(image.affine, grid_affine([32] * 3, [320] * 3), atol=1e-4)
    assert int(image.header["sform_code"]) == int(image.header["qform_code"]) == 1
    assert np.allclose(image.get_sform(), image.get_qform())
    assert [image.header["cal_min"], image.header["cal_max"]] == [-1000, 400]  # what viewers show black and white
    assert record["original_axes"] == "SPL" and record["coverage"] == [1, 1, 1]


def test_training_takes_the_data_set_as_it_is(prepare, tmp_path, chest):
    for number in range(12):
        write_chest(tmp_path / "in" / str(number), chest, str(number), PatientID=f"P{number // 2}")
    status, folder, records = prepare(tmp_path / "in")
    lists = ct_datalist(folder)
    content = json.loads((folder / "dataset.json").read_text())
    assert status == 0 and len(records) == 12
    assert (
        (len(lists["training"]), len(lists["validation"]))
        == (10, 2)
        == (content["numTraining"], content["numValidation"])
    )
    patients = [{item["patient"] for item in content[section]} for section in ("training", "validation")]
    assert not patients[0] & patients[1]


def test_all_kinds_of_files(prepare, tmp_path, chest, write_nifti):
    """The same chest from DICOM, an enhanced file, NIfTI, MetaImage, NRRD and RAD-ChestCT's axes."""
    import itk

    source = tmp_path / "in"
    whole, corner = np.rint(chest), -SIDE_MM * 15.5 * np.ones(3)
    write_chest(source / "dicom", whole)
    write_enhanced(source / "enhanced.dcm", as_dicom(whole), corner, (SIDE_MM, SIDE_MM), (0, 0, SIDE_MM))
    write_nifti(whole, grid_affine([32] * 3, [320] * 3), "in/a.nii.gz", np.int16)
    image = itk.image_from_array(np.ascontiguousarray(as_dicom(whole).astype(np.int16)))
    image.SetSpacing([SIDE_MM] * 3)
    image.SetOrigin(corner.tolist())
    itk.imwrite(image, str(source / "a.mha"))
    itk.imwrite(image, str(source / "a.nrrd"))
    np.savez_compressed(source / "trn00001.npz", ct=as_dicom(whole)[::-1].astype(np.int16))  # from the head down
    status, folder, records = prepare(source, spacing=[SIDE_MM] * 3, min_coverage=0, min_lung_ml=0)
    assert status == 0 and len(records) == 6
    for record in records:
        found = nib.load(folder / "volumes" / f"{record['volume']}.nii.gz")
        if record["kind"] == "RAD-ChestCT":  # always 0.8 mm
            assert found.shape == (32, 32, 32) and record["original_spacing_mm"] == [0.8, 0.8, 0.8]
            continue
        np.testing.assert_allclose(
            np.asanyarray(found.dataobj), np.maximum(whole, -1024), atol=1, err_msg=record["kind"]
        )


def test_rad_chest_ct_is_turned_and_spaced(prepare, tmp_path, chest):
    (tmp_path / "in").mkdir()
    np.savez_compressed(tmp_path / "in" / "trn00001.npz", ct=as_dicom(np.rint(chest))[::-1].astype(np.int16))
    status, folder, _ = prepare(tmp_path / "in", spacing=None, min_lung_ml=0)
    (path,) = volumes_of(folder).values()
    image = nib.load(path)
    assert status == 0 and np.allclose(image.header.get_zooms(), 0.8)
    np.testing.assert_allclose(np.asanyarray(image.dataobj), np.rint(np.maximum(chest, -1024)), atol=1)


def test_gantry_tilt_is_corrected(prepare, tmp_path, chest):
    """Tilted slices through the phantom give the same volume as upright ones."""
    angle = np.radians(20)
    lean = np.array([0, np.cos(angle), -np.sin(angle)])
    corner = np.array([-155.0, -155.0, -144.0])  # the lowest slice starts high and leans down to the back
    fine = chest_phantom(3, (64, 64, 64), (320, 320, 320))
    upright = MetaTensor(torch.from_numpy(fine)[None], affine=grid_affine([64] * 3, [320] * 3))
    affine = np.eye(4)  # axes slice, row, column
    affine[:3, :3] = np.diag([-1, -1, 1]) @ np.stack([[0, 0, 5.0], 5 * lean, [5.0, 0, 0]], axis=1)
    affine[:3, 3] = corner * [-1, -1, 1]
    index = world((80, 66, 63), affine)
    inverse = np.linalg.inv(upright.affine.numpy())
    voxel = index @ inverse[:3, :3].T + inverse[:3, 3]
    grid = torch.from_numpy(voxel[..., ::-1].copy()).float() / 63 * 2 - 1
    leaned = torch.nn.functional.grid_sample(
        upright.as_tensor()[None], grid[None], padding_mode="border", align_corners=True
    )
    orientation, step = (1, 0, 0, *lean), (0, 0, 5.0)
    write_series(
        tmp_path / "in",
        leaned[0, 0].numpy(),
        origin=corner,
        orientation=orientation,
        step=step,
        spacing=(5, 5),
        GantryDetectorTilt=20,
    )
    status, folder, (record,) = prepare(tmp_path / "in", center="body", spacing=5.0, size=[40, 40, 40])
    image = nib.load(folder / "volumes" / f"{record['volume']}.nii.gz")
    assert status == 0 and record["tilt_degrees"] == 20
    expected = resample(upright, image.affine, (40, 40, 40))[0].numpy()
    difference = np.abs(np.asanyarray(image.dataobj) - expected)
    assert np.median(difference) < 15 and difference.mean() < 30  # interpolated once more, at 5 mm


def test_crop_is_centred_on_the_lungs(chest):
    """A scan that goes on into the abdomen: the crop is as high as the lungs are."""
    fine = chest_phantom(3, (64, 64, 64), (320, 320, 320))
    padded = np.concatenate([np.repeat(fine[:, :, :1], 30, axis=2), fine], axis=2)  # 150 mm of abdomen below
    affine = grid_affine([64, 64, 94], [320, 320, 470])
    volume = MetaTensor(torch.from_numpy(padded)[None], affine=affine)
    centres = {}
    for center in ("lungs", "body", "volume"):
        _, target, facts = Preparation([5] * 3, [32] * 3, center)(volume)
        centres[center] = (target @ [15.5, 15.5, 15.5, 1])[:3]
    lungs = (fine < -600) & (fine > -950)
    z = np.flatnonzero(lungs.sum((0, 1)) > 50)
    assert centres["lungs"][2] == pytest.approx((z[0] + z[-1] + 60 - 93) / 2 * 5, abs=12)
    assert abs(centres["body"][2]) < 5 and centres["volume"].tolist() == [0, 0, 0]
    assert 2000 < facts["lung_ml"] < 7000 and not facts["warnings"]


def test_table_is_removed_and_the_body_kept():
    from scripts.data.phantoms.phantom import LABELS

    volume, labels = chest_phantom(5, (128, 128, 64), (320, 320, 320), return_labels=True)
    affine = grid_affine([128, 128, 64], [320, 320, 320])
    prepared = [
        Preparation([2.5, 2.5, 5.0], [128, 128, 64], "volume", remove)(
            MetaTensor(torch.from_numpy(volume)[None], affine=affine)
        )[0]
        for remove in (False, True)
    ]
    table, body = labels == LABELS["table"], (labels != LABELS["table"]) & (labels != LABELS["air"])
    assert (prepared[0][table] > -900).mean() > 0.3
    assert (prepared[1][table] > -900).mean() < 0.1
    assert (prepared[0] == prepared[1])[body].mean() > 0.995


def test_derived_and_too_dense_series_are_warned_of(prepare, tmp_path, chest):
    """A ring of padding that no tag names, in images computed from others."""
    ringed = np.rint(chest)
    ringed[:3, :3] = 3072
    write_chest(tmp_path / "in", ringed, ImageType=["DERIVED", "SECONDARY", "REFORMATTED"])
    status, _, (record,) = prepare(tmp_path / "in")
    assert status == 0 and record["status"] == "accepted"
    for words in ("ImageType says DERIVED", f"{9 / 32**2:.1%} of the voxels are above 3071 HU"):
        assert any(words in warning for warning in record["warnings"])


@pytest.mark.parametrize("z_axis", [0, 1, 2])
def test_planes_of_one_value_are_warned_of(chest, z_axis):
    """A download whose end is zeros; slices that were left empty; not the air around."""
    volume = torch.from_numpy(np.rint(chest[:, :30, :24]))[None]
    volume = volume.movedim(3, 1 + z_axis)
    inner = [slice(None)] * 4
    assert blank_warning(volume, z_axis) is None
    inner[1 + z_axis] = slice(0, 2)
    volume[tuple(inner)] = -1000
    assert blank_warning(volume, z_axis) is None
    inner[1 + z_axis] = slice(5, 8)
    volume[tuple(inner)] = -1024
    assert f"3 of {volume.shape[1 + z_axis]} planes hold one value each, like -1024 HU" in blank_warning(volume, z_axis)
    volume[:, 20:] = 0
    assert "planes hold one value each" in blank_warning(volume, z_axis)


# privacy, splits, lists


def test_nothing_identifies_a_patient(prepare, tmp_path, chest, capfd):
    source = tmp_path / "Doe^Jane"
    uids = set()
    for number in range(3):
        paths = write_chest(source / "LIDC-IDRI-0042" / str(number), chest, str(number), left_out=(4,) * (number == 2))
        uids.add(__import__("pydicom").dcmread(paths[0]).SeriesInstanceUID)
    (source / "ID-0042.nii.gz").write_bytes(b"broken")
    _, folder, _ = prepare(source, mapping_file=tmp_path / "map.csv")
    secrets = ["Doe", "Jane", "ID-0042", "LIDC", str(tmp_path / "Doe"), *uids]
    output = capfd.readouterr()
    written = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    written |= {path: __import__("gzip").decompress(data) for path, data in written.items() if path.suffix == ".gz"}
    for secret in secrets:
        assert not [path for path, data in written.items() if secret.encode() in data or secret in path.name], secret
        assert secret not in output.out + output.err
    assert "ID-0042" in (tmp_path / "map.csv").read_text()  # only there
    assert (tmp_path / "salt").stat().st_mode & 0o077 == 0


def test_pseudonyms_depend_on_the_salt(tmp_path, chest):
    write_chest(tmp_path, chest)
    (source,) = find_sources(tmp_path).sources
    assert Pseudonym("a").of(source) == Pseudonym("a").of(source) != Pseudonym("b").of(source)


def test_patients_come_from_file_names_where_asked(prepare, tmp_path, chest, write_nifti):
    for number in range(4):
        write_nifti(chest, grid_affine([32] * 3, [320] * 3), f"in/p{number // 2}_{number}.nii.gz", np.int16)
    _, _, records = prepare(tmp_path / "in", patient_from="(p[0-9])_")
    assert len({record["patient"] for record in records}) == 2


def test_datalist_keeps_its_split(prepare, tmp_path, chest, write_nifti):
    paths = [write_nifti(chest, grid_affine([32] * 3, [320] * 3), f"in/{i}.nii.gz", np.int16).name for i in range(3)]
    lists = {"training": [{"image": paths[1]}], "validation": [{"image": paths[0]}, {"image": paths[2]}]}
    (tmp_path / "in" / "split.json").write_text(json.dumps(lists))
    _, folder, _ = prepare(tmp_path / "in" / "split.json")
    found = ct_datalist(folder)
    assert (len(found["training"]), len(found["validation"])) == (1, 2)


def test_list_of_paths(prepare, tmp_path, chest, write_nifti):
    write_nifti(chest, grid_affine([32] * 3, [320] * 3), "in/a.nii.gz", np.int16)
    write_chest(tmp_path / "in" / "series", chest)
    write_nifti(chest, grid_affine([32] * 3, [320] * 3), "in/not_me.nii.gz", np.int16)
    (tmp_path / "in" / "list.txt").write_text("a.nii.gz\n\nseries\n")
    _, _, records = prepare(tmp_path / "in" / "list.txt")
    assert sorted(record["kind"] for record in records) == ["DICOM series", "NIfTI"]
