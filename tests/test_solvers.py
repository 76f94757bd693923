"""Solvers against closed forms: with Gaussian data and the exact denoiser every sampler is linear."""

import math

import pytest
import torch
from monai.inferers import DiffusionInferer
from monai.networks.schedulers import DDIMScheduler
from torch.utils._pytree import tree_iter

from scripts.schedulers import SOLVERS, SPACINGS, CosineSineScheduler, FlowMatchingScheduler

BOTH = [CosineSineScheduler, FlowMatchingScheduler]
CALLS = {"heun": 2, "rk4": 4}


def exact_prediction(scheduler, x, t, std, mean=0.0):
    """What a perfect network says for data N(mean, std^2), in the output channels of the process."""
    u = torch.tensor(scheduler.path.position(float(t)), dtype=torch.float64)
    alpha, sigma = (float(w) for w in scheduler.path.weights(u)[:2])
    part = (x - alpha * mean) / (alpha**2 * std**2 + sigma**2 * scheduler.path.noise_std**2)
    noise, signal = sigma * scheduler.path.noise_std**2 * part, mean + alpha * std**2 * part
    return signal - noise if scheduler.name == "flow_matching" else torch.cat([noise, signal], dim=1)


def deviation(scheduler, calls, std, monkeypatch):
    """Standard deviation that the sampler gives N(0, std^2), exactly.

    A sample is a linear combination of the first noise and the injected ones; it is carried as its coefficients: each
    draw of noise is the next unit vector.
    """
    draws = iter(torch.eye(calls + 1, dtype=torch.float64))
    monkeypatch.setattr("scripts.schedulers.process.draw_noise", lambda *_: next(draws).reshape(1, 1, 1, 1, -1))
    scheduler.set_timesteps(calls)
    x = scheduler.initial_noise(())
    for t in scheduler.timesteps:
        x, _ = scheduler.step(exact_prediction(scheduler, x, t, std), t, x)
    return float(x.norm())


def of_steps(process, solver, steps, std, monkeypatch, **settings):
    return deviation(process(solver=solver, **settings), steps * CALLS.get(solver, 1), std, monkeypatch)


# reference values


@pytest.mark.parametrize(
    ("solver", "std", "steps", "published"),
    [
        ("euler", 0.15, (50, 20, 10), (0.141, 0.129, 0.111)),
        ("adams_bashforth", 0.15, (50, 20, 10), (0.148, 0.138, 0.114)),
        ("heun", 0.15, (50, 20, 10), (0.151, 0.154, 0.165)),
        ("dpm_solver", 0.15, (50, 20, 10), (0.150, 0.133, 0.101)),
        ("euler", 0.5, (1000, 50, 10), (0.500, 0.498, 0.488)),
        ("ddim", 0.5, (50, 10), (0.486, 0.428)),
    ],
)
def test_deviations_of_the_design(solver, std, steps, published, monkeypatch):
    for count, expected in zip(steps, published):
        found = of_steps(CosineSineScheduler, solver, count, std, monkeypatch)
        assert found == pytest.approx(expected, abs=0.0015), count


@pytest.mark.parametrize(
    ("p", "published"),
    [
        (1.5, {1000: 0.499, 250: 0.498, 50: 0.488, 10: 0.456}),
        (2, {1000: 0.499, 250: 0.495, 50: 0.478, 10: 0.418}),
        (3, {1000: 0.498, 250: 0.490, 50: 0.459, 10: 0.382}),
    ],
)
def test_predictor_corrector_loses_variance_when_steps_are_few(p, published, monkeypatch):
    for steps, expected in published.items():
        found = of_steps(CosineSineScheduler, "predictor_corrector", steps, 0.5, monkeypatch, predictor_ratio=p)
        assert found == pytest.approx(expected, abs=0.0015), steps


