"""What samplers do to Gaussian data, where the perfect network is known: the tables of docs/sampling.md. Half a minute:

    python benchmarks/gaussian_samplers.py

Prints the standard deviation that a sampler gives N(0, s^2), divided by s; 1 is right. No noise is drawn: every sampler
is linear here, so a sample is carried as its coefficients of the first noise and of each injected one, and the result is
exact. s = 0.5 stands for what is large in a volume in [-1, 1], s = 0.05 for fine detail.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any, Optional
from unittest import mock

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "bundle"))

from scripts.schedulers import PROCESSES, DiffusionProcess  # noqa: E402

CALLS = (12, 20, 52, 100)
DEVIATIONS = (0.5, 0.15, 0.05)
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
    point = scheduler.points([float(scheduler.position(t))])[0]
    part = x / (point.alpha**2 * s**2 + point.sigma**2)
    noise, signal = point.sigma * part, point.alpha * s**2 * part
    return signal - noise if scheduler.predictions == ("velocity",) else torch.cat([noise, signal], dim=1)


def deviation(scheduler: DiffusionProcess, calls: int, s: float, times: Optional[list[float]] = None) -> float:
    """Standard deviation after sampling, over s."""
    draws = iter(torch.eye(calls + 1, dtype=torch.float64))
    with mock.patch("scripts.schedulers.process.draw_noise", lambda *_: next(draws).reshape(1, 1, 1, 1, -1)):
        scheduler.set_timesteps(calls, timesteps=times)
        x = scheduler.initial_noise(())
        for t in scheduler.timesteps.tolist():
            x = scheduler.step(perfect(scheduler, x, t, s), t, x)[0]
    return float(x.norm()) / s


def other_spacings(count: int) -> dict[str, list[float]]:
    """Times of cosine-sine for spacings that the bundle does not have, to compare with."""
    last, ramp = math.tan(0.5 * math.pi * 0.01), torch.linspace(0, 1, count, dtype=torch.float64)
    karras = (80 ** (1 / 7) + ramp * (last ** (1 / 7) - 80 ** (1 / 7))) ** 7
    log_snr = torch.exp(math.log(80) + ramp * (math.log(last) - math.log(80)))
    times = {f"power {p}": 1000 * (1 - torch.arange(count).double() / count) ** p for p in (1, 1.5, 2, 2.5, 3)}
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
                values = [deviation(process(spacing=spacing, **settings), n, s) for s in DEVIATIONS for n in CALLS]
                print(f"| {label} | " + " | ".join(f"{value:.3f}" for value in values) + " |")
    print("\nSpacings: cosine_sine, 20 network calls\n")
    cases = ("adams_bashforth", "multistep", "multistep, p = 2")
    print("| | " + " | ".join(f"{case}, s {s}" for case in cases for s in DEVIATIONS) + " |\n" + "|---" * 10 + "|")
    for label, times in other_spacings(20).items():
        processes = [PROCESSES["cosine_sine"](**SAMPLERS[case]) for case in cases]
        values = [deviation(process, 20, s, times) for process in processes for s in DEVIATIONS]
        print(f"| {label} | " + " | ".join(f"{value:.3f}" for value in values) + " |")


if __name__ == "__main__":
    main()
