import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from bundle_runs import config_files
from dicom_series import write_series
from monai.bundle import ConfigParser
from scipy.spatial.transform import Rotation

from scripts.data import LoadCTd, ToGridd, cache_count, chest_phantom, ct_datalist, grid_affine

REAL_CT = Path(__file__).resolve().parents[2] / "shared" / "ct"
needs_real_ct = pytest.mark.skipif(not REAL_CT.is_dir(), reason="the folder of real CT is not there")


def ct(*shape, seed=0):
    """Integer HU of all sizes."""
    return np.random.default_rng(seed).integers(-1000, 1000, shape).astype(np.float32)


def load(item, grid=(8, 8, 8), field_of_view_mm=32.0):
    return LoadCTd("image", grid, field_of_view_mm)({"image": item} if not isinstance(item, dict) else item)["image"]


def to_grid(item, grid=(8, 8, 8), field_of_view_mm=32.0):
    volume = load(item, grid, field_of_view_mm)
    return ToGridd("image", grid, field_of_view_mm)({"image": volume})["image"]


def centres(volume):
    """World coordinates (3, X, Y, Z) of the voxel centres, in RAS mm."""
    affine = np.asarray(volume.affine, float)
    return np.einsum("ij,jxyz->ixyz", affine[:3, :3], np.indices(volume.shape[1:])) + affine[:3, 3, None, None, None]


# lists


def test_phantoms_are_seeds():
    lists = ct_datalist(None, num_phantoms=3, num_validation_phantoms=2)
    assert lists["training"] == [{"image": seed, "index": seed} for seed in range(3)]
    assert lists["validation"] == [{"image": 1_000_000 + i, "index": i} for i in range(2)]


def test_prepared_folder(tmp_path, write_nifti):
    paths = [str(write_nifti(ct(2, 2, 2), name=f"p/{i}.nii.gz")) for i in range(3)]
    content = {"training": [{"image": "p/2.nii.gz"}, {"image": "p/0.nii.gz"}], "validation": [{"image": "p/1.nii.gz"}]}
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    assert ct_datalist(tmp_path) == {
        "training": [{"image": paths[2], "index": 0}, {"image": paths[0], "index": 1}],
        "validation": [{"image": paths[1], "index": 0}],
    }


def test_plain_folder_is_split_by_name(tmp_path, write_nifti):
    """Every volume is in one list, and new volumes do not reshuffle the old ones."""
    names = [f"{'ab'[i % 2]}/{i}{suffix}" for i, suffix in enumerate([".nii.gz", ".nii", ".NII.GZ"] * 4)]
    (tmp_path / "notes.txt").write_text("no CT")
    for name in names:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"not read yet")
    (tmp_path / "a" / ".hidden.nii").write_bytes(b"")
    lists = ct_datalist(tmp_path)
    assert (len(lists["training"]), len(lists["validation"])) == (11, 1)
    images = [item["image"] for section in lists.values() for item in section]
    assert sorted(images) == sorted(str(tmp_path / name) for name in names)
    assert ct_datalist(str(tmp_path)) == lists
    assert [item["index"] for item in lists["training"]] == list(range(11))


def test_single_volume_is_trained_and_validated_on(tmp_path, write_nifti):
    path = write_nifti(ct(4, 4, 4))
    expected = [{"image": str(path), "index": 0}]
    assert ct_datalist(tmp_path) == {"training": expected, "validation": expected}


@pytest.mark.parametrize("date", [None, "20200131"])
def test_dicom_series_is_one_volume(tmp_path, date):
    """Slices count along the patient's feet to head; columns run to the left and rows to the back in DICOM."""
    array = ct(10, 6, 8)
    for name, slices in (("scan", array), ("scout", array[:2])):
        write_series(tmp_path / "patient" / name, slices, name, SeriesDate=date)
    (item,) = ct_datalist(tmp_path)["training"]
    volume = load(item)
    assert np.array_equal(volume[0], array.transpose(2, 1, 0)[::-1, ::-1])
    expected = np.array([[1.5, 0, 0, 10 - 7 * 1.5], [0, 2, 0, 20 - 5 * 2], [0, 0, 3, -5], [0, 0, 0, 1]])
    np.testing.assert_allclose(volume.affine, expected, atol=1e-4)


