"""The steps of a sampling run, in numbers that are all known before it starts."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Callable, Optional, Sequence

from torch import Tensor

if TYPE_CHECKING:
    from .process import DiffusionProcess
    from .solvers import Solver

# Position u of a step's start from the share of the steps that are left, 1 at noise and 0 at data. Quadratic steps get
# shorter where fine detail is decided, two-sided ones also where the largest structures are (docs/sampling.md).
SPACINGS: dict[str, Callable[[float], float]] = {
    "uniform": lambda share: share,
    "quadratic": lambda share: share**2,
    "two_sided": lambda share: 1 - (1 - share**2) ** 1.5,
}

# p of the solvers that are made to inject noise: the paper's best, and what was best in docs/sampling.md
OWN_RATIOS = {"predictor_corrector": 2.0, "multistep": 3.0}


@dataclass(frozen=True)
class PathPoint:
    """A position u of the path with the weights of signal and noise there, and their derivatives by u."""

    u: float
    alpha: float
    sigma: float
    alpha_slope: float
    sigma_slope: float

    def slope(self, noise: Tensor, signal: Tensor) -> Tensor:
        """dx/du, (B, C, ...)."""
        return (self.alpha_slope * signal).add_(noise, alpha=self.sigma_slope)

    @property
    def log_snr(self) -> float:
        """log(alpha / sigma), half the logarithm of the signal-to-noise ratio; infinite at both ends."""
        if self.u <= 0 or self.u >= 1:
            return math.inf if self.u <= 0 else -math.inf
        return math.log(self.alpha / self.sigma)


@dataclass(frozen=True)
class Step:
    """One step, in numbers that are known before sampling starts.

    Args:
        calls: where the network is called; the first is the start of the step.
        predicted: where the solver takes the sample, at the step's end or past it.
        end: where the step ends.
        previous: start of the step before, None in the first.
        keep: factor of the sample on the way from `predicted` up to `end`.
        inject: weight of the noise that is added there.
    """

    calls: tuple[PathPoint, ...]
    predicted: PathPoint
    end: PathPoint
    previous: Optional[PathPoint]
    keep: float
    inject: float

    @property
    def start(self) -> PathPoint:
        return self.calls[0]


def plan_steps(process: DiffusionProcess, starts: Sequence[float]) -> list[Step]:
    """The steps that start at these falling positions; the last one ends at the data.

    On the way up from the predicted position to the end of a step the sample is multiplied by a = alpha' / alpha_pred
    and gets noise of variance sigma'^2 - a^2 sigma_pred^2, which for alpha^2 + sigma^2 = 1 is 1 - a^2 (Algorithm 1).
    """
    here = process.points(starts)
    there = here[1:] + process.points([0.0])
    predicted = process.points([_predicted_position(process, start, end) for start, end in zip(here, there)])
    calls = zip(
        *(
            process.points([start.u + share * (goal.u - start.u) for start, goal in zip(here, predicted)])
            for share in process.solver.offsets
        )
    )
    steps = []
    for points, goal, end, previous in zip(calls, predicted, there, [None, *here]):
        keep, inject = 1.0, 0.0
        if goal.u < end.u:
            keep = end.alpha / goal.alpha
            inject = math.sqrt(max(end.sigma**2 - (keep * goal.sigma) ** 2, 0.0))
        steps.append(Step(points, goal, end, previous, keep, inject))
    return steps


def _predicted_position(process: DiffusionProcess, start: PathPoint, end: PathPoint) -> float:
    """Position that the solver goes to, before noise carries the sample up to `end`."""
    if process.predictor_ratio is not None:
        # less than 0 would ask for noise with a negative variance at the end
        return max(start.u - process.predictor_ratio * (start.u - end.u), 0.0)
    if not process.eta or end.u == 0:
        return end.u
    # DDIM keeps the share sqrt(1 - eta^2 (1 - r^2)) of the noise, r = (sigma' / alpha') / (sigma / alpha)
    ratio = end.sigma / end.alpha
    kept = math.sqrt(1 - process.eta**2 * (1 - (ratio * start.alpha / start.sigma) ** 2))
    return process.position_of_ratio(ratio * kept)


def injected_noise(
    name: str, solver: Solver, predictor_ratio: Optional[float], eta: Optional[float]
) -> tuple[Optional[float], Optional[float]]:
    """How much noise a solver injects: p or eta, the other one None; its own where neither is given.

    Raises:
        ValueError: in one line, when both are given, or the solver takes no noise.
    """
    if predictor_ratio is not None and eta is not None:
        raise ValueError(f"give predictor_ratio or eta, not both; got {predictor_ratio} and {eta}")
    if not solver.takes_noise and ((predictor_ratio or 1) > 1 or (eta or 0) > 0):
        raise ValueError(f"the solver {name} cannot inject noise: set predictor_ratio 1, or use the solver multistep")
    if predictor_ratio is None and eta is None:
        return (None, 0.0) if name == "ddim" else (OWN_RATIOS.get(name, 1.0), None)
    return predictor_ratio, eta
