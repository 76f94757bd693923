"""The sampling loop: what it computes once, what it keeps, and that neither changes a volume."""

import weakref

import pytest
import torch
from monai.inferers import DiffusionInferer
from torch import nn

from scripts.inferers import DiffusionGenerator, Item, inference_network, network_at_times
from scripts.networks import Guidance, Guided, build_high_resolution, build_prdit
from scripts.schedulers import SOLVERS, CosineSineScheduler, FlowMatchingScheduler
from scripts.spaces import HUWindow
from scripts.training import Refining, local_denoising

CPU = torch.device("cpu")


def generator_of(network, scheduler, steps=4, grid=(4, 6, 8), **settings):
    return DiffusionGenerator(network, scheduler, steps, grid, **settings)


def sample(network, scheduler, *seeds, **settings):
    return generator_of(network, scheduler, **settings).sample([Item(seed) for seed in seeds or (0,)])


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
    volumes = sample(network, scheduler, 3, 8)
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
    generator = generator_of(network, CosineSineScheduler(), steps=5)
    for seeds in ([0, 1], [2]):
        generator.sample([Item(seed) for seed in seeds])
    assert counts == {"time": 1, "blocks": 2}


def test_two_generators_of_one_process_draw_with_their_own_networks(make_network):
    """The first one's times are not kept for the second, nor changed by it."""
    first, second = make_network(seed=0), make_network(seed=1)
    scheduler = CosineSineScheduler()
    generators = [generator_of(network, scheduler) for network in (first, second)]
    volumes = [generator.sample([Item(0)]) for generator in (*generators, generators[0])]
    for volume, network in zip(volumes, (first, second, first)):
        assert torch.equal(volume, sample(network, CosineSineScheduler()))
    assert not torch.equal(volumes[0], volumes[1])


def test_a_generator_takes_the_times_that_its_scheduler_has_now(make_network):
    scheduler, network = CosineSineScheduler(), make_network()
    generator = generator_of(network, scheduler, steps=4)
    generator.sample([Item(0)])
    scheduler.set_timesteps(7)
    assert torch.equal(generator.sample([Item(0)]), sample(network, CosineSineScheduler(), steps=7))


class Level(nn.Module):
    """Predicts a volume of one value, which is its condition."""

    conditions = ("level",)

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, x, timesteps, level):
        signal = level.reshape(-1, 1, 1, 1, 1).expand_as(x)
        theta = 0.5 * torch.pi * timesteps / 1000
        return torch.cat([(x - theta.cos() * signal) / theta.sin(), signal], dim=1)


def test_each_volume_has_its_own_conditions(one_line):
    generator = generator_of(Level(), CosineSineScheduler(solver="ddim"))
    levels = [torch.tensor(value) for value in (-0.5, 0.25, 0.0)]
    for batch in (levels, levels[:1], levels[1:]):  # nothing is kept of the batch before
        volumes = generator.sample([Item(3, {"level": level}) for level in batch])
        for volume, level in zip(volumes, batch):
            torch.testing.assert_close(volume, torch.full_like(volume, 1000 * float(level)), rtol=0, atol=1)
    for items in ([], [3], Item(0), [Item(-1, {"level": levels[0]})], [Item(0.5, {"level": levels[0]})]):
        with pytest.raises(ValueError) as raised:
            generator.sample(items)
        one_line(raised, "seed")
    for item, words in ((Item(7), ["level", "seed 7 has: none"]), (Item(7, {"age": levels[0]}), ["level", "age"])):
        with pytest.raises(ValueError) as raised:
            generator.sample([item])
        one_line(raised, *words)


@pytest.mark.parametrize("solver", ["ddim", "multistep"])
def test_a_correction_puts_known_voxels_into_a_volume(make_network, solver):
    """Where half of the volume is known, the result has it, and the other half has heard of it."""
    known = torch.zeros(4, 6, 8)
    known[..., :4] = 0.5
    seen = []

    def correct(signal, noise, x, point):
        seen.append(point.u)
        signal = signal.clone()
        signal[..., :4] = known[..., :4]
        return signal, (x - point.alpha * signal) / point.sigma

    network, items = make_network(), [Item(0), Item(1)]
    generator = generator_of(network, CosineSineScheduler(solver=solver, predictor_ratio=1), steps=16)
    free, corrected = generator.sample(items), generator.sample(items, correct)
    assert len(seen) == 16 and seen[0] == 1
    torch.testing.assert_close(corrected[..., :4], torch.full_like(corrected[..., :4], 500), rtol=0, atol=0.1)
    assert not torch.equal(corrected[..., 4:], free[..., 4:])


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
    volume = sample(Signal(), CosineSineScheduler(predictor_ratio=1), steps=100, space=HUWindow(*window))
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
            lambda: generator_of(network, CosineSineScheduler(500), grid=(8, 8, 8)),
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
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_tile": True})
    for compiled, suppressed in ((None, True), (True, False)):
        network = inference_network(make_network(), CPU, bf16=True, compile=compiled, num_calls=10**6)
        sample(network, CosineSineScheduler(), steps=1)
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

    sample(Network(), CosineSineScheduler(solver=solver, predictor_ratio=1), steps=16)
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

    assert sample(Network(), CosineSineScheduler()).shape == (1, 1, 4, 6, 8)


@pytest.mark.slow
def test_a_compiled_network_samples_the_same(make_network):
    volumes = []
    for compiled in (False, True):
        scheduler, network = CosineSineScheduler(), inference_network(make_network(), CPU, False, compiled)
        volumes.append(sample(Guided(network, Guidance(0.5, 1, 0.6), scheduler.path), scheduler))
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
