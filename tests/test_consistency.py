"""Weights for few calls: the consistency function, what it learns, and distill.yaml as users run it."""

import copy
import math

import pytest
import torch
from bundle_runs import TINY, assert_refused, bytes_of, run, sample
from ignite.engine import Engine
from scipy.optimize import minimize_scalar

from scripts.networks import read_card
from scripts.schedulers import CosineSineScheduler, FlowMatchingScheduler
from scripts.spaces import HUWindow
from scripts.training import Consistency, Denoising, sum_of_terms
from scripts.training.consistency import edge

STACK = ["train", "distill"]
GIVEN = {
    name: value for name, value in TINY.items() if name not in ("grid", "depth", "num_heads", "stride")
    and "_size" not in name and "local" not in name
}  # fmt: skip
GIVEN |= {"batch_size": 4}


@pytest.mark.parametrize(("process", "settings"), [
    (CosineSineScheduler, {"parametrization": "skip"}), (FlowMatchingScheduler, {"num_predictions": 1}),
])  # fmt: skip
def test_at_the_data_the_signal_is_the_volume(make_network, make_volume, process, settings):
    network, x, process = make_network(**settings), make_volume(2, 1, 4, 4, 4), process()
    objective = Consistency(network, process, HUWindow(), network)
    positions = torch.zeros(2, dtype=torch.float64)
    found = objective.signal(network(x, process.path.time(positions).float()), x, positions)
    torch.testing.assert_close(found, x, rtol=0, atol=1e-6)


class Scaling(torch.nn.Module):
    """f(x) = c x, with a c for each interval of the path; one of them is trained at a time."""

    def __init__(self, parts):
        super().__init__()
        self.factor, self.parts, self.found = torch.nn.Parameter(torch.ones(())), parts, [1.0]

    def forward(self, x, times):
        signal = torch.cat(
            [self.at(round(math.acos(1 - 2 * float(time) / 1000) / math.pi * self.parts)) * one
             for one, time in zip(x.split(1), times)]
        )  # fmt: skip
        return torch.cat([x, signal], 1)

    def at(self, end):
        return self.found[end] if end < len(self.found) else self.factor


class AsItIs(HUWindow):
    """Data that is not clipped."""

    def encode(self, hu):
        return hu


class OneInterval(CosineSineScheduler):
    time = 0.0

    def sample_timesteps(self, count, device="cpu"):
        return torch.full((count,), self.time)


@pytest.mark.parametrize(("std", "equal", "kept"), [(44.0, 0.41, 0.80), (2.1, 0.95, 0.95), (0.05, 0.67, 0.86)])
def test_short_intervals_at_both_ends_keep_the_largest_and_the_finest(std, equal, kept):
    """What one call of a perfect student of 32 intervals keeps of Gaussian components, beside one of equal intervals."""

    def spread(borders):
        signal, noise = (torch.as_tensor(one) for one in zip(*map(alpha_and_sigma, borders.tolist())))
        # the mean of what lies below, given what lies above it, border for border
        known = (signal[:-1] * signal[1:] * std**2 + noise[:-1] * noise[1:]) / (
            signal[1:] ** 2 * std**2 + noise[1:] ** 2
        )
        return float(known.prod()) / std

    shares = torch.linspace(0, 1, 33, dtype=torch.float64)
    assert spread(shares) == pytest.approx(equal, abs=0.005)
    assert spread(edge(shares)) == pytest.approx(kept, abs=0.005)


def alpha_and_sigma(position):
    return math.cos(math.pi * position / 2), math.sin(math.pi * position / 2)