@pytest.mark.parametrize("dates", [(None, None), ("20200131", "20210131"), ("20200131", "20200131")])
def test_two_series_in_one_folder_are_two_volumes(tmp_path, dates):
    arrays = [ct(10, 6, 8, seed=1), ct(12, 6, 8, seed=2)]
    for name, array, date in zip("ab", arrays, dates):
        write_series(tmp_path / "scan", array, name, StudyInstanceUID="1.2.3", SeriesDate=date)
    items = [item for section in ct_datalist(tmp_path).values() for item in section]
    volumes = sorted((load(item)[0].numpy() for item in items), key=lambda volume: volume.shape[2])
    assert [volume.shape[2] for volume in volumes] == [10, 12]
    for volume, array in zip(volumes, arrays):
        assert np.array_equal(volume, array.transpose(2, 1, 0)[::-1, ::-1])


def test_missing_and_empty_folders(tmp_path, one_line):
    for folder in (tmp_path / "none", tmp_path):
        with pytest.raises(ValueError) as raised:
            ct_datalist(folder)
        one_line(raised, "dataset_dir", folder)


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        "3",
        "[" * 100_000 + "]" * 100_000,
        '{"training": []}',
        '{"training": [], "validation": []}',
        '{"training": ["a"], "validation": ["b"]}',
        '{"training": [{"image": 3}], "validation": [{"image": 3}]}',
        '{"training": [{"image": "gone.nii.gz"}], "validation": [{"image": "gone.nii.gz"}]}',
    ],
)
def test_wrong_datalists_are_named(tmp_path, text, one_line):
    (tmp_path / "dataset.json").write_text(text)
    with pytest.raises(ValueError) as raised:
        ct_datalist(tmp_path)
    one_line(raised, tmp_path / "dataset.json", "gone.nii.gz" if "gone" in text else "")


# loading


@pytest.mark.parametrize(
    ("files", "facts"),
    [
        ([], ["its preparation did not end", "continues it"]),
        (["report.html", "records/a.json"], ["the only source was rejected", "report.html says why"]),
        (["report.html", "records/a.json", "records/b.json"], ["all 2 sources were rejected"]),
    ],
)
def test_a_prepared_data_set_without_volumes_says_why(tmp_path, files, facts, one_line):
    for name in ("preparation.json", *files):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    with pytest.raises(ValueError) as raised:
        ct_datalist(tmp_path, setting="real_dir")
    one_line(raised, f"real_dir {tmp_path}", *facts)


def test_phantom_is_loaded_around_the_origin():
    volume = load(5, (16, 16, 8), (160.0, 160.0, 320.0))
    assert np.array_equal(volume[0], chest_phantom(5, (16, 16, 8), (160, 160, 320)))
    assert volume.pixdim.tolist() == [10, 10, 40]
    np.testing.assert_allclose(centres(volume).mean((1, 2, 3)), 0, atol=1e-9)


def test_grid_affine_is_centred():
    affine = grid_affine([4, 8, 2], [20, 80, 30])
    assert np.diag(affine).tolist() == [5, 10, 15, 1]
    np.testing.assert_allclose(affine @ [1.5, 3.5, 0.5, 1], [0, 0, 0, 1])


def test_files_are_loaded_as_they_are(write_nifti):
    array, affine = ct(6, 5, 4), np.diag([2.0, 3.0, 4.0, 1.0])
    affine[:3, 3] = [-7, 11, 0.5]
    volume = load(str(write_nifti(array, affine, dtype=np.int16)))
    assert volume.dtype == torch.float32 and np.array_equal(volume[0], array)
    np.testing.assert_allclose(volume.affine, affine)


