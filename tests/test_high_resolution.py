"""The high-resolution network: geometry and energy of its resampling, its start, chains, and the shared contract."""

import pytest
import torch
import torch.nn.functional as F
from conftest import randomise

from scripts.inferers import DiffusionGenerator, Item, grid_of, network_at_times
from scripts.networks import (
    HighResolutionPRDiT,
    build_high_resolution,
    build_network,
    build_prdit,
    network_from_checkpoint,
    save_weights,
)
from scripts.networks.high_resolution import (
    downsample_nearest,
    upsample_nearest,
    upsample_prediction,
    upsample_trilinear,
)
from scripts.networks.layers import zero_init
from scripts.schedulers import CosineSineScheduler

LOW = {"hidden_size": 24, "num_heads": 4, "depth": 1, "patch_size": 4, "stride": 2}
HIGH = {"hidden_size": 16, "patch_size": 6, "stride": 4}


def make_high(seed=0, backbone=LOW, **settings):
    torch.manual_seed(seed)
    return randomise(build_high_resolution(backbone, **{**HIGH, **settings}), seed)


def ramp(*sides):
    """A volume whose value is a linear function of the voxel's centre, (1, 1, *sides), each in units of `sides`."""
    axes = torch.meshgrid(*[(torch.arange(side) + 0.5) / side for side in sides], indexing="ij")
    return (axes[0] + 2 * axes[1] - 3 * axes[2])[None, None]


# resampling


@pytest.mark.parametrize("factor", [2, 3])
def test_upsampled_signal_does_not_shift(factor):
    """What averaging made of a linear ramp comes back as the ramp, away from the borders."""
    high = ramp(12, 18, 24)
    up = upsample_trilinear(F.avg_pool3d(high, factor), factor)
    inner = (..., *[slice(factor, -factor)] * 3)
    torch.testing.assert_close(up[inner], high[inner], rtol=0, atol=1e-5)


def test_nearest_takes_the_first_voxel_of_each_block(make_volume):
    x = make_volume(2, 1, 4, 6, 8)
    assert torch.equal(downsample_nearest(x, 2), F.interpolate(x, scale_factor=0.5, mode="nearest"))
    assert torch.equal(downsample_nearest(upsample_nearest(x, 3), 3), x)