@torch.no_grad()
def test_on_gaussian_data_one_call_is_the_exact_flow():
    """Tuned from the data to the noise, interval by interval: what the ODE makes of noise is std times as large."""
    std, parts, process = 0.5, 256, OneInterval()
    student = Scaling(parts)
    objective = Consistency(student, process, AsItIs(), student, [parts], anchor_weight=0.0)
    drawn = torch.randn(1, 1, 32, 32, 16, generator=torch.Generator().manual_seed(0))
    volumes = std * (drawn / drawn.square().mean().sqrt())
    for end in range(1, parts + 1):
        process.time = 1000 * (end - 0.5) / parts

        def loss(factor):
            torch.manual_seed(end)  # the same noise in each evaluation
            student.factor.data.fill_(factor)
            return objective({"image": volumes})["consistency"].item()

        near = (0.97 * student.found[-1], student.found[-1])
        student.found.append(minimize_scalar(loss, bounds=near, method="bounded", options={"xatol": 2e-6}).x)
    assert student.found[-1] == pytest.approx(std, rel=0.01)
    scheduler = CosineSineScheduler(solver="ddim", predictor_ratio=1000.0)
    scheduler.set_timesteps(1)
    x = scheduler.initial_noise((1, 1, 4, 4, 4))
    (time,) = scheduler.timesteps
    found = scheduler.step(student(x, time.float()[None]), time, x)[0]
    torch.testing.assert_close(found, std * x, rtol=0.01, atol=1e-6)


def test_half_of_a_batch_is_denoised_as_ever(make_network, make_volume):
    network = make_network(parametrization="skip")
    objective = Consistency(network, CosineSineScheduler(), HUWindow(), copy.deepcopy(network), anchor_weight=3.0)
    batch = {"image": 300 * make_volume(4, 1, 4, 4, 4), "index": torch.arange(4)}
    torch.manual_seed(0)
    terms = objective(batch)
    torch.manual_seed(0)
    plain = Denoising(network, CosineSineScheduler(), HUWindow())
    volumes = plain.space.encode(batch["image"])
    noise, times = plain.process.sample_noise(volumes), plain.process.sample_timesteps(4)
    for name, value in plain.errors(volumes[2:], noise[2:], times[2:]).items():
        torch.testing.assert_close(terms[name], 3 * value)
    assert tuple(terms) == objective.terms == ("noise", "signal", "consistency")
    assert math.isfinite(sum_of_terms(objective({name: one[:1] for name, one in batch.items()})).item())


def test_without_the_anchor_the_whole_batch_is_drawn_together(make_network, make_volume):
    network = make_network(parametrization="skip")
    objective = Consistency(network, CosineSineScheduler(), HUWindow(), copy.deepcopy(network), anchor_weight=0.0)
    seen = []
    goal = objective.goal
    objective.goal = lambda volumes, *others: seen.append(len(volumes)) or goal(volumes, *others)
    for size in (5, 1):
        terms = objective({"image": 300 * make_volume(size, 1, 4, 4, 4)})
        assert terms["noise"] == terms["signal"] == 0 < terms["consistency"]
    assert seen == [5, 1]


@pytest.mark.parametrize("process", [CosineSineScheduler, FlowMatchingScheduler])
def test_every_interval_is_trained_equally_often_at_its_noisy_end(process):
    process, seen = process(), []

    def network(noisy, times):
        seen.append(times)
        return noisy.repeat(1, len(process.predictions), 1, 1, 1)

    class Recorder(torch.nn.Module):
        forward = staticmethod(network)

    objective = Consistency(Recorder(), process, HUWindow(), Recorder(), [4], anchor_weight=0.0)
    torch.manual_seed(0)
    objective({"image": torch.zeros(4000, 1, 1, 1, 1)})
    ends, starts = ((process.path.position(times.double()), times) for times in seen)
    borders = edge(torch.arange(5, dtype=torch.float64) / 4)
    for found, expected in ((ends[0], borders[1:]), (starts[0], borders[:-1])):
        nearest = (found[:, None] - expected).abs()
        assert nearest.min(1).values.max() < 1e-6
        shares = torch.bincount(nearest.argmin(1), minlength=4) / 4000
        torch.testing.assert_close(shares, torch.full((4,), 0.25), rtol=0, atol=0.03)


