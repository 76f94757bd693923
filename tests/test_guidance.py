"""Layer-skip guidance: what it computes, where on the path, and who asks for it."""

import copy
import json

import nibabel as nib
import numpy as np
import pytest
import torch
from bundle_runs import assert_refused, run, sample

from scripts.inferers import DiffusionGenerator, Item, network_at_times
from scripts.networks import Card, Guidance, Guided, build_network, guidance_of, guided
from scripts.schedulers import CosineSineScheduler, FlowMatchingScheduler

SHAPE = (8, 8, 16)


def without_block(network, number):
    """The network whose transformer never had that block."""
    weaker = copy.deepcopy(network)
    lowest = weaker
    while hasattr(lowest, "backbone"):
        lowest = lowest.backbone
    del lowest.residual.blocks[number]
    return weaker


@pytest.mark.parametrize("settings", [{}, {"parametrization": "skip", "chunk_tokens": 5}, {"num_predictions": 1}])
@pytest.mark.parametrize("block", [0, 1, 2])
def test_guidance_is_that_of_two_networks(make_network, make_volume, settings, block):
    network, x, times = make_network(depth=3, **settings), make_volume(2, 1, *SHAPE), torch.tensor([700.0, 250.0])
    weaker = without_block(network, block)
    with torch.no_grad():
        calls = network_at_times(Guided(network, Guidance(1.5, block, 0.5), CosineSineScheduler().path), times, SHAPE)
        assert torch.equal(calls[0](x), network_at_times(network, times, SHAPE)[0](x))
        prediction, other = network(x, times[1:]), weaker(x, times[1:])
        assert float((prediction - other).std()) > 0.01 * float(prediction.std())
        torch.testing.assert_close(calls[1](x), prediction + 1.5 * (prediction - other), rtol=1e-4, atol=1e-4)


def test_guidance_at_high_resolution_is_the_backbones(make_network, make_volume):
    low = make_network(depth=2)
    network = build_network(backbone=low.settings, factor=2, hidden_size=16, patch_size=4, stride=4).eval()
    network.backbone.load_state_dict(low.state_dict())
    x, time = make_volume(2, 1, *SHAPE), torch.tensor([300.0])
    with torch.no_grad():
        prediction, other = network(x, time), without_block(network, 0)(x, time)
        call = network_at_times(Guided(network, Guidance(0.5, 0, 0.5), CosineSineScheduler().path), time, SHAPE)[0]
        torch.testing.assert_close(call(x), prediction + 0.5 * (prediction - other), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(prediction, other)


@pytest.mark.parametrize("process", [CosineSineScheduler, FlowMatchingScheduler])
def test_it_works_at_little_noise_whichever_way_time_runs(process):
    scheduler = process()
    scheduler.set_timesteps(10)
    positions = [float(scheduler.path.position(t)) for t in scheduler.timesteps]
    assert positions[0] == 1 and positions == sorted(positions, reverse=True)
    weights = Guidance(0.7, 0, 0.45).weights(scheduler.path, scheduler.timesteps.tolist())
    assert weights == [0.7 if u < 0.45 else 0.0 for u in positions] and weights.count(0.7) == 4


def test_the_sampler_guides_what_it_samples(make_network):
    network = make_network(depth=2, parametrization="skip")

    def volume(guidance):
        scheduler = CosineSineScheduler()
        return DiffusionGenerator(guided(network, guidance, scheduler.path), scheduler, 6, SHAPE).sample([Item(3)])

    plain = volume(None)
    assert torch.equal(volume(Guidance(0.5, 1, 0.0)), plain)  # ends before it begins
    assert not torch.allclose(volume(Guidance(0.5, 1, 0.6)), volume(Guidance(0.5, 0, 0.6)), atol=1)
    assert not torch.allclose(volume(Guidance(0.5, 1, 0.6)), plain, atol=1)


def weights(depth=4, **recommended):
    return Card(sha256="", network={"depth": depth}, guidance=recommended)


def test_what_is_not_asked_for_is_as_the_weights_recommend():
    assert guidance_of(weights()) is None and guidance_of(weights(depth=0)) is None
    assert guidance_of(weights(), 0.5) == Guidance(0.5, 1, 0.5)
    recommended = {"scale": 0.8, "block": 2, "below": 0.3}
    assert guidance_of(weights(**recommended)) == Guidance(**recommended)
    assert guidance_of(weights(**recommended), 0) is None
    assert guidance_of(weights(**recommended), below=0.9) == Guidance(0.8, 2, 0.9)
    chain = Card(sha256="", network={"backbone": {"backbone": {"depth": 3}}})
    assert guidance_of(chain, 1.0, 2) == Guidance(1.0, 2, 0.5)


@pytest.mark.parametrize(
    ("settings", "given", "words"),
    [
        (weights(), (-1,), ["guidance", -1]),
        (weights(), ("much",), ["guidance", "much"]),
        (weights(), (0.5, 4), ["guidance_block", "0 to 3", 4]),
        (weights(), (0.5, 1.5), ["guidance_block", 1.5]),
        (weights(), (0.5, 1, 1.1), ["guidance_below", "0 to 1", 1.1]),
        (weights(), (None, 1), ["guidance_block has no effect without guidance"]),
        (weights(), (0, None, 0.5), ["guidance_below has no effect without guidance"]),
        (weights(depth=0), (0.5,), ["guidance 0.5", "none"]),
        (weights(strength=3), (), ["guidance", "strength"]),
    ],
)
def test_bad_guidance(settings, given, words, one_line):
    with pytest.raises(ValueError) as raised:
        guidance_of(settings, *given)
    one_line(raised, *words)


def test_exported_weights_carry_their_guidance(trained, tmp_path):
    """Exported with it they are sampled with it, unless the user says otherwise; the JSON of a volume tells."""
    plain, guided = trained / "ckpt" / "model.pt", tmp_path / "guided" / "model.pt"
    given = {"ckpt_path": plain, "output_path": guided, "dtype": "float32"}
    with assert_refused("guidance_block must be 0 to 1"):
        run("run", ["export"], **given, guidance=0.5, guidance_block=2)
    run("run", ["export"], **given, guidance=2.0, guidance_below=1.0)
    runs = {
        "plain": {"ckpt_path": plain},
        "guided": {"ckpt_path": guided},
        "off": {"ckpt_path": guided, "guidance": 0},
        "asked": {"ckpt_path": plain, "guidance": 2.0, "guidance_block": 1, "guidance_below": 1.0},
    }
    volumes, sidecars = {}, {}
    for name, settings in runs.items():
        sample(**settings, num_samples=1, num_inference_steps=4, bf16=False, output_dir=tmp_path / name)
        volumes[name] = np.asanyarray(nib.load(tmp_path / name / "seed_000000.nii.gz").dataobj)
        sidecars[name] = json.loads((tmp_path / name / "seed_000000.json").read_text())["guidance"]
    assert np.array_equal(volumes["plain"], volumes["off"]) and np.array_equal(volumes["guided"], volumes["asked"])
    assert not np.array_equal(volumes["plain"], volumes["guided"])
    assert sidecars["plain"] is sidecars["off"] is None
    assert sidecars["guided"] == sidecars["asked"] == {"scale": 2.0, "block": 1, "below": 1.0}
    with assert_refused("was made with guidance"):
        sample(ckpt_path=plain, num_samples=1, num_inference_steps=4, output_dir=tmp_path / "asked")
