"""Training of the refiner: windows, consistency, what is frozen, and the configs from end to end."""

import csv
import json
from functools import partial

import nibabel as nib
import numpy as np
import pytest
import torch
from bundle_runs import assert_refused, run, train
from test_high_resolution import make_high

from scripts.networks.high_resolution import cut_windows
from scripts.networks.layers import zero_init
from scripts.schedulers import CosineSineScheduler
from scripts.spaces import HUWindow
from scripts.training import Refining, local_denoising, parameters_to_train, sum_of_terms

TERMS = ("noise", "signal", "noise_consistency", "signal_consistency")


@pytest.mark.parametrize("factor", [2, 4])
@pytest.mark.parametrize("parametrization", ["none", "skip"])
def test_windows_have_the_predictions_of_the_whole_volume(make_volume, factor, parametrization):
    """Wherever they lie, borders included, and with the backbone's prediction of the whole low grid beside them."""
    network = make_high(factor=factor, parametrization=parametrization)
    x, times = make_volume(2, 1, 16, 24, 8), torch.tensor([120.0, 870.0])
    with torch.no_grad():
        whole = network(x, times)
        low = network.backbone(x[:, :, ::factor, ::factor, ::factor], times)
        for starts in ([[0, 0, 0], [8, 16, 4]], [[8, 8, 0], [4, 12, 4]]):
            windows, low_windows = network.forward_windows(x, times, starts, [8, 8, 4])
            torch.testing.assert_close(windows, cut_windows(whole, starts, [8, 8, 4]), rtol=0, atol=1e-5)
            corners = [[first // factor for first in start] for start in starts]
            sides = [8 // factor, 8 // factor, 4 // factor]
            assert torch.equal(low_windows, cut_windows(low, corners, sides))


def refining(network, window=0, weight=0.0):
    return Refining(network, CosineSineScheduler(), HUWindow(), window, weight)


def test_windows_have_the_targets_of_the_whole_volume(make_volume):
    torch.manual_seed(0)
    network, images, seen = make_high(), make_volume(3, 1, 8, 16, 24).clamp(-1, 1), set()
    objective, calls = refining(network, 2), []
    objective.predict_windows = lambda noisy, times, starts, sides: calls.append((noisy, times, starts, sides)) or (
        torch.zeros(3, 2, *sides), torch.zeros(3, 2, *(side // 2 for side in sides)))  # fmt: skip
    objective.named = lambda prediction, target: calls.append(target) or {}
    for _ in range(30):
        calls.clear()
        noise = make_volume(3, 1, 8, 16, 24, seed=1)
        objective.errors(images, noise, torch.tensor([100.0, 500.0, 900.0]))
        (noisy, times, starts, sides), target, _ = calls
        assert sides == [8, 8, 8] and torch.equal(noisy, CosineSineScheduler().add_noise(images, noise, times))
        assert torch.equal(target, torch.cat([cut_windows(part, starts, sides) for part in (noise, images)], 1))
        seen |= {tuple(start) for start in starts}
    assert seen == {(0, y, x) for y in (0, 4, 8) for x in (0, 4, 8, 12, 16)}


@pytest.mark.parametrize("weight", [0.0, 0.25])
def test_the_loss_is_eq_3_and_the_weighted_consistency_with_each_term_apart(make_volume, weight):
    """Against the definition: averaged signal and nearest noise of the prediction, minus the backbone's output."""
    network, time, process = make_high(), torch.tensor([300.0, 600.0]), CosineSineScheduler()
    images, noise = make_volume(2, 1, 8, 8, 8), make_volume(2, 1, 8, 8, 8, seed=1)
    with torch.no_grad():
        terms = refining(network, 0, weight).errors(images, noise, time)
        x = process.add_noise(images, noise, time)
        prediction, low = network(x, time), network.backbone(x[:, :, ::2, ::2, ::2], time)
    mean = prediction[:, 1:].unfold(2, 2, 2).unfold(3, 2, 2).unfold(4, 2, 2).mean((-1, -2, -3))
    expected = {
        "noise": (prediction[:, :1] - noise).square().mean(),
        "signal": (prediction[:, 1:] - images).square().mean(),
        "noise_consistency": weight * (prediction[:, :1, ::2, ::2, ::2] - low[:, :1]).square().mean(),
        "signal_consistency": weight * (mean - low[:, 1:]).square().mean(),
    }
    assert tuple(terms) == TERMS == refining(network).terms
    for name, value in terms.items():
        assert float(value) == pytest.approx(float(expected[name]), rel=1e-4)
    assert (terms["signal_consistency"] > 0) == (weight > 0)


def test_noise_that_the_backbone_knows_is_consistent(make_volume):
    """At the start the noise at the low grid is the backbone's own, so that term is zero; the signal's is blur."""
    network, images = make_high(), make_volume(1, 1, 8, 8, 8)
    zero_init(network.refiner.output)
    with torch.no_grad():
        terms = refining(network, 0, 1.0).errors(images, make_volume(1, 1, 8, 8, 8, seed=1), torch.tensor([300.0]))
    assert not terms["noise_consistency"] and terms["signal_consistency"]


@pytest.mark.parametrize("freeze", [True, False])
def test_frozen_backbones_keep_no_graph(make_volume, freeze, monkeypatch):
    network = make_high(parametrization="skip")
    network.backbone.requires_grad_(not freeze)
    states, predict = [], network.backbone.predict

    def spy(*args, **kwargs):
        states.append(torch.is_grad_enabled())
        return predict(*args, **kwargs)

    monkeypatch.setattr(network.backbone, "predict", spy)
    objective = refining(network, 2, 0.1)
    sum_of_terms(objective({"image": 1000 * make_volume(2, 1, 8, 8, 8)})).backward()
    assert states == [not freeze]
    trained = {name for name, parameter in network.named_parameters() if parameter.grad is not None}
    assert any(name.startswith("backbone.") for name in trained) != freeze
    assert any(name.startswith("refiner.") for name in trained) and "time.weight" in trained
    assert len(parameters_to_train(objective)) == len(trained)


@pytest.mark.parametrize("kind", ["whole", "local", "refining"])
def test_what_calls_the_network_is_what_is_compiled(make_network, make_volume, monkeypatch, kind):
    calls = []
    monkeypatch.setattr(torch, "compile", lambda function: lambda *args: calls.append(function) or function(*args))
    network = make_high() if kind == "refining" else make_network(depth=0)
    build = {"whole": local_denoising, "local": partial(local_denoising, local_window=1), "refining": Refining}[kind]
    objective = build(network, CosineSineScheduler(), HUWindow(), compile=True)
    assert not calls
    objective({"image": make_volume(2, 1, 8, 8, 8)})
    assert len(calls) == 1


# the configs


HIGH = {
    "refiner_hidden_size": 16, "refiner_patch_size": 6, "refiner_stride": 4, "num_phantoms": 8, "batch_size": 4,
    "num_validation_phantoms": 2, "num_validation_times": 3, "val_interval": 1, "refiner_window": 4, "ema_decay": 0.5,
    "warmup": 0, "num_pictures": 0, "lr": 2.0e-3, "device": "$torch.device('cpu')",
}  # fmt: skip


def train_high(folder, backbone, *overlays, **settings):
    given = {**HIGH, "backbone_ckpt": str(backbone), "ckpt_dir": folder, **settings}
    run("training", ["train", "train_high_resolution", *overlays], **given)


def rows(folder, stage="high_resolution"):
    with open(folder / f"{stage}_losses.csv") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    """Weights of a tiny network of 16^3, stage 1 alone."""
    folder = tmp_path_factory.mktemp("low")
    train(1, folder, max_epochs=6, ema_decay=0.5, warmup=0.1)
    return folder / "ckpt" / "local.pt"


@pytest.fixture(scope="module")
def high(backbone, tmp_path_factory):
    folder = tmp_path_factory.mktemp("high")
    train_high(folder, backbone, max_epochs=6)
    return folder


def test_training_lowers_the_loss_and_logs_its_terms_apart(high, backbone):
    first, *_, last = rows(high)
    assert float(last["val_loss"]) < 0.95 * float(first["val_loss"])
    assert all(float(row[f"train_{name}"]) > 0 for name in TERMS for row in (first, last))
    total = sum(float(last[f"train_{name}"]) for name in TERMS)
    assert float(last["train_loss"]) == pytest.approx(total, rel=1e-3)
    settings = json.loads((high / "high_resolution.json").read_text())
    assert settings["data"]["grid"] == [32, 32, 32] and settings["network"]["factor"] == 2
    assert settings["backbone_sha256"] == json.loads(backbone.with_suffix(".json").read_text())["sha256"]
    low, whole = (torch.load(path, weights_only=True) for path in (backbone, high / "high_resolution.pt"))
    assert all(torch.equal(whole[f"backbone.{name}"], value) for name, value in low.items())


def test_sampling_needs_the_checkpoint_alone(high, tmp_path):
    settings = {"ckpt_path": high / "high_resolution.pt", "num_inference_steps": 2, "num_samples": 2}
    settings["allow_stage_1"] = True  # its backbone is no more
    run("run", ["inference"], output_dir=tmp_path / "a", **settings)
    run("run", ["inference", "inference_high_resolution"], output_dir=tmp_path / "b", chunk_tokens=7, **settings)
    a, b = (np.asanyarray(nib.load(tmp_path / name / "seed_000001.nii.gz").dataobj) for name in "ab")
    assert a.shape == (32, 32, 32) and a.std() > 10 and np.abs(a.astype(int) - b).mean() < 3


def test_finetuning_moves_the_backbone_too(high, backbone, tmp_path):
    for name in ("high_resolution.pt", "high_resolution.json"):
        (tmp_path / name).write_bytes((high / name).read_bytes())
    train_high(tmp_path, backbone, "finetune_high_resolution", max_epochs=1)
    before, after = (torch.load(tmp_path / f"high_resolution{end}.pt", weights_only=True) for end in ("", "_finetuned"))
    moved = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert moved == {"backbone", "refiner", "time"}


def test_chains_train_on_high_resolution_weights(high, tmp_path):
    settings = {"num_phantoms": 2, "batch_size": 2, "num_validation_phantoms": 1, "num_validation_times": 1}
    train_high(tmp_path, high / "high_resolution.pt", max_epochs=1, **settings)
    network = json.loads((tmp_path / "high_resolution.json").read_text())["network"]
    assert network["backbone"]["backbone"]["depth"] == 0
    assert json.loads((tmp_path / "high_resolution.json").read_text())["data"]["grid"] == [64, 64, 64]


def test_bad_input(backbone, tmp_path):
    for settings, facts in (
        ({"grid": [24, 24, 24]}, ["local.pt", "factor 2", "[32, 32, 32] there", "[24, 24, 24] here"]),
        ({"factor": 1}, ["factor", "from 2 to 16"]),
        ({"factor": 3, "refiner_window": 4}, ["refiner_window", "factor 3"]),
        (
            {"refiner_stride": 5, "refiner_patch_size": 5, "refiner_window": 0},
            ["multiple of the stride 5", "[32, 32, 32]"],
        ),
        ({"field_of_view_mm": 100.0}, ["local.pt", "field_of_view_mm", 100.0]),
        ({"process_name": "flow_matching"}, ["local.pt", "cosine_sine", "flow_matching"]),
        ({"backbone_ckpt": str(tmp_path / "none.pt")}, ["none.pt"]),
        ({"consistency_weight": -1}, ["consistency_weight"]),
    ):
        with assert_refused(*facts):
            train_high(tmp_path, backbone, **{"max_epochs": 1, **settings})


def test_a_run_does_not_continue_on_another_backbone(high, tmp_path):
    train(1, tmp_path, max_epochs=1, seed=1)
    for path in high.glob("high_resolution*"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    with assert_refused("another backbone"):
        train_high(tmp_path, tmp_path / "ckpt" / "local.pt", max_epochs=8)
