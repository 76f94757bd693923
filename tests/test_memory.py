"""The calculated memory of sampling against the tensors that really live at one time."""

import math
import os
import re
import subprocess
import sys

import pytest
import torch
from bundle_runs import CONFIGS
from test_high_resolution import make_high
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from scripts.inferers import Sampling, memory_plan, network_at_times
from scripts.inferers.memory import FusedAttention, LiveBytes
from scripts.networks import Card, Guidance, Guided, build_network, preset_settings
from scripts.networks.kinds import override_settings
from scripts.networks.residual_dit import Attention
from scripts.schedulers import CosineSineScheduler
from scripts.spaces import HUWindow
from scripts.training import Denoising, HeldOut, Refining, local_denoising
from scripts.training.opening import TrainingStep

SMALL = {"hidden_size": 48, "num_heads": 4, "depth": 4, "patch_size": 6, "stride": 4, "parametrization": "skip"}
REFINED = {
    "backbone": SMALL,
    "chunk_tokens": 0,
    "factor": 2,
    "hidden_size": 16,
    "patch_size": 6,
    "stride": 4,
    "parametrization": "skip",
}


def test_live_bytes_are_those_of_tensors_that_live_together():
    known = torch.zeros(1000)
    with LiveBytes([known]) as live:
        first = torch.ones(100)  # 400 bytes
        second = first + 1
        del first
        assert (live.now, live.peak) == (400, 800)
        known.add_(1)
        third = torch.cat([second, second])
        view = third[3:]
        assert (live.now, live.peak) == (1200, 1200)
        del second, third, view
    assert (live.now, live.peak) == (0, 1200)


def test_attention_makes_its_output_alone():
    q = torch.empty(2, 3, 500, 8, device="meta")
    with FusedAttention(), LiveBytes([q]) as live:
        assert F.scaled_dot_product_attention(q, q, q).shape == q.shape
    assert live.peak == q.nbytes


@pytest.mark.parametrize(
    "settings", [SMALL, {**SMALL, "depth": 0}, REFINED, {**SMALL, "num_predictions": 1, "parametrization": "none"}]
)
@pytest.mark.parametrize("bf16", [True, False])
@pytest.mark.parametrize(("batch", "chunk_tokens", "guided"), [(1, 0, False), (3, 0, True), (2, 40, False)])
def test_calculated_peak_is_that_of_a_call_on_this_machine(settings, bf16, batch, chunk_tokens, guided, monkeypatch):
    if guided and settings.get("depth") == 0:
        pytest.skip("no transformer")
    monkeypatch.setattr(Attention, "SHORT", 0)
    dtype, grid = torch.bfloat16 if bf16 else torch.float32, (32, 32, 48)
    network = build_network(**override_settings(settings, {"chunk_tokens": chunk_tokens})).to(dtype).eval()
    x, weights = torch.zeros(batch, 1, *grid), list(network.parameters())
    path = CosineSineScheduler().path
    called = Guided(network, Guidance(0.5, 0, math.inf), path) if guided else network
    with torch.no_grad():
        times = torch.tensor([500.0, 100.0, 3.0])
        calls = network_at_times(called, times, grid)
        kept = sum(part.nbytes for part in network.modulations(times))
        with LiveBytes([*weights, x]) as live:
            calls[0](x)
    expected = (sum(weight.nbytes for weight in weights) + kept + live.peak + 2 * x.nbytes) / 1e9
    found = Sampling(settings, bf16, len(times), guided).peak_gb(grid, batch, chunk_tokens)
    assert found == pytest.approx(expected, rel=0.02)


def card_of(network, grid):
    data = {"grid": [grid] * 3, "field_of_view_mm": 320.0, "hu_window": [-1000, 1000]}
    return Card(sha256="", network=network, data=data)


HIGH = {"backbone": preset_settings("PRDiT-B/4"), "chunk_tokens": 0}


def test_256_at_high_resolution_fits_8_gb():
    card = card_of(HIGH, 256)
    for bf16 in (True, False):
        assert memory_plan(card, memory_gb=8, bf16=bf16)["batch_size"] >= 1


@pytest.mark.parametrize("memory_gb", [8, 16, 24, 40, 80])
@pytest.mark.parametrize("grid", [64, 128, 256])
def test_every_card_samples_every_grid(grid, memory_gb):
    card = card_of(preset_settings("PRDiT-B/12"), grid)
    for bf16 in (True, False):
        plan = memory_plan(card, memory_gb=memory_gb, bf16=bf16)
        assert plan["batch_size"] >= 1 and plan["chunk_tokens"] == 0
        assert Sampling(card.network, bf16).peak_gb([grid] * 3, **plan) < 0.85 * memory_gb


def test_more_memory_makes_larger_batches():
    batches = [
        memory_plan(card_of(preset_settings("PRDiT-B/4"), 256), memory_gb=m, bf16=True)["batch_size"]
        for m in (8, 24, 80)
    ]
    assert batches == sorted(set(batches))


