"""From any CT to a prepared data set."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from dicom_series import as_dicom, base, rewrite, save, truncate, write_enhanced, write_series
from monai.data import MetaTensor

from scripts.data import LoadCTd, chest_phantom, ct_datalist, grid_affine, intensity_of, prepare_dataset
from scripts.data.hounsfield import hu_problem
from scripts.data.preparation import Preparation, ras_affine, resample
from scripts.data.pseudonyms import Pseudonym
from scripts.data.sources import find_sources

BUNDLE = Path(__file__).resolve().parents[1] / "bundle"
REAL_CT = BUNDLE.parents[1] / "shared" / "ct"
SIDE_MM = 10.0  # of the tests' voxels: a whole chest in 32 of them


@pytest.fixture(scope="module")
def chest():
    """A phantom in HU, (X, Y, Z), RAS, 32 voxels of 10 mm."""
    return chest_phantom(3, (32, 32, 32), (320, 320, 320))


@pytest.fixture
def prepare(tmp_path):
    """Runs prepare_dataset in this process on 32 voxels of 10 mm; returns the exit status, folder and records."""

    def run(source, folder="set", **settings):
        folder = tmp_path / folder
        settings = {"spacing": SIDE_MM, "size": 32, "center": "volume", "num_workers": 0, **settings}
        status = 0
        try:
            prepare_dataset(source, folder, salt_file=tmp_path / "salt", **settings)
        except SystemExit as stop:
            status = stop.code
        records = [json.loads(path.read_text()) for path in sorted((folder / "records").glob("*.json"))]
        return status, folder, records

    return run


def write_chest(folder, volume, name="a", **tags):
    """The phantom as an axial series with its true geometry."""
    corner = -SIDE_MM * (np.array(volume.shape) - 1) / 2
    geometry = {"origin": corner, "spacing": (SIDE_MM, SIDE_MM), "step": (0, 0, SIDE_MM)}
    return write_series(folder, as_dicom(volume), name, **{**geometry, **tags})


def volumes_of(folder):
    return {path.name: path for path in (folder / "volumes").iterdir()}


# resampling


def linear(points, slope=(3.0, -2.0, 2.5)):
    """HU that are linear in world coordinates (..., 3): trilinear interpolation and averages keep them exactly."""
    return points @ np.asarray(slope) - 100


def world(shape, affine):
    return np.einsum("ij,jxyz->xyzi", affine[:3, :3], np.indices(shape)) + affine[:3, 3]


@pytest.mark.parametrize("seed", range(12))
def test_every_geometry_keeps_the_places_of_its_hu(seed):
    """Random rotations, shears, mirrored axes, spacings: what lay at a point in mm lies there afterwards."""
    rng = np.random.default_rng(seed)
    rotation, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    shear = np.eye(3) + np.triu(rng.uniform(-0.3, 0.3, (3, 3)), 1)
    turned = rotation if seed % 2 else np.eye(3)[rng.permutation(3)] * rng.choice([-1, 1], 3)
    affine = np.eye(4)
    affine[:3, :3] = turned @ shear @ np.diag(rng.uniform(0.4, 3.5, 3))
    shape = rng.integers(24, 40, 3)
    affine[:3, 3] = rng.uniform(-200, 200, 3) - affine[:3, :3] @ (shape / 2)
    source = MetaTensor(torch.from_numpy(linear(world(shape, affine)))[None].float(), affine=affine)
    spacing, size = rng.uniform(0.8, 4.0, 3), rng.integers(8, 20, 3).tolist()
    centre = affine[:3, :3] @ ((shape - 1) / 2) + affine[:3, 3]
    target = ras_affine(centre.tolist(), size, spacing.tolist())
    found = resample(source, target, size)[0].numpy()
    places = world(size, target)
    index = (places - affine[:3, 3]) @ np.linalg.inv(affine[:3, :3]).T
    margin = 1.5 * spacing.max() / np.linalg.norm(affine[:3, :3], axis=0) + 1  # averages may leave out the border
    inner = ((index > margin) & (index < shape - 1 - margin)).all(-1)
    outside = ((index < -0.6) | (index > shape - 0.4)).any(-1)
    assert inner.sum() > 20
    expected = linear(places)
    clipped = expected[inner] > -1020  # lower values are padding
    np.testing.assert_allclose(found[inner][clipped], expected[inner][clipped], atol=0.05)
    assert (found[outside] == -1000).all()


def test_same_grid_is_copied(chest):
    affine = grid_affine([32] * 3, [320] * 3)
    found = resample(MetaTensor(torch.from_numpy(chest)[None], affine=affine), affine, [32] * 3)
    np.testing.assert_allclose(found[0], np.maximum(chest, -1024), atol=1e-3)


def test_fine_noise_is_averaged_not_aliased():
    noise = torch.randn(1, 64, 64, 64, generator=torch.Generator().manual_seed(0)) * 100
    affine = grid_affine([64] * 3, [64] * 3)
    coarse = resample(MetaTensor(noise, affine=affine), grid_affine([16] * 3, [64] * 3), [16] * 3)
    assert float(coarse.std()) == pytest.approx(100 / 8, rel=0.05)  # 4^3 voxels averaged


# values


def test_hu_are_recognised(chest):
    volume = torch.from_numpy(chest.copy())
    assert hu_problem(volume) is None
    assert hu_problem(volume.to(torch.int16)) is None
    assert "rescale was not applied" in hu_problem(volume + 1024)
    assert "applied twice" in hu_problem(volume - 1024)
    for scaled in (((volume + 1000) / 8).clip(0, 255), (volume.clip(-1000, 1000) + 1000) / 2000, volume / 1000):
        assert "not a chest CT in HU" in hu_problem(scaled)
    volume[3, 4, 5] = torch.nan
    assert "not numbers" in hu_problem(volume)


@pytest.mark.parametrize("seed", range(6))
def test_phantoms_of_all_kinds_are_hu(seed):
    assert hu_problem(torch.from_numpy(chest_phantom(seed, (24, 24, 24), (320, 320, 320)))) is None


def test_scanner_padding_becomes_air(prepare, tmp_path, chest):
    padded = chest.copy()
    padded[:3] = -2000
    write_chest(tmp_path / "in", padded)
    _, folder, _ = prepare(tmp_path / "in")
    (path,) = volumes_of(folder).values()
    found = np.asanyarray(nib.load(path).dataobj)
    assert (found[:3] == -1024).all()


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
    status, folder, records = prepare(source, spacing=[SIDE_MM] * 3, min_coverage=0)
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
    status, folder, _ = prepare(tmp_path / "in", spacing=None)
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
    from scripts.data.phantom import LABELS

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


# what is refused


def test_one_bad_series_never_stops_the_rest(prepare, tmp_path, chest, write_nifti, capsys):
    source, fine = tmp_path / "in", np.rint(chest)
    write_chest(source / "good", fine, "good")
    write_chest(source / "gap", fine, "gap", left_out=(10,))
    for path in write_chest(source / "cut", fine, "cut")[3:5]:
        truncate(path, 0.9)
    write_chest(source / "raw", fine, "raw", RescaleIntercept=0)
    write_chest(source / "twice", fine - 1024, "twice", intercept=-2048)
    write_chest(source / "small", fine[:, :, :12], "small")
    save(base(fine[0], ("mr", 0), SOPClassUID="1.2.840.10008.5.1.4.1.1.4", Modality="MR"), source / "mr")
    save(base(fine[0], ("scout", 0), ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"]), source / "good" / "scout")
    (source / "empty.dcm").write_bytes(b"")
    (source / "notes.txt").write_text("no CT")
    write_nifti(np.clip(fine / 8 + 125, 0, 255), name="in/grey.nii.gz")
    bare = nib.Nifti1Image(fine.astype(np.int16), None)
    nib.save(bare, source / "bare.nii.gz")
    status, folder, records = prepare(source)
    reasons = sorted(record["reason"] for record in records if record["status"] == "rejected")
    assert status == 2 and [record["status"] for record in records].count("accepted") == 1
    for words in (
        "1 slice is missing, between",
        "pixel data cannot be decoded",
        "rescale was not applied",
        "applied twice",
        "the scan covers 120 of 320 mm along z, less than min_coverage 0.75",
        "not CT: modality MR",
        "the file is empty",
        "not a chest CT in HU: its values are 0 to 1",
        "its orientation is not known: sform_code and qform_code are 0",
    ):
        assert sum(words in text for text in reasons) == 1, (words, reasons)
    assert len(reasons) == 9
    assert "1 volumes of 1 patients accepted" in capsys.readouterr().out
    with open(folder / "report.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert sorted(row["reason"] for row in rows if row["status"] == "rejected") == reasons
    page = (folder / "report.html").read_text()
    assert "1 accepted, 9 rejected" in page and "1 localizer, 1 no CT format" in page


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_unreadable_files_are_named(prepare, tmp_path, chest, write_nifti):
    path = write_nifti(chest, grid_affine([32] * 3, [320] * 3), "in/a.nii.gz")
    path.chmod(0)
    status, _, (record,) = prepare(tmp_path / "in")
    assert status == 2 and "Permission denied" in record["reason"]


def test_file_that_cannot_be_opened_is_named(monkeypatch, tmp_path):
    """As above, for those who test as root."""
    from scripts.data import sources

    (tmp_path / "a.dcm").write_bytes(b"x")

    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(sources, "is_dicom", refuse)
    (source,) = find_sources(tmp_path).sources
    assert source.reason == "cannot be opened: Permission denied"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"center": "heart"}, ["center", "heart"]),
        ({"min_coverage": 2}, ["min_coverage", "2"]),
        ({"spacing": 0}, ["positive"]),
        ({"num_workers": -1}, ["num_workers"]),
        ({"patient_from": "("}, ["patient_from", "("]),
        ({"patient_from": "NLST-[0-9]+"}, ["patient_from", "NLST", "a.nii.gz"]),
        ({"mapping_file": "set/map.csv"}, ["mapping_file", "dataset_dir"]),
    ],
)
def test_wrong_settings_are_named(prepare, tmp_path, chest, write_nifti, settings, words, one_line, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_nifti(chest, grid_affine([32] * 3, [320] * 3), "in/a.nii.gz")
    with pytest.raises(ValueError) as raised:
        prepare(tmp_path / "in", **settings)
    one_line(raised, *words)


@pytest.mark.parametrize("kind", ["missing", "empty", "inside", "list", "gone", "none"])
def test_wrong_places_are_named(prepare, tmp_path, kind, one_line):
    source = tmp_path / "in"
    if kind != "missing":
        source.mkdir()
    if kind in ("list", "gone"):
        source = source / "list.json"
        source.write_text("{" if kind == "list" else '{"training": [{"image": "gone.nii.gz"}], "validation": []}')
    with pytest.raises(ValueError) as raised:
        prepare(None if kind == "none" else source, "in/set" if kind == "inside" else "set")
    one_line(raised, "dataset_dir" if kind == "inside" else "source_dir")


def test_full_disk_stops_in_one_line(prepare, tmp_path, chest, monkeypatch, one_line):
    from scripts.data import volume_job

    def refuse(*arguments):
        raise OSError(28, "No space left on device")

    write_chest(tmp_path / "in", chest)
    monkeypatch.setattr(volume_job, "save_nifti", refuse)
    with pytest.raises(ValueError) as raised:
        prepare(tmp_path / "in")
    one_line(raised, "dataset_dir", "No space left on device")


def test_other_settings_in_the_same_folder_are_refused(prepare, tmp_path, chest, write_nifti, one_line):
    write_nifti(chest, grid_affine([32] * 3, [320] * 3), "in/a.nii.gz")
    prepare(tmp_path / "in")
    with pytest.raises(ValueError) as raised:
        prepare(tmp_path / "in", remove_table=True)
    one_line(raised, "remove_table", "choose another dataset_dir")


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


# running


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def source_state(folder):
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.rglob("*") if path.is_file()}


def test_second_run_changes_nothing_and_sources_stay(prepare, tmp_path, chest):
    for number in range(2):
        write_chest(tmp_path / "in" / str(number), chest, str(number))
    write_chest(tmp_path / "in" / "bad", chest, "bad", left_out=(4,))
    before = source_state(tmp_path / "in")
    _, folder, _ = prepare(tmp_path / "in")
    first = contents(folder)
    times = {path: path.stat().st_mtime_ns for path in (folder / "volumes").iterdir()}
    prepare(tmp_path / "in")
    assert contents(folder) == first and source_state(tmp_path / "in") == before
    assert {path: path.stat().st_mtime_ns for path in (folder / "volumes").iterdir()} == times


def test_changed_source_is_made_again(prepare, tmp_path, chest):
    paths = write_chest(tmp_path / "in", chest)
    _, folder, _ = prepare(tmp_path / "in")
    first = contents(folder)
    for path in paths:
        rewrite(path, lambda item: setattr(item, "RescaleIntercept", -1000))
    prepare(tmp_path / "in")
    assert contents(folder) != first


def test_dry_run_writes_nothing(prepare, tmp_path, chest, capsys):
    write_chest(tmp_path / "in" / "a", chest, "a")
    write_chest(tmp_path / "in" / "b", chest, "b", left_out=(7,))
    before = sorted(tmp_path.rglob("*"))
    status, _, _ = prepare(tmp_path / "in", dry_run=True)
    said = capsys.readouterr().out
    assert status == 0 and sorted(tmp_path.rglob("*")) == before
    assert "32 slices of 32 x 32, 10.00 mm apart: take" in said and "1 slice is missing" in said
    assert "1 to take, 1 to reject" in said


def test_paper_compat_is_scaled_and_marked(prepare, tmp_path, chest):
    write_chest(tmp_path / "in", np.rint(chest))
    _, folder, _ = prepare(tmp_path / "in", paper_compat=True)
    (path,) = volumes_of(folder).values()
    image, hu = nib.load(path), np.rint(chest)
    high = np.quantile(hu, 0.999)
    np.testing.assert_allclose(image.get_fdata(), (np.clip(hu, -1000, high) + 1000) / (high + 1000), atol=2e-3)
    assert json.loads((folder / "dataset.json").read_text())["intensity"] == "paper_compat"
    assert "not HU" in bytes(image.header["descrip"]).decode() and "not HU" in (folder / "report.html").read_text()
    datalist = ct_datalist(folder)
    loaded = LoadCTd("image", 32, 320.0)(datalist["training"][0])["image"]
    np.testing.assert_allclose((loaded[0].numpy() + 1000) / 2000, image.get_fdata(), atol=1e-4)
    assert intensity_of(datalist) == "paper_compat"


def run_command(tmp_path, folder, *more, wait=True):
    command = [sys.executable, "-W", "ignore", "-m", "monai.bundle", "run", "--config_file", str(BUNDLE / "configs" / "preprocess.yaml"),
               "--source_dir", str(tmp_path / "in"), "--dataset_dir", str(folder), "--spacing", "10", "--size", "32",
               "--center", "volume", "--salt_file", str(tmp_path / "salt"), *more]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path)
    return process.communicate() + (process.returncode,) if wait else process


def test_command_continues_after_a_kill(tmp_path, chest):
    """kill -9 in the middle, run again: the same bytes as a run without a break, and exit status 2 for the reject."""
    for number in range(12):
        write_chest(tmp_path / "in" / str(number), chest, str(number), left_out=(4,) * (number == 7))
    broken, whole = tmp_path / "broken", tmp_path / "whole"
    process = run_command(tmp_path, broken, "--num_workers", "1", wait=False)
    deadline = time.monotonic() + 120
    while len(list(broken.glob("records/*.json"))) < 3 and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (broken / "dataset.json").exists()
    time.sleep(0.5)  # its worker notices
    for folder in (broken, whole):
        out, err, status = run_command(tmp_path, folder, "--num_workers", "2")
        assert status == 2 and "Traceback" not in err, err
        assert "11 volumes of 1 patients accepted" in out
    assert contents(broken) == contents(whole)


@pytest.mark.slow
def test_torchrun_makes_the_same_data_set(tmp_path, chest):
    for number in range(5):
        write_chest(tmp_path / "in" / str(number), chest, str(number), PatientID=str(number))
    run_command(tmp_path, tmp_path / "one", "--num_workers", "0")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "monai.bundle",
               "run", "--config_file", str(BUNDLE / "configs" / "preprocess.yaml"), "--source_dir", str(tmp_path / "in"),
               "--dataset_dir", str(tmp_path / "two"), "--spacing", "10", "--size", "32", "--center", "volume",
               "--salt_file", str(tmp_path / "salt"), "--num_workers", "0"]  # fmt: skip
    assert subprocess.run(command, capture_output=True, cwd=tmp_path).returncode == 0
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


# against dcm2niix


@pytest.mark.skipif(shutil.which("dcm2niix") is None, reason="dcm2niix is not installed")
@pytest.mark.parametrize("name", ["phantom", "dicom_j2k", "dicom_philips_mixed/S2010"])
def test_places_and_hu_agree_with_dcm2niix(tmp_path, chest, name):
    series = REAL_CT / name
    if name == "phantom":
        series = tmp_path / "in"
        write_chest(series, np.rint(chest), spacing=(3.0, 2.0), Manufacturer="SIEMENS")
    elif not REAL_CT.is_dir():
        pytest.skip("the folder of real CT is not there")
    command = ["dcm2niix", "-o", tmp_path, "-f", "ct", "-z", "n", "-b", "n", series]
    subprocess.run(command, check=True, capture_output=True)
    theirs = nib.load(tmp_path / "ct.nii")
    (source,) = find_sources(series).sources
    volume = source.read()
    ours = np.asarray(volume[0])
    to_theirs = np.linalg.inv(theirs.affine) @ np.asarray(volume.affine)
    rng = np.random.default_rng(0)
    points = np.stack([rng.integers(0, side, 5000) for side in ours.shape])
    index = to_theirs[:3, :3] @ points + to_theirs[:3, 3:]
    np.testing.assert_allclose(index, np.rint(index), atol=0.02)  # the same voxels
    assert np.array_equal(np.asanyarray(theirs.dataobj)[tuple(np.rint(index).astype(int))], ours[tuple(points)])