@pytest.mark.parametrize("axes", ["LPS", "LAS", "RAS", "SPL", "PIR"])
def test_storage_order_does_not_matter(write_nifti, axes):
    """The same anatomy, stored along other axes, is the same array with the same affine."""
    array, affine = ct(40, 36, 30), np.diag([1.0, 1.0, 1.5, 1.0])
    affine[:3, 3] = [-21.5, 3.25, 8.0]
    ras = nib.Nifti1Image(array, affine)
    to = nib.orientations.ornt_transform(nib.orientations.axcodes2ornt("RAS"), nib.orientations.axcodes2ornt(axes))
    stored = ras.as_reoriented(to)
    assert "".join(nib.aff2axcodes(stored.affine)) == axes
    first = to_grid(str(write_nifti(array, affine, "ras.nii.gz")))
    second = to_grid(str(write_nifti(stored.dataobj, stored.affine, "other.nii.gz")))
    torch.testing.assert_close(second.as_tensor(), first.as_tensor(), rtol=0, atol=1e-2)
    np.testing.assert_allclose(second.affine, first.affine, atol=1e-5)


@pytest.mark.parametrize(("low", "high"), [(0, 255), (0, 1), (-1, 1), (-1000, -500), (0, 4095)])
def test_volumes_that_are_not_hu_are_refused(write_nifti, low, high, one_line):
    path = write_nifti(np.linspace(low, high, 64).reshape(4, 4, 4))
    with pytest.raises(ValueError) as raised:
        load(str(path))
    one_line(raised, path, "HU", low, high)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_voxels_that_are_no_numbers_are_refused(write_nifti, value, one_line):
    array = ct(4, 4, 4)
    array[1, 2, 3] = value
    path = write_nifti(array)
    with pytest.raises(ValueError) as raised:
        load(str(path))
    one_line(raised, path, "not numbers")