def test_chunks_come_where_one_volume_does_not_fit():
    card = card_of(preset_settings("PRDiT-S/2"), 256)
    plan = memory_plan(card, memory_gb=2, bf16=True)
    assert plan["batch_size"] == 1 and plan["chunk_tokens"] > 0
    assert Sampling(card.network).peak_gb([256] * 3, 1, 2 * plan["chunk_tokens"]) > 0.85 * 2 - 0.7


def test_what_the_user_gives_holds():
    card = card_of(preset_settings("PRDiT-B/4"), 64)
    plan = memory_plan(card, memory_gb=8, batch_size=3, chunk_tokens=99, bf16=True)
    assert (plan["batch_size"], plan["chunk_tokens"]) == (3, 99)
    assert memory_plan(card) == {"batch_size": 1, "chunk_tokens": 0}
    assert memory_plan(card, batch_size=5, chunk_tokens=7) == {"batch_size": 5, "chunk_tokens": 7}


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"memory_gb": 1}, ["[256, 256, 256]", "memory_gb is 1"]),
        ({"memory_gb": 8, "batch_size": 64}, ["memory_gb is 8", "batch_size"]),
        ({"memory_gb": -1}, ["memory_gb", -1]),
        ({"memory_gb": "8GB"}, ["memory_gb", "8GB"]),
        ({"batch_size": 0}, ["batch_size must be 1 or more"]),
        ({"chunk_tokens": -5}, ["chunk_tokens must be 0 or more"]),
    ],
)
def test_what_cannot_be_is_one_line(given, words, one_line):
    with pytest.raises(ValueError) as raised:
        memory_plan(card_of(preset_settings("PRDiT-B/4"), 256), bf16=True, **given)
    one_line(raised, *words)


@pytest.mark.parametrize("kind", ["whole volumes", "windows", "refiner", "windows of a refiner"])
def test_a_step_of_training_is_counted_as_it_runs(kind, make_network):
    if "refiner" in kind:
        objective = Refining(make_high(), CosineSineScheduler(), HUWindow(), 2 if "windows" in kind else 0)
    else:
        network = make_network(depth=0 if kind == "windows" else 2, patch_size=6, stride=4)
        objective = local_denoising(network, CosineSineScheduler(), HUWindow(), 2 if kind == "windows" else 0)
    step, sizes = TrainingStep(objective, [16] * 3, 8, "cpu"), [one.numel() for one in objective.parameters()]
    before = torch.get_rng_state()
    needs = step.needs(8)
    assert torch.equal(before, torch.get_rng_state()) and all(one.grad is None for one in objective.parameters())
    batch = step.batch(8)
    with LiveBytes() as real, FlopCounterMode(display=False) as flops:
        step.run(batch)
    states = 4 * (2 * sum(sizes) + 2 * sum(one.numel() for one in objective.parameters() if one.requires_grad))
    assert needs["tflop"] * 1e12 == pytest.approx(flops.get_total_flops(), rel=0.01) and needs["tflop"] > 0
    assert needs["gb"] * 1e9 == pytest.approx(states + batch["image"].nbytes + real.peak, rel=0.1)


def test_validation_is_counted_where_it_takes_more_than_a_step(make_network):
    """It sees whole volumes at all its times together, a step blocks alone."""
    objective = local_denoising(make_network(depth=0), CosineSineScheduler(), HUWindow(), 1)
    held_out = HeldOut(Denoising(objective.network, objective.process, objective.space), num_times=10)
    step = TrainingStep(objective, [16] * 3, 1, "cpu", held_out)
    with torch.no_grad(), LiveBytes() as real:
        held_out(step.batch(1))
    states = 5 * sum(one.nbytes for one in objective.parameters())  # weights, average, AdamW's two, gradients
    assert step.needs(1)["gb"] * 1e9 == pytest.approx(states + step.batch(1)["image"].nbytes + real.peak, rel=0.1)
    assert step.needs(1)["gb"] > 1.2 * TrainingStep(objective, [16] * 3, 1, "cpu").needs(1)["gb"]


@pytest.mark.slow
@pytest.mark.parametrize("words", [["train", "--stage", "1", "--max_epochs", "1"], ["demo", "out", "--n", "1"]])
def test_a_plan_is_what_the_process_takes(words, tmp_path):
    """Of the defaults, on a CPU; a step of 64 volumes here, and the libraries."""
    words += ["--num_phantoms", "64", "--num_validation_phantoms", "1"] if words[0] == "train" else []
    code = "import resource, sys; sys.path.insert(1, sys.argv.pop(1)); import prdit; prdit.main()"
    code += "; print('peak', resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    command, env = [sys.executable, "-c", code, str(CONFIGS.parent)], {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    texts = [
        subprocess.run(
            [*command, *more, *words], cwd=tmp_path, env=env, check=True, capture_output=True, text=True
        ).stdout
        for more in (["plan"], [])
    ]
    number, unit = re.search(r"needs ([\d.]+) (GB|MB) of memory", texts[0]).groups()
    peak = int(re.search(r"peak (\d+)", texts[1])[1]) * 1024
    assert float(number) * {"GB": 1e9, "MB": 1e6}[unit] == pytest.approx(peak, rel=0.3)