@pytest.mark.parametrize("process", BOTH)
@pytest.mark.parametrize("noise_std", [1.0, 0.5])
@pytest.mark.parametrize("solver", SOLVERS)
def test_every_solver_ends_at_the_data(process, solver, noise_std, monkeypatch):
    for std in (0.05, 0.5, 1.3):
        found = of_steps(process, solver, 240, std, monkeypatch, noise_std=noise_std, spacing="quadratic")
        assert found == pytest.approx(std, rel=0.04)


@pytest.mark.parametrize("process", BOTH)
@pytest.mark.parametrize(("spacing", "std", "steps"), [("quadratic", 0.5, 20), ("two_sided", 0.2, 80)])
@pytest.mark.parametrize(
    ("solver", "order"), [("euler", 1), ("ddim", 1), ("adams_bashforth", 2), ("multistep", 2), ("heun", 2), ("rk4", 4)]
)
def test_order_of_convergence(process, spacing, std, steps, solver, order, monkeypatch):
    """Twice the steps, 2^order times less error, where steps are enough for errors of one sign."""
    cold = {"predictor_ratio": 1, "spacing": spacing}
    errors = [abs(of_steps(process, solver, n, std, monkeypatch, **cold) - std) for n in (steps, 2 * steps)]
    assert math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.25)


# injected noise


@pytest.mark.parametrize("process", BOTH)
@pytest.mark.parametrize("injection", [{"predictor_ratio": 2}, {"predictor_ratio": 1.5}, {"eta": 1.0}, {"eta": 0.5}])
def test_multistep_keeps_the_variance_with_injected_noise(process, injection, monkeypatch):
    """At 20 network calls it loses at most a third of the fine detail that Euler's step loses, and at 100 nothing."""
    settings = {"spacing": "quadratic", **injection}
    for std, bound in ((0.5, 0.01), (0.15, 0.045)):
        assert abs(1 - of_steps(process, "multistep", 20, std, monkeypatch, **settings) / std) < bound
        assert of_steps(process, "multistep", 100, std, monkeypatch, **settings) == pytest.approx(std, rel=0.002)
    lost, plain = (
        1 - of_steps(process, solver, 20, 0.15, monkeypatch, **settings) / 0.15
        for solver in ("multistep", "predictor_corrector")
    )
    assert abs(lost) < plain / 3


@pytest.mark.parametrize("process", BOTH)
def test_runge_kutta_with_injected_noise(process, monkeypatch):
    """10 steps of RK4 that go twice as far as they have to."""
    found = of_steps(process, "rk4", 10, 0.5, monkeypatch, predictor_ratio=2, spacing="quadratic")
    assert found == pytest.approx(0.5, rel=0.005)
    found = of_steps(process, "heun", 25, 0.5, monkeypatch, predictor_ratio=2, spacing="quadratic")
    assert found == pytest.approx(0.5, rel=0.03)


def test_quadratic_spacing_keeps_fine_detail(monkeypatch):
    """Deviation 0.05 of data in [-1, 1], 20 calls: what the uniform steps lose, and the quadratic ones."""
    for solver, uniform, quadratic in (
        ("euler", 0.45, 0.07),
        ("adams_bashforth", 0.38, 0.06),
        ("multistep", 0.37, 0.04),
    ):
        for spacing, lost in (("uniform", uniform), ("quadratic", quadratic)):
            cold = {"predictor_ratio": 1, "spacing": spacing}
            found = of_steps(CosineSineScheduler, solver, 20, 0.05, monkeypatch, **cold)
            assert 1 - found / 0.05 == pytest.approx(lost, abs=0.01)


