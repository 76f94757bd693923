"""WDM-3D: the space of wavelets, DDPM's path and sampler, the U-Net, and the configs from end to end."""

import json
import math

import pytest
import torch
from bundle_runs import assert_refused, run, sample

from scripts.inferers import DiffusionGenerator, Item
from scripts.networks import WaveletUNet, build_network, load_network, read_card
from scripts.schedulers import SOLVERS
from scripts.schedulers.process import CosineDDPMScheduler, LinearDDPMScheduler
from scripts.spaces import Haar
from scripts.training import Denoising

GIVEN = {
    "grid": [16, 16, 16], "channels": 32, "multipliers": [1, 2], "num_phantoms": 6, "num_validation_phantoms": 1,
    "batch_size": 2, "num_validation_times": 2, "val_interval": 1, "num_pictures": 1, "lr": 1.0e-3, "device": "$torch.device('cpu')",
}  # fmt: skip


@pytest.mark.parametrize(
    ("channels", "multipliers", "parameters"),
    [
        (64, (1, 2, 2, 4, 4), 57_914_824),  # 128^3, published
        (64, (1, 2, 2, 4, 4, 4), 83_158_728),  # 256^3, published
        (64, (1, 2, 2, 4), 32_670_920),
        (64, (1, 2, 2), 13_179_208),
        (32, (1, 2, 2, 4, 4), 14_495_464),
    ],
)
def test_the_network_has_the_published_number_of_parameters(channels, multipliers, parameters):
    with torch.device("meta"):
        network = WaveletUNet(1, channels, multipliers)
    assert sum(one.numel() for one in network.parameters()) == parameters


def test_haar_is_orthonormal_but_for_a_third_of_lll_and_inverts(make_volume):
    volume = make_volume(2, 2, 4, 6, 8)
    bands = Haar.transform(volume)
    assert bands.shape == (2, 16, 2, 3, 4)
    torch.testing.assert_close(Haar.inverse(bands), volume)
    lll, others = bands[:, :2], bands[:, 2:]
    torch.testing.assert_close((9 * lll.square()).sum() + others.square().sum(), volume.square().sum())
    torch.testing.assert_close(lll[0, 1, 0, 0, 0], volume[0, 1, :2, :2, :2].sum() / math.sqrt(8) / 3)
    along_z = volume[0, 0, :2, :2, 0].sum() - volume[0, 0, :2, :2, 1].sum()
    torch.testing.assert_close(bands[0, 2, 0, 0, 0], along_z / math.sqrt(8))  # LLH: the last axis is high


def test_hu_come_back_and_are_clamped_in_voxels():
    space, hu = Haar(-800, 400), 1200 * torch.rand(1, 1, 8, 8, 8) - 800
    torch.testing.assert_close(space.decode(space.encode(hu)), hu, rtol=0, atol=1e-3)
    assert space.shape(1, [8, 6, 4]) == (8, 4, 3, 2)
    wild = 3 * torch.randn(2, 8, 4, 4, 4)
    torch.testing.assert_close(
        space.inverse(space.constrain(wild)), space.inverse(wild).clamp(-1, 1), rtol=0, atol=1e-5
    )


def table(process):
    """alpha^2 of DDPM's own table of T betas."""
    if isinstance(process, LinearDDPMScheduler):
        return (1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)).cumprod(0)
    u = torch.arange(1001, dtype=torch.float64) / 1000
    bar = ((u + 0.008) / 1.008 * math.pi / 2).cos().square()
    return (1 - (1 - bar[1:] / bar[:-1]).clamp(max=0.9999)).cumprod(0)


@pytest.mark.parametrize(("process", "near"), [(LinearDDPMScheduler, 1.5e-3), (CosineDDPMScheduler, 1e-6)])
def test_the_path_is_ddpms_table(process, near):
    process = process()
    points = process.path.points([(t + 1) / 1000 for t in range(1000)])
    expected = table(process)
    torch.testing.assert_close(torch.tensor([p.alpha for p in points]), expected.sqrt().float(), rtol=0, atol=near)
    for point in points[:-1]:
        assert process.path.position_of_ratio(point.sigma / point.alpha) == pytest.approx(point.u, abs=1e-9)
        assert point.alpha**2 + point.sigma**2 == pytest.approx(1)
    low, high = process.path.points([0.3 - 1e-5, 0.3 + 1e-5])
    (middle,) = process.path.points([0.3])
    assert middle.alpha_slope == pytest.approx((high.alpha - low.alpha) / 2e-5, rel=1e-4)
    assert middle.sigma_slope == pytest.approx((high.sigma - low.sigma) / 2e-5, rel=1e-4)


@pytest.mark.parametrize("process", [LinearDDPMScheduler, CosineDDPMScheduler])
def test_ddim_with_eta_1_and_all_steps_is_ddpms_posterior(process):
    """Mean and variance of q(x_{t-1} | x_t, x_0), Ho et al. 2020, Eq. 6-7, to 1e-10."""
    process = process(solver="ddim", eta=1.0)
    process.set_timesteps(1000)
    assert process.timesteps.tolist() == [float(t) for t in range(999, -1, -1)]
    for step in process._steps[:-1]:
        now, then = step.start, step.end
        kept = (now.alpha / then.alpha) ** 2  # 1 - beta
        mean_signal = then.alpha * (1 - kept) / now.sigma**2
        mean_sample = math.sqrt(kept) * then.sigma**2 / now.sigma**2
        variance = then.sigma**2 / now.sigma**2 * (1 - kept)
        ratio = step.predicted.sigma / now.sigma
        assert step.keep * ratio == pytest.approx(mean_sample, abs=1e-10)
        assert step.keep * (step.predicted.alpha - ratio * now.alpha) == pytest.approx(mean_signal, abs=1e-10)
        assert step.inject**2 == pytest.approx(variance, abs=1e-10)