def test_unreadable_files_are_refused(tmp_path, write_nifti, one_line):
    whole = write_nifti(ct(16, 16, 16)).read_bytes()
    for name, content in (("empty.nii.gz", b""), ("cut.nii.gz", whole[: len(whole) // 2]), ("text.nii", b"no volume")):
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(ValueError) as raised:
            load(str(path))
        one_line(raised, path)


def test_series_in_time_is_refused(write_nifti, one_line):
    path = write_nifti(ct(4, 4, 4, 3))
    with pytest.raises(ValueError) as raised:
        load(str(path))
    one_line(raised, path, "3D")


# the training grid


def test_fine_voxels_are_pooled_exactly(write_nifti):
    """1 mm to 4 mm is the mean of blocks, bit for bit."""
    array = ct(32, 32, 32)
    pooled = to_grid(str(write_nifti(array, grid_affine([32] * 3, [32] * 3), dtype=np.int16)))
    assert np.array_equal(pooled[0], array.reshape(8, 4, 8, 4, 8, 4).mean((1, 3, 5)))
    np.testing.assert_allclose(pooled.affine, grid_affine([8] * 3, [32] * 3), atol=1e-6)


def test_pooling_crops_around_the_centre(write_nifti):
    array = ct(48, 40, 32)
    pooled = to_grid(str(write_nifti(array, grid_affine([48, 40, 32], [48, 40, 32]))))
    assert np.array_equal(pooled[0], array[8:40, 4:36].reshape(8, 4, 8, 4, 8, 4).mean((1, 3, 5)))
    np.testing.assert_allclose(pooled.affine, grid_affine([8] * 3, [32] * 3), atol=1e-6)


def test_small_volumes_are_padded_with_air(write_nifti):
    array = ct(16, 32, 24)
    pooled = to_grid(str(write_nifti(array, grid_affine([16, 32, 24], [16, 32, 24]))))
    assert np.array_equal(pooled[0, 2:6, :, 1:7], array.reshape(4, 4, 8, 4, 6, 4).mean((1, 3, 5)))
    outside = np.ones((8, 8, 8), bool)
    outside[2:6, :, 1:7] = False
    assert (pooled[0].numpy()[outside] == -1000).all()
    np.testing.assert_allclose(pooled.affine, grid_affine([8] * 3, [32] * 3), atol=1e-6)


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (0.7, 0.7, 1.25), (1.3, 0.9, 2.1), (3.0, 3.0, 5.0)])
@pytest.mark.parametrize("grid", [(8, 8, 8), (8, 16, 4)])
def test_hu_stay_where_they_are_in_the_world(write_nifti, spacing, grid):
    """A volume whose HU are linear in the world's coordinates still is after resampling and pooling."""
    slope, shape = np.array([12.0, -9.0, 7.0]), [int(44 / mm) for mm in spacing]
    affine = np.diag([-spacing[0], -spacing[1], spacing[2], 1.0])  # stored LPS
    affine[:3, 3] = [31.0, -4.0, 100.0]
    middle = (affine @ [*(np.array(shape) - 1) / 2, 1])[:3]
    world = np.einsum("ij,jxyz->xyzi", affine[:3, :3], np.indices(shape)) + affine[:3, 3]
    pooled = to_grid(str(write_nifti(-100 + (world - middle) @ slope, affine)), grid)
    assert pooled.shape == (1, *grid)
    np.testing.assert_allclose(pooled.pixdim, np.divide(32, grid), rtol=1e-3)
    expected = -100 + np.einsum("i,ixyz->xyz", slope, centres(pooled) - middle[:, None, None, None])
    np.testing.assert_allclose(pooled[0], expected, atol=1.0)
    # the middle stays within a voxel: resampling and cropping may each move it by half of one
    shift = np.abs(centres(pooled).mean((1, 2, 3)) - middle)
    assert (shift <= np.maximum(spacing, np.divide(32, grid)) + 1e-6).all(), shift


@pytest.mark.parametrize("degrees", [(0, 0, 20), (50, 0, 0), (10, -15, 5)])
def test_a_turned_scan_is_set_upright(write_nifti, degrees):
    """Its HU stay where they are in the world; MONAI's Orientation alone would take it as if it were not turned."""
    slope, shape = np.array([12.0, -9.0, 7.0]), (60, 50, 40)
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", degrees, degrees=True).as_matrix() @ np.diag([-1.0, -1.0, 1.5])
    affine[:3, 3] = [31.0, -4.0, 100.0]
    middle = (affine @ [*(np.array(shape) - 1) / 2, 1])[:3]
    world = np.einsum("ij,jxyz->xyzi", affine[:3, :3], np.indices(shape)) + affine[:3, 3]
    pooled = to_grid(str(write_nifti(-100 + (world - middle) @ slope, affine)), field_of_view_mm=24.0)
    expected = -100 + np.einsum("i,ixyz->xyz", slope, centres(pooled) - middle[:, None, None, None])
    np.testing.assert_allclose(pooled[0], expected, atol=1.0)
    np.testing.assert_allclose(pooled.affine[:3, :3], 3 * np.eye(3), atol=1e-6)
    assert np.abs(centres(pooled).mean((1, 2, 3)) - middle).max() <= 1.5


@pytest.mark.parametrize("degrees", [18.0, -25.0])
def test_a_tilted_gantry_in_a_plain_folder_is_set_upright(tmp_path, degrees):
    """The table moves along z, the slices lean: HU stay where they are in the world."""
    slope, angle = np.array([12.0, -9.0, 7.0]), np.radians(degrees)
    right, down, step = (1.0, 0, 0), (0, np.cos(angle), -np.sin(angle)), (0, 0, 1.5)
    z, y, x = np.indices((40, 50, 60))[..., None]
    lps = z * step + y * np.multiply(1.0, down) + x * np.multiply(1.0, right)
    middle = lps.reshape(-1, 3).mean(axis=0)
    hu = -100 + (lps - middle) * (-1, -1, 1) @ slope
    write_series(tmp_path, hu, origin=(0, 0, 0), orientation=(*right, *down), spacing=(1.0, 1.0), step=step)
    (item,) = ct_datalist(tmp_path)["training"]
    pooled = to_grid(item, field_of_view_mm=16.0)
    expected = -100 + np.einsum("i,ixyz->xyz", slope, centres(pooled) - (middle * (-1, -1, 1))[:, None, None, None])
    np.testing.assert_allclose(pooled[0], expected, atol=1.0)
    np.testing.assert_allclose(pooled.affine[:3, :3], 2 * np.eye(3), atol=1e-6)


def test_volumes_clipped_to_the_window_of_the_run_are_hu(write_nifti, one_line):
    """As generated ones are, whose weights have a narrow window; scaled volumes stay refused."""
    path = write_nifti(ct(6, 5, 4).clip(-160, 240))
    loader = LoadCTd("image", 8, 32.0, hu_window=[-160, 240])
    assert float(loader({"image": str(path)})["image"].min()) == -160
    with pytest.raises(ValueError) as raised:
        load(str(path))
    one_line(raised, path, "hu_window")
    for low, high in ((0, 1), (0, 255), (-1, 1)):
        with pytest.raises(ValueError):
            loader({"image": str(write_nifti(np.linspace(low, high, 64).reshape(4, 4, 4)))})


@pytest.mark.parametrize(("name", "part"), [("train", "train::preprocessing"), ("evaluate", "preprocessing")])
def test_training_and_evaluation_load_with_the_window_of_the_run(write_nifti, name, part):
    path = write_nifti(ct(8, 8, 8).clip(-160, 240), grid_affine([8] * 3, [32] * 3))
    config = ConfigParser()
    config.read_config(config_files(name))
    seen = {"grid": [8, 8, 8], "field_of_view_mm": 32.0}
    config.update({"hu_window": [-160, 240], "seen" if name == "train" else "common": seen})
    assert config.get_parsed_content(part)({"image": str(path)})["image"].shape == (1, 8, 8, 8)


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (0.7, 0.7, 1.25), (3.0, 3.0, 5.0)])
def test_constant_hu_stay_constant(write_nifti, spacing):
    array = np.full([int(44 / mm) for mm in spacing], -437.0)
    array[0, 0, 0] = 50  # a CT has air and tissue; this corner is cropped
    pooled = to_grid(str(write_nifti(array, np.diag([*spacing, 1.0]))))
    np.testing.assert_allclose(pooled[0], -437, atol=1e-3)