@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
def test_ddim_is_that_of_monai(eta, make_volume):
    """MONAI's scheduler knows the times 1 to T as 0 to T - 1, and the path as a table."""
    theirs = DDIMScheduler(1000, clip_sample=False, set_alpha_to_one=True)
    theirs.alphas_cumprod = (0.5 * math.pi * torch.arange(1, 1001, dtype=torch.float64) / 1000).cos().square()
    theirs.set_timesteps(50)
    ours = CosineSineScheduler(solver="ddim", eta=eta)
    ours.set_timesteps(50)
    x, noise = make_volume(2, 1, 4, 4, 4), make_volume(2, 1, 4, 4, 4, seed=1)
    for t in (980, 500, 40, 20):
        expected, _ = theirs.step(noise, t - 1, x, eta=eta, generator=torch.Generator().manual_seed(3))
        signal = (x - ours.path.points([t / 1000])[0].sigma * noise) / ours.path.points([t / 1000])[0].alpha
        found, _ = ours.step(torch.cat([noise, signal], 1), t, x, torch.Generator().manual_seed(3))
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_dpm_solver_is_the_published_step(make_volume):
    """DPM-Solver++ 2M (Lu et al. 2022, Algorithm 2), on its second step."""
    scheduler = CosineSineScheduler(solver="dpm_solver")
    scheduler.set_timesteps(3, timesteps=[900, 600, 200])
    x, noise, *signals = (make_volume(1, 1, 4, 4, 4, seed=seed) for seed in range(4))
    scheduler.step(torch.cat([noise, signals[0]], 1), 900, x)
    found, _ = scheduler.step(torch.cat([noise, signals[1]], 1), 600, x)
    alphas, sigmas = zip(*((math.cos(math.pi / 2 * t), math.sin(math.pi / 2 * t)) for t in (0.9, 0.6, 0.2)))
    logs = [math.log(alpha / sigma) for alpha, sigma in zip(alphas, sigmas)]
    h, r = logs[2] - logs[1], (logs[1] - logs[0]) / (logs[2] - logs[1])
    d = (1 + 1 / (2 * r)) * signals[1] - 1 / (2 * r) * signals[0]
    torch.testing.assert_close(found, sigmas[2] / sigmas[1] * x - alphas[2] * math.expm1(-h) * d)


# the noise-only variant


@pytest.mark.parametrize("settings", [{"solver": "euler"}, {"predictor_ratio": 2}, {"solver": "ddim", "eta": 1.0}])
def test_noise_alone_is_enough_for_an_exact_network(settings, monkeypatch):
    for std in (0.5, 0.15):
        found = deviation(CosineSineScheduler(prediction="noise", **settings), 20, std, monkeypatch)
        assert found == pytest.approx(deviation(CosineSineScheduler(**settings), 20, std, monkeypatch), rel=1e-6)


def test_noise_alone_leaves_the_predicted_signal_aside(make_volume):
    """Eq. 8, from where cos(theta) is large enough to divide by."""
    scheduler = CosineSineScheduler(solver="euler", prediction="noise")
    scheduler.set_timesteps(50)
    x, noise, signal = (make_volume(1, 1, 4, 4, 4, seed=seed) for seed in range(3))
    for t, used in ((1000, True), (980, True), (960, False), (20, False)):
        _, taken = scheduler.step(torch.cat([noise, signal], 1), t, x)
        theta = math.pi / 2 * t / 1000
        expected = signal if used else (x - math.sin(theta) * noise) / math.cos(theta)
        torch.testing.assert_close(taken, expected, rtol=1e-5, atol=1e-5)


# loops


@pytest.mark.parametrize("process", BOTH)
@pytest.mark.parametrize("solver", SOLVERS)
def test_a_seed_gives_the_same_volume_in_any_batch_and_in_any_run(process, solver):
    hot = {} if solver == "adams_bashforth" else {"predictor_ratio": 1.5}
    scheduler = process(solver=solver, **hot)
    scheduler.set_timesteps(8)

    def volumes(seeds):
        scheduler.generator = [torch.Generator().manual_seed(seed) for seed in seeds]
        noise = scheduler.initial_noise((len(seeds), 1, 4, 6, 8))

        def network(x, timesteps, context=None):
            return exact_prediction(scheduler, x, timesteps, 0.5, 0.3)

        return DiffusionInferer(scheduler).sample(noise, network, verbose=False)

    together = volumes([3, 1, 4])
    for i, seed in enumerate([3, 1, 4]):
        assert torch.equal(volumes([seed])[0], together[i])
    assert not torch.allclose(together[0], together[1], atol=0.1)