@pytest.fixture
def network():
    torch.manual_seed(0)
    network = build_network(kind="wavelet", channels=32, multipliers=[1, 2]).eval()
    for parameter in network.parameters():
        parameter.data.add_(0.05 * torch.randn_like(parameter))  # the last layer starts at zero
    return network


def test_a_skip_is_averaged_with_what_comes_up(network):
    """With every block the identity, the first features reach the end: h, (h + h) / 2, ..."""
    x = torch.randn(1, 8, 4, 4, 4)
    h = network.first(x)
    for block in [*network.down, *network.middle, *network.up]:
        block.forward = lambda h, time: h
    network.down[2].forward, network.up[3].forward = lambda h, time: h, lambda h, time: h
    with torch.no_grad():
        out = network(x, torch.tensor([3.0]))
        torch.testing.assert_close(out, network.last(torch.nn.functional.silu(network.norm(h))))


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_volume_is_its_seed_alone_within_the_window(network, solver):
    process = LinearDDPMScheduler(solver=solver, predictor_ratio=1 if solver in ("heun", "rk4") else None)
    generator = DiffusionGenerator(network, process, 4, [8, 8, 8], Haar(-500, 500))
    three = generator.sample([Item(seed) for seed in (3, 5, 4)])
    assert three.shape == (3, 1, 8, 8, 8) and three.min() >= -500 and three.max() <= 500
    torch.testing.assert_close(generator.sample([Item(5)]), three[1:2], rtol=0, atol=0.05)


def test_the_signal_is_bounded_in_every_step(network):
    seen = []

    def correct(signal, noise, x, point):
        seen.append(float(Haar.inverse(signal).abs().max()))
        torch.testing.assert_close(point.alpha * signal + point.sigma * noise, x)
        return signal, noise

    generator = DiffusionGenerator(network, LinearDDPMScheduler(solver="ddim"), 6, [8, 8, 8], Haar())
    generator.sample([Item(0)], correct)
    assert len(seen) == 6 and max(seen) <= 1 + 1e-5


def test_the_loss_is_the_error_of_the_subbands(network, make_volume):
    process, space, hu = LinearDDPMScheduler(), Haar(), 800 * make_volume(2, 1, 8, 8, 8).clamp(-1, 1)
    times, noise = torch.tensor([40.0, 700.0]), torch.randn(2, 8, 4, 4, 4)
    with torch.no_grad():
        terms = Denoising(network, process, space, bf16=False).errors(space.encode(hu), noise, times)
        alpha = torch.tensor([p.alpha for p in process.path.points([41 / 1000, 701 / 1000])]).reshape(-1, 1, 1, 1, 1)
        bands = space.encode(hu)
        expected = (network(alpha * bands + (1 - alpha**2).sqrt() * noise, times) - bands).square().mean()
    assert list(terms) == ["signal"]
    torch.testing.assert_close(terms["signal"], expected)


def test_it_trains_resumes_and_samples_by_the_configs(tmp_path):
    stack, whole, broken = ["train", "train_wavelet"], tmp_path / "whole", tmp_path / "broken"
    run("training", stack, ckpt_dir=whole, max_epochs=2, **GIVEN)
    run("training", stack, ckpt_dir=broken, max_epochs=1, **GIVEN)
    run("training", stack, ckpt_dir=broken, max_epochs=2, **GIVEN)
    card = read_card(whole / "wavelet.pt")
    assert card.kind == "wavelet" and card.process["name"] == "ddpm_linear" and isinstance(card.data.space, Haar)
    assert "train_signal" in (whole / "wavelet_losses.csv").read_text()
    one, other = (load_network(read_card(folder / "wavelet.pt")).state_dict() for folder in (whole, broken))
    assert all(torch.equal(value, other[name]) for name, value in one.items())
    assert list((whole / "pictures").glob("wavelet_epoch_*.png"))
    out = tmp_path / "out"
    run(
        "run",
        ["inference", "ddpm_sampler"],
        ckpt_path=whole / "wavelet.pt",
        output_dir=out,
        num_samples=2,
        num_inference_steps=4,
    )
    facts = json.loads((out / "seed_000000.json").read_text())
    assert (
        facts["process"] == "ddpm_linear"
        and facts["solver"] == "ddim"
        and facts["eta"] == 1
        and facts["grid"] == [16] * 3
    )
    sample(
        ckpt_path=whole / "wavelet.pt", output_dir=tmp_path / "bf16", num_samples=1, num_inference_steps=2, bf16=True
    )
    with assert_refused("grid", 4, [18, 18, 18]):
        sample(ckpt_path=whole / "wavelet.pt", output_dir=tmp_path / "no", grid=18)
    with assert_refused("attention sdpa has no effect", "wavelet"):
        sample(ckpt_path=whole / "wavelet.pt", output_dir=tmp_path / "no", attention="sdpa")
    with assert_refused("guidance", "transformer block"):
        sample(ckpt_path=whole / "wavelet.pt", output_dir=tmp_path / "no", guidance=0.5)


def test_a_grid_that_the_levels_cannot_halve_is_refused(tmp_path):
    with assert_refused("grid", 8):
        run(
            "training",
            ["train", "train_wavelet"],
            ckpt_dir=tmp_path,
            **{**GIVEN, "grid": [12] * 3, "multipliers": [1, 1, 1]},
        )
    with assert_refused("encoding voxels"):
        run("training", ["train", "train_wavelet"], ckpt_dir=tmp_path, encoding="voxels", **GIVEN)
    with assert_refused("channels", "multiple of 32", 40):
        run("training", ["train", "train_wavelet"], ckpt_dir=tmp_path, **{**GIVEN, "channels": 40})
