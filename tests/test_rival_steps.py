"""Training steps of the rivals and of a student, beside their terms: what a plan counts, what a probe leaves, what a GPU is asked."""

from contextlib import nullcontext

import pytest
import torch
from test_host_waits import GPU, Copies
from torch.utils.flop_counter import FlopCounterMode

from scripts.inferers.memory import LiveBytes
from scripts.networks import HADiscriminator, HAGenerator, LatentSpace, WaveletUNet, build_network
from scripts.networks.vq_gan import VQGAN, Discriminators
from scripts.schedulers.process import CosineDDPMScheduler, CosineSineScheduler, LinearDDPMScheduler
from scripts.spaces import Haar, HUWindow
from scripts.training import (
    Adversarial,
    Consistency,
    Denoising,
    HeldOut,
    HeldOutAdversarial,
    HeldOutReconstruction,
    Reconstructing,
    adversarial,
    consistency,
    objectives,
    reconstruction,
    sum_of_terms,
)
from scripts.training.opening import TrainingStep

RIVALS = ("WDM-3D", "HA-GAN", "autoencoder of 3D-LDM", "3D-LDM", "student")


def rival(name):
    """Its objective, what validates it, and the side of its volumes."""
    torch.manual_seed(0)
    if name == "HA-GAN":
        objective = Adversarial(HAGenerator(32, 16, 8), HADiscriminator(32, 16), HUWindow(), bf16=False)
        return objective, HeldOutAdversarial(objective), 32
    if name == "autoencoder of 3D-LDM":
        network = VQGAN(2, num_codes=32)
        objective = Reconstructing(network, Discriminators(start=5), HUWindow(), bf16=False)
        return objective, HeldOutReconstruction(network, HUWindow(), bf16=False), 16
    if name == "student":
        sizes = {"patch_size": 4, "stride": 2, "local_patch_size": 4, "local_stride": 2}
        network, process = build_network(depth=1, hidden_size=32, num_heads=2, **sizes), CosineSineScheduler()
        objective = Consistency(network, process, HUWindow(), network, bf16=False)
        return objective, HeldOut(Denoising(network, process, HUWindow(), bf16=False), 2), 16
    if name == "WDM-3D":
        given = WaveletUNet(1, 32, (1, 2)), LinearDDPMScheduler(1000), Haar()
    else:
        space = LatentSpace((-1000.0, 1000.0), VQGAN(2, num_codes=32))
        network = build_network(kind="latent", autoencoder=space.autoencoder.settings, channels=8, multipliers=[1, 2])
        given = network, CosineDDPMScheduler(300), space
    objective = Denoising(*given, bf16=False)
    return objective, HeldOut(objective, 2), 16


@pytest.mark.parametrize("name", RIVALS)
def test_a_process_that_measures_alone_waits_for_no_other(name, monkeypatch):
    def wait(*given):
        raise AssertionError("the others do not measure")

    objective, held_out, side = rival(name)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    for collective in ("broadcast", "all_reduce"):
        monkeypatch.setattr(torch.distributed, collective, wait)
    step = TrainingStep(objective, [side] * 3, 1, "cpu", held_out)
    assert step.seconds() > 0 and step.validation_seconds() > 0
    assert objective.training and held_out.training


@pytest.mark.parametrize("name", RIVALS)
def test_a_plan_counts_the_step_that_runs_and_changes_nothing(name):
    objective, held_out, side = rival(name)
    step = TrainingStep(objective, [side] * 3, 2, "cpu", held_out)
    before, drawn = {
        key: torch.as_tensor(one).clone() for key, one in objective.state_dict().items()
    }, torch.get_rng_state()
    needs = step.needs(2)
    step.seconds(), step.validation_seconds()
    after = objective.state_dict()
    assert all(torch.equal(one, torch.as_tensor(after[key])) for key, one in before.items())
    assert torch.equal(drawn, torch.get_rng_state()) and all(one.grad is None for one in objective.parameters())
    objective.to_dearest_steps()
    with LiveBytes() as real, FlopCounterMode(display=False) as flops:
        step.run(step.batch(2))
    parameters = list(objective.parameters())
    states = 4 * (
        2 * sum(map(torch.numel, parameters)) + 2 * sum(one.numel() for one in parameters if one.requires_grad)
    )
    assert needs["tflop"] * 1e12 == pytest.approx(flops.get_total_flops(), rel=0.02)
    assert needs["gb"] * 1e9 == pytest.approx(states + real.peak, rel=0.1)


def test_the_plan_of_an_autoencoder_has_its_discriminators_in_it():
    objective, _, side = rival("autoencoder of 3D-LDM")
    needs = TrainingStep(objective, [side] * 3, 1, "cpu").needs(1)
    with FlopCounterMode(display=False) as flops:
        TrainingStep(objective, [side] * 3, 1, "cpu").run({"image": torch.zeros(1, 1, *[side] * 3)})  # before they play
    assert needs["tflop"] * 1e12 > 1.5 * flops.get_total_flops() and objective.discriminators.steps == 1


@pytest.mark.parametrize("name", RIVALS)
def test_no_step_waits_for_the_gpu(name, monkeypatch):
    for module in (objectives, adversarial, consistency, reconstruction):
        monkeypatch.setattr(module, "autocast", lambda *_: nullcontext())
    objective, _, side = rival(name)
    objective.to(GPU).to_dearest_steps()
    batch = {"image": torch.zeros(2, 1, side, side, side, device=GPU), "index": torch.arange(2)}
    with Copies():
        for _ in range(2):
            sum_of_terms(objective(batch)).backward()