@pytest.mark.parametrize("process", BOTH)
@pytest.mark.parametrize("ratio", [0.01, 0.5, 1.0, 3.0, 80.0])
def test_the_position_of_a_ratio_has_that_ratio(process, ratio):
    scheduler = process()
    alpha, sigma = scheduler.path.weights(torch.tensor(scheduler.path.position_of_ratio(ratio), dtype=torch.float64))[
        :2
    ]
    assert float(sigma / alpha) == pytest.approx(ratio)


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_solver_remembers_no_more_in_many_steps(solver, make_volume):
    scheduler, x, held = CosineSineScheduler(solver=solver, predictor_ratio=1), make_volume(1, 1, 2, 2, 2), []
    scheduler.set_timesteps(16)
    for t in scheduler.timesteps:
        x, _ = scheduler.step(torch.cat([x, x], 1), t, x)
        held.append(sum(isinstance(item, torch.Tensor) for item in tree_iter(list(vars(scheduler.solver).values()))))
    assert max(held) <= (2 if solver in CALLS else 1)


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_broken_loop_leaves_nothing_behind(solver, make_volume):
    scheduler, x = CosineSineScheduler(solver=solver, predictor_ratio=1), make_volume(1, 1, 4, 4, 4)
    scheduler.set_timesteps(8)

    def calls(count, sample):
        for t in scheduler.timesteps[:count]:
            sample, _ = scheduler.step(exact_prediction(scheduler, sample, t, 0.5), t, sample)
        return sample

    expected = calls(8, x)
    calls(3, 7 * x)
    assert torch.equal(calls(8, x), expected)


@pytest.mark.parametrize("solver", ["heun", "rk4", "adams_bashforth", "multistep", "dpm_solver"])
def test_solvers_that_remember_need_the_calls_in_order(solver, one_line):
    scheduler, x = CosineSineScheduler(solver=solver), torch.zeros(1, 1, 2, 2, 2)
    scheduler.set_timesteps(20)
    with pytest.raises(ValueError) as raised:
        scheduler.step(torch.cat([x, x], 1), scheduler.timesteps[10], x)
    one_line(raised, "out of turn", solver)


@pytest.mark.parametrize(("solver", "per_step"), CALLS.items())
def test_steps_are_network_calls(solver, per_step, one_line):
    scheduler = CosineSineScheduler(solver=solver)
    scheduler.set_timesteps(4 * per_step)
    assert len(scheduler.timesteps) == scheduler.num_inference_steps == 4 * per_step
    assert len(set(scheduler.timesteps.tolist())) < 4 * per_step
    with pytest.raises(ValueError) as raised:
        scheduler.set_timesteps(4 * per_step + 1)
    one_line(raised, "multiple of", per_step, solver)


HALF_WAY = {"uniform": 0.5, "quadratic": 0.25, "two_sided": 1 - 0.75**1.5}  # where half of the steps are left


