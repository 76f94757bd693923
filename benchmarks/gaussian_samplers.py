"""What samplers do to Gaussian data, where the perfect network is known: the tables of docs/sampling.md. Some minutes:

    python benchmarks/gaussian_samplers.py

Prints the standard deviation that a sampler gives N(0, s^2), divided by s; 1 is right. No noise is drawn: every sampler
is linear here, so a sample is carried as its coefficients of the first noise and of each injected one, and the result is
exact. Two kinds of data: voxels that know nothing of one another, s = 0.5 in [-1, 1] or s = 0.05; and the Gaussian field
with the mean and the covariance of phantoms, in which each spatial frequency, or each principal component, has an s of
its own. White noise has 1 in all of them, but anatomy is correlated over thousands of voxels: its s is up to 45, it is
decided where noise is strongest, and a spacing with long steps there loses it.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any, Callable, NamedTuple, Optional, Sequence
from unittest import mock

import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "bundle"))

from scripts.data import chest_phantom  # noqa: E402
from scripts.evaluation.volume_sets import FIRST_REFERENCE_PHANTOM  # noqa: E402
from scripts.schedulers import PROCESSES, SPACINGS, DiffusionProcess  # noqa: E402

CALLS = (12, 20, 52, 100)
DEVIATIONS = (0.5, 0.15, 0.05)
OTHER_SPACINGS: dict[str, Callable[[float], float]] = {  # that the bundle does not have, to compare with
    "power 1.5": lambda share: share**1.5,
    "cosine": lambda share: math.sin(0.5 * math.pi * share) ** 2,  # (1 - cos(pi s)) / 2
    "1 - (1 - s^2)^1.3": lambda share: 1 - (1 - share**2) ** 1.3,
    "1 - (1 - s^2)^2": lambda share: 1 - (1 - share**2) ** 2,
}
FREQUENCIES = (0, 1, 2, 4, 8, 16, 32, 48)  # cycles per 320 mm
GRID, FIELD_OF_VIEW_MM, NUM_PHANTOMS = (64, 64, 64), 320.0, 128
SAMPLERS: dict[str, dict[str, Any]] = {
    "euler": {"solver": "euler"},
    "predictor_corrector, p = 2": {"solver": "predictor_corrector"},
    "ddim, eta = 0": {"solver": "ddim"},
    "ddim, eta = 1 (ancestral)": {"solver": "ddim", "eta": 1.0},
    "adams_bashforth": {"solver": "adams_bashforth"},
    "dpm_solver": {"solver": "dpm_solver"},
    "heun": {"solver": "heun"},
    "rk4": {"solver": "rk4"},
    "heun, p = 2": {"solver": "heun", "predictor_ratio": 2.0},
    "rk4, p = 2": {"solver": "rk4", "predictor_ratio": 2.0},
    "multistep": {"solver": "multistep", "predictor_ratio": 1.0},
    "multistep, p = 2": {"solver": "multistep", "predictor_ratio": 2.0},
    "multistep, p = 3": {"solver": "multistep", "predictor_ratio": 3.0},
    "multistep, eta = 1": {"solver": "multistep", "eta": 1.0},
}


def perfect(scheduler: DiffusionProcess, x: torch.Tensor, t: float, s: float) -> torch.Tensor:
    """Output of the network that knows N(0, s^2)."""
    point = scheduler.path.points([float(scheduler.path.position(t))])[0]
    part = x / (point.alpha**2 * s**2 + point.sigma**2)
    noise, signal = point.sigma * part, point.alpha * s**2 * part
    return signal - noise if scheduler.predictions == ("velocity",) else torch.cat([noise, signal], dim=1)


def deviations(
    scheduler: DiffusionProcess, calls: int, s: Sequence[float], times: Optional[list[float]] = None
) -> torch.Tensor:
    """Standard deviations after sampling, over those of the data, (S,)."""
    draws, right = iter(torch.eye(calls + 1, dtype=torch.float64)), torch.tensor(s, dtype=torch.float64)
    with mock.patch("scripts.schedulers.process.draw_noise", lambda *_: next(draws).reshape(1, 1, 1, 1, -1)):
        scheduler.set_timesteps(calls, timesteps=times)
        x = scheduler.initial_noise(()).repeat(1, 1, 1, len(s), 1)
        for t in scheduler.timesteps.tolist():
            x = scheduler.step(perfect(scheduler, x, t, right[:, None]), t, x)[0]
    return x.norm(dim=-1).flatten() / right


class Field(NamedTuple):
    """The Gaussian field with the mean and covariance of phantoms in [-1, 1].

    Attributes:
        of_frequency: deviation of the noise-free Fourier coefficients of `FREQUENCIES`, where white noise has 1.
        of_component: deviations of the principal components, where white noise has 1.
        shown: how much of each component's variance is left at half the grid.
        common: what the mean volume has there, without its mean.
    """

    of_frequency: list[float]
    of_component: list[float]
    shown: torch.Tensor
    common: float

    def likeness(self, kept: torch.Tensor) -> float:
        """Mean correlation of pairs at half the grid, where components have `kept` times their deviation."""
        own = (self.shown * (torch.tensor(self.of_component, dtype=torch.float64) * kept).square()).sum()
        return self.common / float(self.common + own)


def field_of_phantoms() -> Field:
    seeds = range(FIRST_REFERENCE_PHANTOM, FIRST_REFERENCE_PHANTOM + NUM_PHANTOMS)
    drawn = [torch.from_numpy(chest_phantom(seed, GRID, FIELD_OF_VIEW_MM).clip(-1000, 1000)) for seed in seeds]
    volumes = torch.stack(drawn).float() / 1000
    mean = volumes.mean(0)
    away = volumes - mean
    count = NUM_PHANTOMS - 1
    power = sum(torch.fft.fftn(one, norm="ortho").abs().square() for one in away) / count
    frequency = torch.stack(torch.meshgrid(*[torch.fft.fftfreq(n) * n for n in GRID], indexing="ij")).norm(dim=0)
    shells = [float(power[frequency.round() == f].mean().sqrt()) for f in FREQUENCIES]
    variances, mixing = torch.linalg.eigh((away.flatten(1) @ away.flatten(1).T).double())
    variances, mixing = variances.flip(0)[:count], mixing.flip(1)[:, :count]
    half = F.avg_pool3d(away[:, None], 2).flatten(1).double()
    half -= half.mean(1, keepdim=True)
    common = F.avg_pool3d(mean[None], 2).double()
    return Field(
        shells,
        (variances / count).sqrt().tolist(),
        (mixing.T @ half).square().sum(1) / variances,
        float((common - common.mean()).square().sum()),
    )


def other_spacings(count: int) -> dict[str, list[float]]:
    """Times of cosine-sine for spacings that the bundle does not have, to compare with."""
    last, ramp = math.tan(0.5 * math.pi * 0.01), torch.linspace(0, 1, count, dtype=torch.float64)
    karras = (80 ** (1 / 7) + ramp * (last ** (1 / 7) - 80 ** (1 / 7))) ** 7
    log_snr = torch.exp(math.log(80) + ramp * (math.log(last) - math.log(80)))
    times = {f"power {p}": 1000 * (1 - torch.arange(count).double() / count) ** p for p in (1, 1.5, 2, 2.5, 3)}
    times["two-sided"] = torch.tensor([1000 * SPACINGS["two_sided"](1 - i / count) for i in range(count)])
    for name, sigma_over_alpha in (("uniform in log-SNR", log_snr), ("Karras, rho 7", karras)):
        times[name] = 1000 * sigma_over_alpha.atan() / (0.5 * math.pi)
        times[name][0] = 1000.0
    return {name: values.tolist() for name, values in times.items()}


def main() -> None:
    for name, process in PROCESSES.items():
        for spacing in ("uniform", "quadratic"):
            columns = [f"s {s}, {calls}" for s in DEVIATIONS for calls in CALLS]
            print(f"\n{name}, {spacing} spacing; columns: s, network calls\n")
            print("| | " + " | ".join(columns) + " |\n" + "|---" * (len(columns) + 1) + "|")
            for label, settings in SAMPLERS.items():
                values = [
                    deviations(process(spacing=spacing, **settings), n, [s])[0] for s in DEVIATIONS for n in CALLS
                ]
                print(f"| {label} | " + " | ".join(f"{value:.3f}" for value in values) + " |")
    print("\nSpacings: cosine_sine, 20 network calls\n")
    cases = ("adams_bashforth", "multistep", "multistep, p = 2")
    print("| | " + " | ".join(f"{case}, s {s}" for case in cases for s in DEVIATIONS) + " |\n" + "|---" * 10 + "|")
    for label, times in other_spacings(20).items():
        processes = [PROCESSES["cosine_sine"](**SAMPLERS[case]) for case in cases]
        values = [x for process in processes for x in deviations(process, 20, DEVIATIONS, times)]
        print(f"| {label} | " + " | ".join(f"{value:.3f}" for value in values) + " |")
    print_field(field_of_phantoms())


def print_field(field: Field) -> None:
    """What spacings keep of the phantoms' field, by frequency and by the largest components, and the likeness left."""
    largest = field.of_component[:3]
    columns = [f"component {i + 1}, s {s:.0f}" for i, s in enumerate(largest)]
    columns += [f"{f} cycles, s {s:.2g}" for f, s in zip(FREQUENCIES, field.of_frequency)]
    spacings = {**SPACINGS, **OTHER_SPACINGS}
    for calls in (20, 50):
        for case in ("multistep, p = 3", "multistep"):
            print(f"\nField of phantoms: cosine_sine, {case}, {calls} network calls\n")
            print("| | " + " | ".join([*columns, "likeness"]) + " |\n" + "|---" * (len(columns) + 2) + "|")
            for name, spacing in spacings.items():
                process = PROCESSES["cosine_sine"](**SAMPLERS[case])
                times = [1000 * spacing((calls - i) / calls) for i in range(calls)]
                bands = deviations(process, calls, [*largest, *field.of_frequency], times)
                likeness = field.likeness(deviations(process, calls, field.of_component, times))
                print(f"| {name} | " + " | ".join(f"{x:.3f}" for x in [*bands.tolist(), likeness]) + " |")
    right = field.likeness(torch.ones(len(field.of_component)))
    print(f"\nLikeness of the field itself: {right:.3f}")


if __name__ == "__main__":
    main()
