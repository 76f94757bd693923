import math

import pytest
import torch
from monai.inferers import DiffusionInferer

from scripts.schedulers import CosineSineScheduler, draw_noise

SHAPE = (1, 1, 64, 64, 50)  # 204,800 independent samples


class GaussianDenoiser:
    """The exact (noise, signal) for voxels that are N(mean, std^2) and noise that is N(0, noise_std^2)."""

    def __init__(self, mean, std, noise_std=1.0):
        self.mean, self.std, self.noise_std = mean, std, noise_std

    def __call__(self, x, timesteps, context=None):
        assert timesteps.shape == (1,) and context is None
        theta = 0.5 * math.pi * float(timesteps) / 1000
        cos, sin = math.cos(theta), math.sin(theta)
        part = (x - cos * self.mean) / (cos**2 * self.std**2 + sin**2 * self.noise_std**2)
        return torch.cat([sin * self.noise_std**2 * part, self.mean + cos * self.std**2 * part], dim=1)


def law(p, steps, std, noise_std=1.0):
    """Standard deviation that Algorithm 1 carries the same Gaussian to, in closed form: every step is linear."""
    variance, t = noise_std**2, 1000.0
    for i in range(steps):
        t_next = 1000 * (1 - (i + 1) / steps)
        t_pred = max(t - p * (t - t_next), 0.0)
        theta, theta_next, theta_pred = (0.5 * math.pi * time / 1000 for time in (t, t_next, t_pred))
        cos, sin = math.cos(theta), math.sin(theta)
        total = cos**2 * std**2 + sin**2 * noise_std**2
        slope = 1 + (theta_pred - theta) * cos * sin * (noise_std**2 - std**2) / total
        alpha = math.cos(theta_next) / math.cos(theta_pred) if t_pred < t_next else 1.0
        variance, t = alpha**2 * slope**2 * variance + (1 - alpha**2) * noise_std**2, t_next
    return math.sqrt(variance)


def carried(p, steps, mean=0.3, std=0.5, noise_std=1.0, seed=0):
    """Samples that MONAI's own inferer draws with our scheduler and the exact denoiser."""
    scheduler = CosineSineScheduler(noise_std=noise_std, predictor_ratio=p)
    scheduler.generator = torch.Generator().manual_seed(seed)
    scheduler.set_timesteps(steps)
    noise = scheduler.initial_noise(SHAPE)
    return DiffusionInferer(scheduler).sample(noise, GaussianDenoiser(mean, std, noise_std), verbose=False)


# noising


