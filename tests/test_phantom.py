import numpy as np
import pytest

from scripts.data import LABELS, chest_phantom

GRID = (64, 64, 64)


@pytest.fixture(scope="module", params=[0, 1, 2])
def labelled(request):
    """HU and labels of one patient."""
    return chest_phantom(request.param, GRID, return_labels=True)


def centre(mask):
    """Centre of a mask along (x, y, z), in 0..1."""
    assert mask.any()
    return (np.argwhere(mask).mean(0) + 0.5) / mask.shape


def pool(volume, *factors):
    shape = [side for length, factor in zip(volume.shape, factors) for side in (length // factor, factor)]
    return volume.reshape(shape).mean((1, 3, 5))


def correlation(first, second):
    return np.corrcoef(first.ravel(), second.ravel())[0, 1]


def test_a_seed_is_a_patient():
    first = chest_phantom(7, (32, 32, 32))
    assert first.dtype == np.float32 and first.shape == (32, 32, 32)
    assert np.array_equal(first, chest_phantom(7, (32, 32, 32)))
    assert np.array_equal(first, chest_phantom(7, (32, 32, 32), return_labels=True)[0])
    assert correlation(first, chest_phantom(8, (32, 32, 32))) < 0.97


def test_global_random_state_is_neither_used_nor_touched():
    np.random.seed(1)
    first = chest_phantom(7, (32, 32, 32))
    following = np.random.rand()
    np.random.seed(2)
    assert np.array_equal(first, chest_phantom(7, (32, 32, 32)))
    np.random.seed(1)
    assert np.random.rand() == following


@pytest.mark.parametrize("seed", [0, 3])
def test_a_coarse_grid_is_the_pooled_fine_one(seed):
    fine, coarse = pool(chest_phantom(seed, (128, 128, 128)), 2, 2, 2), chest_phantom(seed, GRID)
    assert correlation(fine, coarse) > 0.998
    assert abs(fine.mean() - coarse.mean()) < 5
    assert np.abs(fine - coarse).mean() < 15


def test_anisotropic_voxels_show_the_same_patient():
    flat, cubic = chest_phantom(4, (64, 32, 16)), pool(chest_phantom(4, GRID), 1, 2, 4)
    assert flat.shape == (64, 32, 16)
    assert correlation(flat, cubic) > 0.97
    assert abs(flat.mean() - cubic.mean()) < 15


def test_a_smaller_field_of_view_shows_the_middle():
    whole = chest_phantom(4, GRID)
    middle = chest_phantom(4, (32, 64, 48), field_of_view_mm=(160.0, 320.0, 240.0))
    assert correlation(middle, whole[16:48, :, 8:56]) > 0.998
    assert np.abs(middle - whole[16:48, :, 8:56]).mean() < 15


def test_orientation_is_ras(labelled):
    _, labels = labelled
    where = {name: centre(labels == LABELS[name]) for name in ("liver", "table", "lung", "heart", "disc", "abdomen")}
    assert where["liver"][0] > 0.55 and where["heart"][0] < where["liver"][0] - 0.1  # the liver is on the right
    assert where["table"][1] < 0.2  # the patient lies on the back
    assert where["disc"][1] < where["heart"][1] - 0.1  # the spine is behind the heart
    assert where["liver"][2] < where["heart"][2] < where["lung"][2]  # the head is up
    assert where["abdomen"][2] < 0.3


def test_lungs_narrow_to_apices_at_the_top(labelled):
    _, labels = labelled
    area = (labels == LABELS["lung"]).sum((0, 1))
    top = np.flatnonzero(area)[-1]
    assert area[int(0.4 * top) : int(0.6 * top)].min() > 4 * area[top - 3 : top + 1].mean()
    left, right = (labels[side] == LABELS["lung"] for side in (slice(0, 32), slice(32, 64)))
    assert 0.5 < left.sum() / right.sum() < 2


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [
        ("air", -1010, -990),
        ("lung", -950, -700),
        ("fat", -130, -70),
        ("mediastinum", -120, 0),
        ("muscle", 30, 80),
        ("liver", 30, 140),
        ("heart", 20, 300),
        ("great_vessel", 20, 300),
        ("bone", 150, 600),
        ("table", -700, -450),
        ("airway", -1000, -550),
    ],
)
def test_tissues_have_their_hu(labelled, name, low, high):
    hu, labels = labelled
    assert low < np.median(hu[labels == LABELS[name]]) < high


def test_labels_agree_with_hu(labelled):
    """Each kind of tissue is where its HU are; voxels at a border hold two tissues."""
    hu, labels = labelled
    assert (hu[labels == LABELS["air"]] < -800).mean() > 0.93
    assert (hu[labels == LABELS["lung"]] < -500).mean() > 0.9
    assert (hu[labels == LABELS["bone"]] > 100).mean() > 0.93
    assert (np.abs(hu[labels == LABELS["liver"]] - 80) < 70).mean() > 0.93
    assert np.isin(labels[hu > 400], [LABELS["bone"]]).mean() > 0.9
    assert np.isin(labels, list(LABELS.values())).all()


def test_hu_are_those_of_a_scanner(labelled):
    hu, labels = labelled
    assert np.isfinite(hu).all() and hu.min() >= -1024 and hu.max() <= 2000
    outside = hu[(labels == LABELS["air"]) & (hu < -950)]
    assert 2 < outside.std() < 15 and abs(outside.mean() + 1000) < 3
    assert 0.03 < (labels == LABELS["lung"]).mean() < 0.2
