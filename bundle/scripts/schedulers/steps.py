"""The steps of a sampling run, in numbers that are all known before it starts."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Callable, NamedTuple, Optional, Sequence

from ..settings.choices import LARGEST_IN_SCHEDULE
from .path import Path, PathPoint

# Position u of a step's start from the share of the steps that are left, 1 at noise and 0 at data. Quadratic steps get
# shorter where fine detail is decided, two-sided ones also where the largest structures are (docs/sampling.md).
SPACINGS: dict[str, Callable[[float], float]] = {
    "uniform": lambda share: share,
    "quadratic": lambda share: share**2,
    "two_sided": lambda share: 1 - (1 - share**2) ** 1.5,
}


class Schedule(NamedTuple):
    """What was fitted for each of a few steps (benchmarks/fit_steps.py), one number a step.

    Args:
        positions: u where they start, falling.
        predictor_ratios: p of Algorithm 1.
        memories: shares of the change of the signal that 'multistep' adds, 1 where nothing is fitted.

    Raises:
        ValueError: in one line, see `checked`.
    """

    positions: Sequence[float]
    predictor_ratios: Sequence[float]
    memories: Sequence[float]

    def checked(self) -> Schedule:
        """Itself; ValueError in one line when lengths differ or a number is out of range."""
        if not self.positions or len({*map(len, self)}) > 1:
            raise ValueError(f"schedule needs three lists of one number for each step, got {[*map(list, self)]}")
        falls = all(a > b for a, b in zip(self.positions, self.positions[1:]))
        if not falls or not 0 < self.positions[-1] <= self.positions[0] <= 1:
            raise ValueError(f"positions of a schedule must fall, from 1 to more than 0, got {list(self.positions)}")
        most = LARGEST_IN_SCHEDULE
        if not all(1 <= p <= most for p in self.predictor_ratios) or not all(abs(one) <= most for one in self.memories):
            raise ValueError(f"predictor_ratios of a schedule must be 1 to {most}, and its memories -{most} to {most}")
        return self


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
        memory: factor of what a solver adds from the step before.
    """

    calls: tuple[PathPoint, ...]
    predicted: PathPoint
    end: PathPoint
    previous: Optional[PathPoint]
    keep: float
    inject: float
    memory: float = 1.0

    @property
    def start(self) -> PathPoint:
        return self.calls[0]


def plan_steps(
    path: Path,
    starts: Sequence[float],
    offsets: Sequence[float] = (0.0,),
    predictor_ratio: Optional[float] = None,
    eta: Optional[float] = None,
    schedule: Optional[Schedule] = None,
) -> list[Step]:
    """The steps that start at these falling positions; the last one ends at the data.

    On the way up from the predicted position to the end of a step the sample is multiplied by a = alpha' / alpha_pred
    and gets noise of variance sigma'^2 - a^2 sigma_pred^2, which for alpha^2 + sigma^2 = 1 is 1 - a^2 (Algorithm 1).

    Args:
        path: on which they are.
        starts: positions u.
        offsets: of a step's network calls, as shares of the way to the predicted position.
        predictor_ratio: p of Algorithm 1; None where `eta` counts.
        eta: injected noise as a share of the ancestral sampler's.
        schedule: with p and memory of each step instead.
    """
    count = len(starts)
    ratios = [predictor_ratio] * count if schedule is None else schedule.predictor_ratios
    memories = [1.0] * count if schedule is None else schedule.memories
    here = path.points(starts)
    there = here[1:] + path.points([0.0])
    predicted = path.points([_predicted(path, *of_step, eta) for of_step in zip(here, there, ratios)])
    stages = [
        path.points([start.u + share * (goal.u - start.u) for start, goal in zip(here, predicted)]) for share in offsets
    ]
    steps = []
    for calls, goal, end, previous, memory in zip(zip(*stages), predicted, there, [None, *here], memories):
        keep, inject = 1.0, 0.0
        if goal.u < end.u:
            keep = end.alpha / goal.alpha
            inject = math.sqrt(max(end.sigma**2 - (keep * goal.sigma) ** 2, 0.0))
        steps.append(Step(calls, goal, end, previous, keep, inject, memory))
    return steps


def _predicted(
    path: Path, start: PathPoint, end: PathPoint, predictor_ratio: Optional[float], eta: Optional[float]
) -> float:
    """Position that the solver goes to, before noise carries the sample up to `end`."""
    if predictor_ratio is not None:
        # less than 0 would ask for noise with a negative variance at the end
        return max(start.u - predictor_ratio * (start.u - end.u), 0.0)
    if not eta or end.u == 0:
        return end.u
    # DDIM keeps the share sqrt(1 - eta^2 (1 - r^2)) of the noise, r = (sigma' / alpha') / (sigma / alpha)
    ratio = end.sigma / end.alpha
    kept = math.sqrt(1 - eta**2 * (1 - (ratio * start.alpha / start.sigma) ** 2))
    return path.position_of_ratio(ratio * kept)