def test_noising_ends_at_data_and_at_noise():
    scheduler = CosineSineScheduler()
    data, noise = torch.randn(2, 1, 1, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(scheduler.add_noise(data, noise, torch.zeros(1)), data)
    torch.testing.assert_close(scheduler.add_noise(data, noise, torch.tensor([1000])), noise, rtol=0, atol=1e-6)


def test_noising_takes_real_times_one_for_each_volume():
    scheduler = CosineSineScheduler(num_train_timesteps=200)
    data, noise = torch.randn(2, 3, 1, 2, 2, 2, generator=torch.Generator().manual_seed(0))
    times = [0.25, 77.7, 199.99]
    angles = [math.pi / 2 * t / 200 for t in times]
    expected = [math.cos(angle) * data[i] + math.sin(angle) * noise[i] for i, angle in enumerate(angles)]
    noisy = scheduler.add_noise(data, noise, torch.tensor(times, dtype=torch.float64))
    torch.testing.assert_close(noisy, torch.stack(expected))


@pytest.mark.parametrize("noise_std", [1.0, 0.5])
@pytest.mark.parametrize("time", [100.0, 612.5, 1000.0])
def test_variance_of_noisy_data(noise_std, time):
    torch.manual_seed(0)
    scheduler, data = CosineSineScheduler(noise_std=noise_std), 0.7 * torch.randn(SHAPE)
    noisy = scheduler.add_noise(data, scheduler.sample_noise(data), torch.tensor([time]))
    theta = math.pi / 2 * time / 1000
    expected = math.cos(theta) ** 2 * 0.7**2 + math.sin(theta) ** 2 * noise_std**2
    assert float(noisy.var()) == pytest.approx(expected, rel=0.015)


def test_a_low_precision_batch_does_not_spoil_later_ones():
    """MONAI's base class casts its tables to the precision of the last batch, for good."""
    scheduler, times = CosineSineScheduler(), torch.tensor([333.0])
    data, noise = torch.randn(2, 1, 1, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    before = scheduler.add_noise(data, noise, times)
    low = scheduler.add_noise(data.bfloat16(), noise.bfloat16(), times)
    assert low.dtype == torch.bfloat16
    torch.testing.assert_close(low.float(), before, rtol=0.02, atol=0.02)
    assert torch.equal(scheduler.add_noise(data, noise, times), before)


def test_target_is_noise_then_signal():
    data, noise = torch.zeros(2, 3, 4, 4, 4), torch.ones(2, 3, 4, 4, 4)
    target = CosineSineScheduler().get_target(data, noise, torch.tensor([1.0, 1000.0]))
    assert torch.equal(target, torch.cat([noise, data], dim=1))


@pytest.mark.parametrize("time_power", [1.0, 2.0])
def test_training_times_are_stratified(time_power):
    torch.manual_seed(0)
    scheduler = CosineSineScheduler(time_power=time_power)
    for _ in range(20):
        times = scheduler.sample_timesteps(64)
        assert times.shape == (64,) and times.min() > 0 and times.max() <= 1000
        uniform = (times.sort().values / 1000) ** (1 / time_power) * 64
        shares = torch.arange(64)
        assert (uniform >= shares - 1e-3).all() and (uniform <= shares + 1 + 1e-3).all()
        assert not torch.equal(times, times.sort().values)


@pytest.mark.parametrize("uniform", [0.0, 1 - 2**-24])
def test_training_times_are_never_zero(monkeypatch, uniform):
    """At t = 0 there is nothing to learn; torch.rand draws from [0, 1)."""
    monkeypatch.setattr(torch, "rand", lambda *size, **_: torch.full(size, uniform))
    times = CosineSineScheduler().sample_timesteps(8)
    assert times.min() > 0 and times.max() <= 1000


# sampling


@pytest.mark.parametrize(
    ("p", "steps", "published"),
    [
        (1, 1000, 0.500), (1, 50, 0.498), (1, 10, 0.488),
        (1.5, 1000, 0.499), (1.5, 250, 0.498), (1.5, 50, 0.488), (1.5, 10, 0.456),
        (2, 1000, 0.499), (2, 250, 0.495), (2, 50, 0.478), (2, 10, 0.418),
        (3, 1000, 0.498), (3, 250, 0.490), (3, 50, 0.459), (3, 10, 0.382),
    ],
)  # fmt: skip
def test_deviations_of_the_design(p, steps, published):
    """Samples at few steps, the closed form at every one; the mean is what the predicted signal pulls towards."""
    assert law(p, steps, 0.5) == pytest.approx(published, abs=0.0015)
    if steps <= 50:
        samples = carried(p, steps)
        assert float(samples.std()) == pytest.approx(published, abs=0.004)
        assert float(samples.std()) == pytest.approx(law(p, steps, 0.5), rel=0.008)


@pytest.mark.parametrize("p", [1, 2])
def test_thousand_steps_give_the_data(p):
    samples = carried(p, 1000)
    assert float(samples.std()) == pytest.approx(0.5 if p == 1 else 0.499, abs=0.004)
    assert float(samples.mean()) == pytest.approx(0.3, abs=0.006)


def test_few_steps_lose_fine_detail():
    """Design 2.1, s = 0.15, cold."""
    for steps, published in ((50, 0.141), (20, 0.129), (10, 0.111)):
        assert float(carried(1, steps, std=0.15).std()) == pytest.approx(published, abs=0.002)


@pytest.mark.parametrize("p", [1, 2])
def test_noise_of_half_the_deviation(p):
    """Noise and data both of 0.5: the process leaves the deviation alone at every number of steps."""
    assert float(carried(p, 10, noise_std=0.5).std()) == pytest.approx(0.5, abs=0.004)
    assert float(carried(p, 50, std=0.3, noise_std=0.5).std()) == pytest.approx(law(p, 50, 0.3, 0.5), abs=0.003)


@pytest.mark.parametrize("p", [1.0, 1.7, 2.0])
def test_step_is_algorithm_1(p):
    scheduler = CosineSineScheduler(num_train_timesteps=1000, noise_std=0.8, predictor_ratio=p)
    scheduler.set_timesteps(20)
    sample, noise, signal = torch.randn(3, 2, 1, 4, 4, 4, generator=torch.Generator().manual_seed(0)).double()
    result, predicted = scheduler.step(
        torch.cat([noise, signal], 1).float(), 500.0, sample.float(), torch.Generator().manual_seed(7)
    )
    fresh = 0.8 * torch.randn(sample.shape, generator=torch.Generator().manual_seed(7)).double()
    theta, theta_next, theta_pred = (math.pi / 2 * t / 1000 for t in (500, 450, 500 - p * 50))
    moved = sample + (theta_pred - theta) * (math.cos(theta) * noise - math.sin(theta) * signal)
    alpha = math.cos(theta_next) / math.cos(theta_pred)
    torch.testing.assert_close(
        result.double(), alpha * moved + (1 - min(alpha, 1) ** 2) ** 0.5 * fresh, rtol=0, atol=1e-5
    )
    assert torch.equal(predicted, signal.float())


@pytest.mark.parametrize(("p", "steps"), [(2, 50), (10, 3), (1.3, 1), (100, 1000)])
def test_the_end_is_finite(p, steps):
    """Unclamped, t - p dt < 0 gives alpha > 1 and the root of a negative number."""
    scheduler = CosineSineScheduler(predictor_ratio=p)
    scheduler.set_timesteps(steps)
    scheduler.generator = torch.Generator().manual_seed(0)
    x = scheduler.initial_noise((1, 1, 8, 8, 8))
    for t in scheduler.timesteps:
        x, _ = scheduler.step(GaussianDenoiser(0.3, 0.5)(x, t.reshape(1)), t, x)
        assert torch.isfinite(x).all() and x.abs().max() < 20


def test_last_step_injects_no_noise():
    scheduler = CosineSineScheduler(predictor_ratio=3)
    scheduler.set_timesteps(10)
    x = torch.randn(1, 1, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    prediction = torch.cat([x, x], dim=1)

    def step(index, seed):
        return scheduler.step(prediction, scheduler.timesteps[index], x, torch.Generator().manual_seed(seed))[0]

    assert torch.equal(step(-1, seed=1), step(-1, seed=2))
    assert not torch.equal(step(-2, seed=1), step(-2, seed=2))


@pytest.mark.parametrize("steps", [1, 3, 7, 50, 999, 1000])
def test_times_fall_evenly_from_the_start_to_one_step_above_zero(steps):
    scheduler = CosineSineScheduler()
    scheduler.set_timesteps(steps)
    expected = torch.linspace(1000, 1000 / steps, steps, dtype=torch.float64)
    torch.testing.assert_close(scheduler.timesteps, expected, rtol=1e-12, atol=0)
    assert scheduler.num_inference_steps == steps


def test_custom_times():
    """Times that are close together at the end are steps like any other."""
    scheduler = CosineSineScheduler(predictor_ratio=1)
    scheduler.set_timesteps(4, timesteps=[1000, 700.5, 200, 10])
    assert scheduler.timesteps.tolist() == [1000, 700.5, 200, 10]
    x = prediction = torch.ones(1, 1, 2, 2, 2)
    moved, _ = scheduler.step(torch.cat([prediction, 0 * prediction], 1), 700.5, x)
    theta, theta_next = (math.pi / 2 * t / 1000 for t in (700.5, 200))
    torch.testing.assert_close(moved, x + (theta_next - theta) * math.cos(theta))
    with pytest.raises(ValueError, match="700.4"):
        scheduler.step(torch.cat([x, x], 1), 700.4, x)


@pytest.mark.parametrize(
    "times", [[1000, 500], [500, 1000, 100], [1000, 500, 0], [1001, 500, 100], [900, 900, 100], [900, 500, -1]]
)
def test_wrong_custom_times_are_refused(times, one_line):
    scheduler = CosineSineScheduler()
    scheduler.set_timesteps(7)
    with pytest.raises(ValueError) as raised:
        scheduler.set_timesteps(3, timesteps=times)
    one_line(raised, "timesteps must be 3 falling times")
    assert len(scheduler.timesteps) == 7


@pytest.mark.parametrize("p", [1, 2])
def test_a_seed_gives_the_same_volume_in_any_batch(p):
    def volumes(seeds):
        scheduler = CosineSineScheduler(predictor_ratio=p)
        scheduler.set_timesteps(5)
        scheduler.generator = [torch.Generator().manual_seed(seed) for seed in seeds]
        noise = scheduler.initial_noise((len(seeds), 1, 4, 6, 8))
        return DiffusionInferer(scheduler).sample(noise, GaussianDenoiser(0.3, 0.5), verbose=False)

    together = volumes([3, 1, 4, 15])
    for i, seed in enumerate([3, 1, 4, 15]):
        assert torch.equal(volumes([seed])[0], together[i])
    assert not torch.allclose(together[0], together[1], atol=0.1)


def test_one_generator_for_each_volume_is_needed():
    with pytest.raises(ValueError, match="2 generators, 3 volumes"):
        draw_noise((3, 1, 2, 2, 2), [torch.Generator(), torch.Generator()], "cpu")


@pytest.mark.parametrize("steps", [0, -1, 1001])
def test_impossible_numbers_of_steps_are_refused(steps, one_line):
    with pytest.raises(ValueError) as raised:
        CosineSineScheduler().set_timesteps(steps)
    one_line(raised, "num_inference_steps", steps)


@pytest.mark.parametrize(
    "setting", [{"predictor_ratio": 0.9}, {"noise_std": 0.0}, {"num_train_timesteps": 0}, {"time_power": -1.0}]
)
def test_settings_out_of_range_are_named(setting, one_line):
    with pytest.raises(ValueError) as raised:
        CosineSineScheduler(**setting)
    one_line(raised, *setting, *setting.values())


def test_times_outside_the_schedule_are_refused():
    scheduler = CosineSineScheduler()
    scheduler.set_timesteps(10)
    x = torch.zeros(1, 1, 2, 2, 2)
    for time in (950, 0, 1001, float("nan")):
        with pytest.raises(ValueError, match="none of the 10"):
            scheduler.step(torch.cat([x, x], 1), time, x)