@pytest.mark.parametrize("process", BOTH)
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("steps", [1, 10, 1000])
def test_steps_go_from_noise_to_data(process, spacing, steps):
    scheduler = process(spacing=spacing)
    scheduler.set_timesteps(steps)
    positions = [scheduler.path.position(float(t)) for t in scheduler.timesteps]
    assert positions[0] == 1 and positions[-1] > 0
    assert all(a > b for a, b in zip(positions, positions[1:]))
    if steps > 1:
        assert positions[steps // 2] == pytest.approx(HALF_WAY[spacing])
    lengths = [a - b for a, b in zip(positions, [*positions[1:], 0.0])]
    assert sum(lengths) == pytest.approx(1)
    if steps == 1000:
        shorter_at = {"noise": lengths[0] < 0.8e-3, "data": lengths[-1] < 0.8e-3}
        assert shorter_at == {"noise": spacing == "two_sided", "data": spacing != "uniform"}


def test_two_sided_steps_keep_what_is_large_and_what_is_fine(monkeypatch):
    """Components of a volume with deviations from 45 (the whole anatomy) to 0.1 (fine detail), the default's 20 calls."""
    lost = {
        spacing: [
            abs(math.log(of_steps(CosineSineScheduler, "multistep", 20, std, monkeypatch, spacing=spacing) / std))
            for std in (45, 20, 5, 1, 0.1)
        ]
        for spacing in SPACINGS
    }
    assert max(lost["two_sided"]) < 0.2 < 0.4 < min(max(lost["uniform"]), max(lost["quadratic"]))


@pytest.mark.parametrize("process", BOTH)
def test_the_input_of_a_step_is_left_as_it_is(process, make_volume):
    for solver in SOLVERS:
        scheduler = process(solver=solver, eta=0.0)
        scheduler.set_timesteps(4)
        x = make_volume(1, 1, 4, 4, 4)
        for t in scheduler.timesteps:
            output, before = exact_prediction(scheduler, x, t, 0.5), x.clone()
            kept = output.clone()
            result, _ = scheduler.step(output, t, x)
            assert torch.equal(x, before) and torch.equal(output, kept)
            x = result


# settings


@pytest.mark.parametrize("process", BOTH)
@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"solver": "plms"}, ["solver must be one of", "heun", "plms"]),
        ({"spacing": "karras"}, ["spacing must be one of", "quadratic", "karras"]),
        ({"eta": "much"}, ["eta must be 0 to 1", "much"]),
        ({"predictor_ratio": float("nan")}, ["predictor_ratio must be at least 1", "nan"]),
        ({"eta": 1.5}, ["eta must be 0 to 1", 1.5]),
        ({"eta": -0.1}, ["eta must be 0 to 1", -0.1]),
        ({"predictor_ratio": 0.5}, ["predictor_ratio must be at least 1", 0.5]),
        ({"predictor_ratio": 2.0, "eta": 0.5}, ["predictor_ratio or eta, not both"]),
        ({"solver": "adams_bashforth", "predictor_ratio": 2.0}, ["adams_bashforth", "multistep"]),
        ({"solver": "adams_bashforth", "eta": 0.5}, ["adams_bashforth", "multistep"]),
        ({"prediction": "signal"}, ["prediction must be None", "signal"]),
        ({"training_times": "cosine"}, ["training_times must be one of", "cosine"]),
        ({"training_times": "logit_normal", "time_power": 2.0}, ["time_power 2.0 has no effect"]),
    ],
)
def test_wrong_settings_are_one_line(process, settings, words, one_line):
    with pytest.raises(ValueError) as raised:
        process(**settings)
    one_line(raised, *words)


@pytest.mark.parametrize(
    ("settings", "injection"),
    [
        ({}, (2.0, None)),
        ({"solver": "euler"}, (1.0, None)),
        ({"solver": "multistep", "eta": 0.5}, (None, 0.5)),
        ({"solver": "ddim"}, (None, 0.0)),
        ({"solver": "ddim", "predictor_ratio": 1.5}, (1.5, None)),
        ({"solver": "adams_bashforth"}, (1.0, None)),
    ],
)
def test_noise_that_a_solver_injects_by_itself(settings, injection):
    scheduler = CosineSineScheduler(**settings)
    assert (scheduler.predictor_ratio, scheduler.eta) == injection


@pytest.mark.parametrize("process", BOTH)
def test_output_channels_of_another_process_are_refused(process, one_line):
    scheduler = process()
    scheduler.set_timesteps(4)
    x = torch.zeros(1, 1, 2, 2, 2)
    for channels in {1, 2, 3} - {len(scheduler.predictions)}:
        with pytest.raises(ValueError) as raised:
            scheduler.step(x.expand(1, channels, 2, 2, 2), scheduler.timesteps[0], x)
        one_line(raised, scheduler.name, "output channels", channels)
