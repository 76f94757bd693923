"""The flow-matching process: its path, its training, and what MONAI's own rectified flow says of it."""

import math
from pathlib import Path

import pytest
import torch
from monai.inferers import DiffusionInferer
from monai.networks.schedulers import RFlowScheduler

from scripts.interop import import_official, network_from_official
from scripts.networks import read_card
from scripts.schedulers import CosineSineScheduler, FlowMatchingScheduler, build_scheduler
from scripts.spaces import HUWindow
from scripts.training import Denoising

DATA = Path(__file__).resolve().parent / "data"
T = 1000


def test_noising_is_that_of_monai_with_the_time_reversed(make_volume):
    data, noise, times = make_volume(3, 1, 4, 4, 4), make_volume(3, 1, 4, 4, 4, seed=1), torch.tensor([0.0, 37.25, 999])
    expected = RFlowScheduler(T, use_discrete_timesteps=False).add_noise(data, noise, T - times)
    torch.testing.assert_close(FlowMatchingScheduler().add_noise(data, noise, times), expected, rtol=0, atol=1e-6)


def test_the_path_runs_from_noise_to_data(make_volume):
    data, noise = make_volume(1, 1, 4, 4, 4), make_volume(1, 1, 4, 4, 4, seed=1)
    scheduler = FlowMatchingScheduler()
    assert torch.equal(scheduler.add_noise(data, noise, torch.zeros(1)), noise)
    assert torch.equal(scheduler.add_noise(data, noise, torch.tensor([1000.0])), data)
    before, after = (scheduler.add_noise(data, noise, torch.tensor([t])) for t in (499.0, 501.0))
    velocity = scheduler.get_target(data, noise, torch.tensor([500.0]))
    torch.testing.assert_close((after - before) / 0.002, velocity, rtol=1e-3, atol=1e-3)


def test_euler_is_that_of_monai(make_volume):
    """All steps of MONAI's loop; its own scheduler rounds the times, ours must not."""
    noise = make_volume(2, 1, 4, 4, 4)
    seen = []

    def network(x, timesteps, context=None):
        seen.append(float(timesteps))
        return torch.sin(3 * x) + timesteps / T

    scheduler = FlowMatchingScheduler(solver="euler")
    scheduler.set_timesteps(30)
    found = DiffusionInferer(scheduler).sample(noise, network, verbose=False)
    assert seen == pytest.approx([T * i / 30 for i in range(30)], abs=1e-3)
    theirs, x = RFlowScheduler(T, use_discrete_timesteps=False), noise
    theirs.set_timesteps(30)
    for i in range(30):
        x, _ = theirs.step(network(x, torch.tensor([T * i / 30])), T - T * i / 30, x)
    torch.testing.assert_close(found, x, rtol=1e-4, atol=1e-4)


def test_noise_and_signal_of_a_velocity(make_volume):
    data, noise = make_volume(1, 2, 4, 4, 4), make_volume(1, 2, 4, 4, 4, seed=1)
    scheduler = FlowMatchingScheduler()
    for point in scheduler.path.points([1.0, 0.7, 0.01]):
        x = point.alpha * data + point.sigma * noise
        found = scheduler.path.noise_and_signal(data - noise, x, point)
        torch.testing.assert_close(found, (noise, data), rtol=0, atol=1e-5)


@pytest.mark.parametrize("process", [CosineSineScheduler, FlowMatchingScheduler])
def test_logit_normal_training_times(process):
    """Quantiles of sigmoid(N(0, 1)); one time from each of the equal shares."""
    torch.manual_seed(0)
    times = process(training_times="logit_normal").sample_timesteps(4000).sort().values / T
    for share, quantile in ((0.1, -1.2816), (0.5, 0.0), (0.9, 1.2816)):
        assert float(times[int(share * 4000)]) == pytest.approx(1 / (1 + math.exp(-quantile)), abs=2e-3)
    torch.manual_seed(0)
    theirs = RFlowScheduler(T, use_discrete_timesteps=False, sample_method="logit-normal")
    drawn = theirs.sample_timesteps(torch.zeros(20000, 1)).sort().values / T
    assert float((times - drawn[2::5]).abs().max()) < 0.03


def test_training_times_prefer_little_noise():
    """The same setting in both processes, though their times run against each other."""
    torch.manual_seed(0)
    diffusion, flow = (
        process(time_power=2.0).sample_timesteps(1000) / T for process in (CosineSineScheduler, FlowMatchingScheduler)
    )
    assert float(diffusion.mean()) == pytest.approx(1 / 3, abs=0.01)
    assert float(flow.mean()) == pytest.approx(2 / 3, abs=0.01)
    assert 0 <= flow.min() and flow.max() < 1


