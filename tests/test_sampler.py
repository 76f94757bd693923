"""The sampling loop: what it computes once, what it keeps, and that neither changes a volume."""

import weakref

import pytest
import torch
from monai.inferers import DiffusionInferer
from torch import nn

from scripts.inferers import SeedSampler, inference_network, network_at_times
from scripts.networks import Guidance, build_high_resolution, build_prdit
from scripts.schedulers import SOLVERS, CosineSineScheduler, FlowMatchingScheduler
from scripts.spaces import HUWindow
from scripts.training import Refining, local_denoising

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


def test_a_sampler_samples_the_network_that_it_is_given(make_network):
    first, second = make_network(seed=0), make_network(seed=1)
    shared = sampler_of(CosineSineScheduler())
    for network in (first, second, first):
        alone = sampler_of(CosineSineScheduler())(torch.tensor([0]), network)
        assert torch.equal(shared(torch.tensor([0]), network), alone)
    assert not torch.equal(shared(torch.tensor([0]), first), shared(torch.tensor([0]), second))


def test_a_sampler_takes_the_times_that_its_scheduler_has_now(make_network):
    scheduler, network = CosineSineScheduler(), make_network()
    sampler = sampler_of(scheduler, steps=4)
    sampler(torch.tensor([0]), network)
    scheduler.set_timesteps(7)
    assert torch.equal(
        sampler(torch.tensor([0]), network), sampler_of(CosineSineScheduler(), steps=7)(torch.tensor([0]), network)
    )


class Signal(nn.Module):
    """A network that knows the volume: half of it is -1, a quarter 0, a quarter 1."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, x, timesteps):
        signal = torch.zeros_like(x)
        signal[..., :4], signal[..., 6:] = -1.0, 1.0
        theta = 0.5 * torch.pi * timesteps.double() / 1000
        return torch.cat([((x - theta.cos() * signal) / theta.sin()).float(), signal], dim=1)


@pytest.mark.parametrize("window", [(-1000.0, 1000.0), (-200.0, 600.0), (0.0, 80.0)])
def test_volumes_are_in_the_hu_of_the_window(window):
    volume = sampler_of(CosineSineScheduler(predictor_ratio=1), steps=100, space=HUWindow(*window))(
        torch.tensor([0]), Signal()
    )
    low, high = window
    for part, hu in ((volume[..., :4], low), (volume[..., 4:6], (low + high) / 2), (volume[..., 6:], high)):
        torch.testing.assert_close(part, torch.full_like(part, hu), rtol=0, atol=0.02 * (high - low))


def test_skip_counts_with_the_time_steps_of_the_process(make_volume):
    """A network whose branches say nothing gives cos x_t as signal and sin x_t as noise, theta = pi/2 t/T."""
    x = make_volume(2, 1, 4, 6, 8)
    for total in (1000, 500, 10):
        network = build_prdit(24, 4, 1, patch_size=4, stride=2, parametrization="skip", num_train_timesteps=total)
        for share in (0.0, 1 / 3, 1.0):
            theta = torch.tensor(0.5 * torch.pi * share)
            expected = torch.cat([theta.sin() * x, theta.cos() * x], dim=1)
            with torch.no_grad():
                found = network(x, torch.tensor([share * total]))
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_a_process_of_other_time_steps_is_refused(make_network, one_line):
    high = build_high_resolution({"hidden_size": 24, "num_heads": 4, "depth": 1, "patch_size": 4, "stride": 2,
                                  "parametrization": "skip"}, 2, 24, 4, 2)  # fmt: skip
    for network in (make_network(parametrization="skip"), high):
        for refuse in (
            lambda: sampler_of(CosineSineScheduler(500), grid=(8, 8, 8))(torch.tensor([0]), network),
            lambda: network.require_process(500),
        ):
            with pytest.raises(ValueError) as raised:
                refuse()
            one_line(raised, "num_train_timesteps 1000", 500)
    with pytest.raises(ValueError, match="num_train_timesteps"):
        local_denoising(make_network(parametrization="skip"), CosineSineScheduler(500), HUWindow())
    with pytest.raises(ValueError, match="num_train_timesteps"):
        Refining(high, CosineSineScheduler(500), HUWindow())
    make_network().require_process(500)  # without 'skip' the network counts nothing


def test_compiling_leaves_the_settings_of_this_process_alone(make_network, monkeypatch):
    """torch.compile needs two of PyTorch's while it works; afterwards a broken compile must not pass in silence."""
    from torch._inductor import config as inductor

    during = []

    def fake(function, **_):
        def call(*args, **kwargs):
            during.append((inductor.freezing, torch._dynamo.config.suppress_errors))
            return function(*args, **kwargs)

        return call

    monkeypatch.setattr(torch, "compile", fake)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    for compiled, suppressed in ((None, True), (True, False)):
        network = inference_network(make_network(), CPU, bf16=True, compile=compiled, num_calls=10**6)
        sampler_of(CosineSineScheduler(), steps=1)(torch.tensor([0]), network)
        assert during[-1] == (True, suppressed)
        assert (inductor.freezing, torch._dynamo.config.suppress_errors) == (False, False)


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
