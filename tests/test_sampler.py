"""The sampling loop: what it computes once, what it keeps, and that neither changes a volume."""

import weakref

import pytest
import torch
from monai.inferers import DiffusionInferer
from torch import nn

from scripts.inferers import SeedSampler, inference_network, network_at_times
from scripts.networks import Guidance
from scripts.schedulers import SOLVERS, CosineSineScheduler, FlowMatchingScheduler

CPU = torch.device("cpu")


def sampler_of(scheduler, steps=4, grid=(4, 6, 8), **settings):
    return SeedSampler(scheduler, steps, grid, **settings)


@pytest.mark.parametrize("settings", [{}, {"depth": 0}, {"parametrization": "skip", "chunk_tokens": 5}])
def test_the_network_at_a_time_is_the_network(make_network, make_volume, settings):
    network, x, times = make_network(**settings), make_volume(2, 1, 4, 6, 8), torch.tensor([1000.0, 612.5, 0.0])
    with torch.no_grad():
        for call, time in zip(network_at_times(network, times, (4, 6, 8)), times):
            torch.testing.assert_close(call(x), network(x, time.reshape(1)), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("process", [CosineSineScheduler, FlowMatchingScheduler])
def test_volumes_are_those_of_monais_loop(make_network, process):
    network = make_network(num_predictions=len(process.predictions))
    scheduler = process(predictor_ratio=2.0)
    volumes = sampler_of(scheduler)(torch.tensor([3, 8]), network)
    scheduler.generator = [torch.Generator().manual_seed(seed) for seed in (3, 8)]
    with torch.no_grad():
        noise = scheduler.initial_noise((2, 1, 4, 6, 8))
        expected = DiffusionInferer(scheduler).sample(noise, network, verbose=False)
    torch.testing.assert_close(volumes, expected.clamp(-1, 1) * 1000, rtol=0, atol=0.05)
    assert volumes.std() > 10


def test_what_depends_on_the_time_alone_is_computed_once_per_run(make_network):
    network, counts = make_network(), {"time": 0, "blocks": 0}
    layers = [("time", network.time), *(("blocks", block.modulation) for block in network.residual.blocks)]
    for name, layer in layers:
        layer.register_forward_hook(lambda *_, name=name: counts.update({name: counts[name] + 1}))
    sampler = sampler_of(CosineSineScheduler(), steps=5)
    for seeds in ([0, 1], [2]):
        sampler(torch.tensor(seeds), network)
    assert counts == {"time": 1, "blocks": 2}


@pytest.mark.parametrize("solver", SOLVERS)
def test_the_loop_keeps_the_current_state_alone(solver):
    """While the network works, no more than its input and what the solver remembers is alive."""
    alive, most = [0], []

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight, self.seen = nn.Parameter(torch.zeros(1)), set()

        def forward(self, x, timesteps):
            self.watch(x)
            most.append(alive[0])
            output = torch.cat([x, 0 * x], 1)
            self.watch(output)
            return output

        def watch(self, tensor):
            storage = tensor.untyped_storage()
            if storage._cdata not in self.seen:
                self.seen.add(storage._cdata)
                alive[0] += 1
                weakref.finalize(storage, self.gone, storage._cdata)

        def gone(self, key):
            self.seen.discard(key)
            alive[0] -= 1

    sampler_of(CosineSineScheduler(solver=solver, predictor_ratio=1), steps=16)(torch.tensor([0]), Network())
    assert len(most) == 16 and max(most) <= (2 if solver in ("heun", "rk4") else 1)


def test_other_networks_than_ours_sample_too():
    """Anything with the signature of MONAI's inferers."""

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(1))

        def forward(self, x, timesteps, context=None):
            assert timesteps.shape == (1,)
            return torch.cat([self.scale * x, 0 * x], dim=1)

    assert sampler_of(CosineSineScheduler())(torch.tensor([0]), Network()).shape == (1, 1, 4, 6, 8)


@pytest.mark.slow
def test_a_compiled_network_samples_the_same(make_network):
    volumes = [
        sampler_of(CosineSineScheduler(), guidance=Guidance(0.5, 1, 0.6))(
            torch.tensor([0]), inference_network(make_network(), CPU, False, compiled)
        )
        for compiled in (False, True)
    ]
    torch.testing.assert_close(*volumes, rtol=0, atol=0.5)


def test_compiling_needs_a_compiler(make_network, monkeypatch, one_line):
    from torch._inductor import cpp_builder
    from torch._inductor.exc import InvalidCxxCompiler

    def none():
        raise InvalidCxxCompiler

    monkeypatch.setattr(cpp_builder, "get_cpp_compiler", none)
    with pytest.raises(ValueError) as raised:
        inference_network(make_network(), CPU, compile=True)
    one_line(raised, "compile", "C++ compiler")