def test_the_objective_is_the_error_of_the_velocity(make_volume):
    """For a network that predicts nothing it is the velocity's mean square, at each of the times."""
    process, network = FlowMatchingScheduler(noise_std=0.5), torch.nn.Module()
    network.forward = lambda x, times: torch.zeros_like(x)
    volumes, noise = make_volume(4, 1, 4, 4, 4), make_volume(4, 1, 4, 4, 4, seed=1)
    objective = Denoising(network, process, HUWindow())
    terms = objective.errors(volumes, noise, torch.tensor([0.0, 200.0, 500.0, 999.0]))
    assert tuple(terms) == objective.terms == ("velocity",)
    assert float(terms["velocity"]) == pytest.approx(float((volumes - noise).square().mean()), rel=1e-5)


def test_the_network_predicts_one_volume(make_network, make_volume, one_line):
    network, x = make_network(num_predictions=1, in_channels=2), make_volume(1, 2, 4, 6, 8)
    assert network(x, torch.tensor([3.0])).shape == x.shape
    with pytest.raises(ValueError) as raised:
        make_network(num_predictions=1, parametrization="skip")
    one_line(raised, "'skip'", "velocity")
    with pytest.raises(ValueError) as raised:
        make_network(num_predictions=3)
    one_line(raised, "num_predictions", 3)


def test_processes_are_built_by_their_names(one_line):
    stored = {"name": "flow_matching", "num_train_timesteps": 500, "noise_std": 0.5}
    scheduler = build_scheduler(stored, solver="heun")
    assert isinstance(scheduler, FlowMatchingScheduler) and scheduler.solver_name == "heun"
    assert (scheduler.num_train_timesteps, scheduler.path.noise_std) == (500, 0.5)
    assert isinstance(build_scheduler({"name": "cosine_sine"}, "cosine_sine"), CosineSineScheduler)
    for process, expected, words in (
        (stored, "cosine_sine", ["trained with", "flow_matching", "cosine_sine"]),
        ({"name": "karras"}, None, ["process must be one of", "karras"]),
        ({}, None, ["process must be one of"]),
    ):
        with pytest.raises(ValueError) as raised:
            build_scheduler(process, expected)
        one_line(raised, *words)


@pytest.mark.parametrize("times", [[500, 0], [0, 1000], [0, 0], [0]])
def test_wrong_custom_times_are_refused(times, one_line):
    with pytest.raises(ValueError) as raised:
        FlowMatchingScheduler().set_timesteps(2, timesteps=times)
    one_line(raised, "timesteps must be 2 rising times in [0, 1000)")


# the authors' checkpoints


@pytest.fixture
def velocity_checkpoint():
    """The authors' tiny (noise, signal) network, cut to its first output channel: the layout of PRDiT-FM."""
    fixture = torch.load(DATA / "official_prdit_tiny.pt", weights_only=True)
    state = dict(fixture["state_dict"])
    for name in ("coarse.mlp_denoise.linear_final", "fine.final_layer.linear"):
        for part in ("weight", "bias"):
            state[f"{name}.{part}"] = state[f"{name}.{part}"][0::2].clone()  # the channel runs fastest
    return state, fixture


def test_official_velocity_networks_are_read(velocity_checkpoint):
    state, fixture = velocity_checkpoint
    network = network_from_official(state, num_heads=4, norm="layer")
    assert network.settings["num_predictions"] == 1
    with torch.no_grad():
        output = network(fixture["input"], fixture["timesteps"])
    torch.testing.assert_close(output, fixture["output"][:, :1], rtol=0, atol=1e-5)


def test_official_velocity_networks_get_their_process(velocity_checkpoint, tmp_path, capsys):
    state, _ = velocity_checkpoint
    torch.save(state, tmp_path / "official.pt")
    import_official(tmp_path / "official.pt", tmp_path / "model.pt", [8, 8, 8], 256.0, [-1000, 1000], 1.0, 4, "layer")
    assert "flow_matching" in capsys.readouterr().out
    assert build_scheduler(read_card(tmp_path / "model.pt").process).predictions == ("velocity",)


def test_outputs_that_fit_no_process_are_refused(velocity_checkpoint, one_line):
    state, _ = velocity_checkpoint
    name = "coarse.mlp_denoise.linear_final.weight"
    with pytest.raises(ValueError) as raised:
        network_from_official({**state, name: state[name][:-1]}, num_heads=4, norm="layer")
    one_line(raised, "neither (noise, signal) nor a velocity")