def test_phantoms_need_no_resampling():
    volume = to_grid(5, (16, 16, 8), (160.0, 160.0, 320.0))
    assert np.array_equal(volume[0], chest_phantom(5, (16, 16, 8), (160, 160, 320)))


@pytest.mark.parametrize("grid", [(8, 8), (8, 8, 0)])
def test_wrong_grids_are_refused(grid):
    with pytest.raises(ValueError, match="one positive number or three"):
        ToGridd("image", grid, 32.0)


def test_cache_count_is_what_fits():
    assert cache_count(4.0, (64, 64, 64)) == 3814
    assert cache_count(1e-9, (64, 64, 64)) == 0


# real CT


@needs_real_ct
def test_real_grey_values_are_refused(one_line):
    with pytest.raises(ValueError) as raised:
        load(str(REAL_CT / "lidc_8bit.mha"))
    one_line(raised, "lidc_8bit.mha", "HU")


@needs_real_ct
def test_real_crop_keeps_its_mean_and_place():
    path = REAL_CT / "chest_crop_1.5mm.nii.gz"
    stored = nib.as_closest_canonical(nib.load(path))
    pooled = to_grid(str(path), (32, 32, 32), 192.0)
    inside = pooled.shape[1] ** 3 * 6.0**3 * (pooled.mean() + 1000)
    assert float(inside) == pytest.approx(np.prod(stored.shape) * 1.5**3 * (stored.get_fdata().mean() + 1000), rel=1e-3)
    middle = (stored.affine @ [*(np.array(stored.shape) - 1) / 2, 1])[:3]
    np.testing.assert_allclose(centres(pooled).mean((1, 2, 3)), middle, atol=0.8)