@pytest.mark.parametrize("factor", [2, 3, 4])
def test_nearest_keeps_the_energy_of_noise_and_linear_does_not(make_volume, factor):
    """Downsampled noise must look to the backbone like the noise that it was trained with (paper section 3.4)."""
    noise = make_volume(1, 1, 48, 48, 48)
    shape = [48 // factor] * 3
    assert float(downsample_nearest(noise, factor).var()) == pytest.approx(1, abs=0.06)
    # an odd factor has a voxel in the middle of the block, and linear interpolation then takes it alone
    trilinear = F.interpolate(noise, size=shape, mode="trilinear", align_corners=False)
    assert float(trilinear.var()) == pytest.approx({2: 0.125, 3: 1.0, 4: 0.125}[factor], rel=0.1)
    assert float(F.avg_pool3d(noise, factor).var()) == pytest.approx(factor**-3, rel=0.15)


@pytest.mark.parametrize("factor", [2, 3])
def test_upsampled_noise_keeps_its_energy_and_upsampled_signal_its_mean(make_volume, factor):
    low = make_volume(1, 2, 16, 16, 16)
    noise, signal = upsample_prediction(low, factor).chunk(2, 1)
    assert float(noise.var(correction=0)) == pytest.approx(float(low[:, :1].var(correction=0)), rel=1e-5)
    assert float(upsample_trilinear(low[:, :1], factor).var()) < 0.5 * float(noise.var())
    assert float(signal.mean()) == pytest.approx(float(low[:, 1:].mean()), abs=0.01)


def test_nearest_noise_is_white_at_the_low_grid(make_volume):
    """No correlation of neighbours: the low volume is x_t of the low volume at the same time (Eq. 1)."""
    low = downsample_nearest(make_volume(1, 1, 64, 64, 64), 2)
    assert abs(float((low[..., 1:] * low[..., :-1]).mean())) < 0.02


# the network


@pytest.mark.parametrize("parametrization", ["none", "skip"])
@pytest.mark.parametrize(("factor", "shape"), [(2, (8, 12, 16)), (3, (12, 24, 12))])
def test_at_the_start_it_is_the_upsampled_backbone(make_volume, parametrization, factor, shape):
    """With 'skip' the same, moved to the nearest noise and signal that make up x_t."""
    network = make_high(factor=factor, parametrization=parametrization)
    zero_init(network.refiner.output)
    x, times = make_volume(2, 1, *shape), torch.tensor([100.0, 800.0])
    upsampled = upsample_prediction(network.backbone(downsample_nearest(x, factor), times), factor)
    theta = (0.5 * torch.pi * times / 1000).reshape(-1, 1, 1, 1, 1)
    output = network(x, times)
    if parametrization == "none":
        assert torch.equal(output, upsampled)
    else:
        noise, signal = output.chunk(2, 1)
        torch.testing.assert_close(theta.cos() * signal + theta.sin() * noise, x, rtol=0, atol=1e-5)
        moved = (output - upsampled).chunk(2, 1)
        torch.testing.assert_close(moved[0] * theta.cos(), moved[1] * theta.sin(), rtol=0, atol=1e-5)


def test_a_new_network_starts_at_the_upsampled_backbone(make_volume):
    network, x = build_high_resolution(LOW, **HIGH), make_volume(1, 1, 8, 8, 8)
    randomise(network.backbone, 0)
    low = network.backbone(downsample_nearest(x, 2), torch.tensor([300.0]))
    assert low.std() > 0.1
    assert torch.equal(network(x, torch.tensor([300.0])), upsample_prediction(low, 2))


@pytest.mark.parametrize("parametrization", ["none", "skip"])
def test_chains(make_volume, parametrization):
    """Two factors: the middle network is the backbone of the outer one, and is called on its grid."""
    chain = make_high(backbone=make_high(factor=2).settings, factor=3, parametrization=parametrization)
    assert isinstance(chain.backbone, HighResolutionPRDiT) and chain.strides() == [4, 12, 12, 12]
    x, times = make_volume(2, 1, 12, 24, 12), torch.tensor([50.0, 900.0])
    zero_init(chain.refiner.output)
    middle = chain.backbone(downsample_nearest(x, 3), times)
    upsampled = upsample_prediction(middle, 3)
    raw = torch.zeros_like(upsampled)
    torch.testing.assert_close(chain(x, times), chain.combine(x, times, upsampled, raw), rtol=0, atol=1e-6)


@pytest.mark.parametrize("backbone", [LOW, {"backbone": LOW, **HIGH}], ids=["pair", "chain"])
@pytest.mark.parametrize("parametrization", ["none", "skip"])
def test_the_contract_of_prdit(make_volume, backbone, parametrization):
    """Times of shape (1,) broadcast, calls at fixed times, TorchScript, chunks and bf16 give the same."""
    network = make_high(backbone=backbone, parametrization=parametrization)
    x, time = make_volume(2, 1, 16, 8, 8), torch.tensor([400.0])
    with torch.no_grad():
        expected = network(x, time.expand(2))
        assert expected.shape == (2, 2, 16, 8, 8)
        torch.testing.assert_close(network(x, time), expected)
        call = network_at_times(network, torch.tensor([900.0, 400.0]), (16, 8, 8))[1]
        torch.testing.assert_close(call(x), expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(torch.jit.script(network)(x, time), expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(sum(network.forward_parts(x, time)), expected, rtol=1e-5, atol=1e-5)
        network.refiner.chunk_tokens = 3
        torch.testing.assert_close(network(x, time), expected, rtol=1e-5, atol=1e-5)
        rounded = network.to(torch.bfloat16)(x, time)
    assert rounded.dtype == torch.float32 and float((rounded - expected).std()) < 0.05 * float(expected.std())


def test_a_volume_depends_on_its_seed_alone():
    network = make_high(parametrization="skip")
    generator = DiffusionGenerator(network, CosineSineScheduler(), 4, (8, 8, 8))
    both = generator.sample([Item(3), Item(5)])
    torch.testing.assert_close(generator.sample([Item(5)])[0], both[1], rtol=0, atol=0.1)
    assert both.shape == (2, 1, 8, 8, 8)


def test_checkpoints_describe_the_whole_chain(tmp_path, make_volume):
    chain = make_high(backbone={"backbone": {**LOW, "attention": "sdpa"}, **HIGH}, parametrization="skip")
    save_weights(chain, tmp_path / "x.pt", {"stage": "high_resolution"})
    network = network_from_checkpoint(tmp_path / "x.pt", attention="auto", chunk_tokens=5)
    x, time = make_volume(1, 1, 16, 16, 16), torch.tensor([200.0])
    torch.testing.assert_close(network(x, time), chain(x, time), rtol=1e-5, atol=1e-5)
    levels = [network, network.backbone, network.backbone.backbone]
    assert [level.settings["chunk_tokens"] for level in levels] == [5, 5, 5]
    assert levels[2].settings["attention"] == "auto" and network.refiner.chunk_tokens == 5


# what cannot be


def test_grids_are_multiples_of_all_strides(one_line):
    network = make_high(backbone={**LOW, "stride": 4}, factor=3)
    assert grid_of(24, [12, 12, 12], network) == [24, 24, 24]
    with pytest.raises(ValueError) as raised:
        grid_of([12, 12, 16], [12, 12, 12], network)
    one_line(raised, "grid", "[4, 12, 12]", "[12, 12, 16]")


def test_a_side_that_the_factor_does_not_divide_is_refused(make_volume, one_line):
    with pytest.raises(ValueError) as raised:
        make_high(factor=3)(make_volume(1, 1, 16, 12, 12), torch.tensor([1.0]))
    one_line(raised, "factor 3", "[16, 12, 12]")


@pytest.mark.parametrize("factor", [1, 0, 1.5, "2"])
def test_factors_that_cannot_be(factor, one_line):
    with pytest.raises(ValueError) as raised:
        build_high_resolution(LOW, **HIGH, factor=factor)
    one_line(raised, "factor", factor)


def test_flow_matching_is_refused(one_line):
    with pytest.raises(ValueError) as raised:
        build_high_resolution(build_prdit(**LOW, num_predictions=1).settings)
    one_line(raised, "flow matching")


def test_settings_build_the_network_again():
    network = make_high(backbone={"backbone": LOW, **HIGH}, factor=2)
    again = build_network(**network.settings)
    assert again.settings == network.settings
    assert [(n, p.shape) for n, p in again.named_parameters()] == [(n, p.shape) for n, p in network.named_parameters()]