def test_the_target_is_the_averages_and_has_no_gradient(make_network, make_volume):
    network, average = make_network(seed=0, parametrization="skip"), make_network(seed=1, parametrization="skip")
    batch = {"image": 300 * make_volume(4, 1, 4, 4, 4)}

    def loss_of(average):
        torch.manual_seed(0)
        return Consistency(network, CosineSineScheduler(), HUWindow(), average)(batch)["consistency"]

    assert not torch.allclose(loss_of(network), loss_of(average))
    loss_of(average).backward()
    assert all(one.grad is None for one in average.parameters())
    assert any(one.grad is not None and one.grad.any() for one in network.parameters())
    objective = Consistency(network, CosineSineScheduler(), HUWindow(), average)
    assert len(list(objective.parameters())) == len(list(network.parameters()))


def test_intervals_follow_the_run(make_network):
    network = make_network()
    objective, seen = Consistency(network, CosineSineScheduler(), HUWindow(), network, [8, 16, 32]), []
    objective.goal = lambda volumes, noise, ends, parts: seen.append(parts) or volumes
    engine = Engine(lambda engine, batch: objective(batch))
    objective.attach(engine)
    engine.run([{"image": torch.zeros(2, 1, 4, 4, 4)}] * 3, max_epochs=2)
    assert seen == [8, 8, 16, 16, 32, 32]


def test_a_student_is_trained_continued_and_sampled_by_its_card(trained, tmp_path, capsys):
    teacher = trained / "ckpt" / "model.pt"
    weights = {}
    for name, lengths in (("whole", [2]), ("broken", [1, 2])):
        for epochs in lengths:
            run("training", STACK, **GIVEN, distill_from=teacher, ckpt_dir=tmp_path / name, max_epochs=epochs,
                intervals=[4], lr_decay_to=1.0, warmup=0.0, activation_checkpointing=True, bf16=True)  # fmt: skip
        weights[name] = bytes_of(tmp_path / name / "model.pt")
    assert weights["whole"] == weights["broken"]
    card = read_card(tmp_path / "whole" / "model.pt")
    assert card.sampling == {
        "num_inference_steps": 4,
        "solver": "ddim",
        "predictor_ratio": 1000.0,
        "spacing": "two_sided",
    }
    assert card.facts["teacher_sha256"] == read_card(teacher).sha256
    settings = {"ckpt_path": card.path, "num_samples": 1, "device": TINY["device"]}
    sample(**settings, output_dir=tmp_path / "own")
    told = capsys.readouterr()
    assert "4 network calls each" in told.out and "made for" not in told.err
    sample(**settings, num_inference_steps=2, output_dir=tmp_path / "two")
    assert "the weights are made for 4 network calls a volume, asked for is 2" in capsys.readouterr().err
    sample(**settings, predictor_ratio=1.0, output_dir=tmp_path / "cold")
    assert "the weights are made for predictor_ratio 1000.0, asked for is 1.0" in capsys.readouterr().err
    sample(**settings, solver="multistep", output_dir=tmp_path / "other")
    told = capsys.readouterr()
    assert "20 network calls each" in told.out and told.err.count("made for") == 1
    assert "the weights are made for solver ddim, asked for is multistep" in told.err


def test_what_cannot_be_distilled_is_told_in_one_line(trained, tmp_path):
    teacher = trained / "ckpt" / "model.pt"
    with assert_refused("was trained with the process cosine_sine, this run has flow_matching"):
        run("training", [*STACK, "flow_matching"], **GIVEN, distill_from=teacher, ckpt_dir=tmp_path)
    with assert_refused("local.pt is of stage 1", "give weights of stage 2"):
        run("training", STACK, **GIVEN, distill_from=trained / "ckpt" / "local.pt", ckpt_dir=tmp_path)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "pictures").write_text("somebody's")
    with assert_refused("pictures is a file, where a folder is needed"):
        run("training", STACK, **{**GIVEN, "num_pictures": 1}, distill_from=teacher, ckpt_dir=tmp_path / "taken")
    assert not list((tmp_path / "taken").glob("model*"))
    with assert_refused("distill_from is needed"):
        run("training", STACK, **GIVEN, ckpt_dir=tmp_path)
