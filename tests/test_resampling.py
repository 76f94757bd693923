"""Voxels of the ingest: resampled in place, and in HU."""

import nibabel as nib
import numpy as np
import pytest
import torch
from ingest import linear, volumes_of, world, write_chest
from monai.data import MetaTensor

from scripts.data import chest_phantom, grid_affine
from scripts.data.geometry import ras_affine
from scripts.data.hounsfield import hu_problem
from scripts.data.resampling import resample

# resampling


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
