"""Solvers of the sampling ODE: how a sample gets from one place of the path to a less noisy one.

They are written once for every process, in the position u of the path (1 is noise, 0 is data): x(u) = alpha(u) x_0 +
sigma(u) eps, so dx/du = alpha'(u) x_0 + sigma'(u) eps. A solver moves the sample to the position that a step predicts;
the noise that carries it from there up to the end of the step is the process's (`DiffusionProcess.step`).
"""

from __future__ import annotations

import math
from typing import Callable, Optional

from torch import Tensor

from .path import PathPoint
from .steps import Step


class Solver:
    """Moves a sample from the start of a step to the predicted position, in one or more network calls."""

    offsets: tuple[float, ...] = (0.0,)  # of the network calls, as shares of the way to the predicted position
    takes_noise = True  # whether noise may be injected between the steps
    own_ratio: Optional[float] = 1.0  # p of Algorithm 1 where the user names none; None where eta is the solver's own
    own_eta: Optional[float] = None
    has_memory = False  # whether the steps have to be taken in their order

    def reset(self) -> None:
        """Forgets earlier steps."""

    def injection(
        self, name: str, ratio: Optional[float], eta: Optional[float]
    ) -> tuple[Optional[float], Optional[float]]:
        """How much noise is injected: p or eta, the other one None; the solver's own where neither is given.

        Raises:
            ValueError: in one line, when both are given, or the solver takes no noise.
        """
        if ratio is not None and eta is not None:
            raise ValueError(f"give predictor_ratio or eta, not both; got {ratio} and {eta}; set the other one to null")
        if not self.takes_noise and ((ratio or 1) > 1 or (eta or 0) > 0):
            raise ValueError(
                f"the solver {name} cannot inject noise: set predictor_ratio 1, or use the solver multistep"
            )
        return (self.own_ratio, self.own_eta) if ratio is None and eta is None else (ratio, eta)

    def advance(self, step: Step, call: int, noise: Tensor, signal: Tensor, sample: Tensor) -> Tensor:
        """The input of the next network call, or after the last one the sample at `step.predicted`.

        Args:
            step: where from and where to.
            call: which of the step's network calls has been made, from 0.
            noise: predicted there, (B, C, D, H, W).
            signal: predicted there.
            sample: input of that call.

        Returns:
            A new tensor of the sample's shape.
        """
        raise NotImplementedError


class RungeKutta(Solver):
    """Explicit Runge-Kutta methods whose stages build on the stage before alone: Euler, Heun, RK4.

    Args:
        offsets: of the stages.
        weights: of their slopes in the result.
        own_ratio: p where the user names none; the paper's best is 2.
    """

    def __init__(self, offsets: tuple[float, ...], weights: tuple[float, ...], own_ratio: float = 1.0) -> None:
        self.offsets, self.weights, self.has_memory = offsets, weights, len(offsets) > 1
        self.own_ratio = own_ratio
        self.reset()

    def reset(self) -> None:
        self.origin: Optional[Tensor] = None
        self.total: Optional[Tensor] = None

    def advance(self, step: Step, call: int, noise: Tensor, signal: Tensor, sample: Tensor) -> Tensor:
        length = step.predicted.u - step.start.u  # negative
        slope = step.calls[call].slope(noise, signal)
        if len(self.offsets) == 1:
            return sample.add(slope, alpha=length)
        if call == 0:
            self.origin, self.total = sample, self.weights[0] * slope
        assert self.origin is not None and self.total is not None
        if call > 0:
            self.total.add_(slope, alpha=self.weights[call])
        if call + 1 < len(self.offsets):
            return self.origin.add(slope, alpha=self.offsets[call + 1] * length)
        result = self.origin.add(self.total, alpha=length)
        self.reset()
        return result


class AdamsBashforth(Solver):
    """Second order from the slope of the step before, in one network call; for steps without injected noise."""

    takes_noise = False
    has_memory = True

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.slope: Optional[Tensor] = None

    def advance(self, step: Step, call: int, noise: Tensor, signal: Tensor, sample: Tensor) -> Tensor:
        length = step.predicted.u - step.start.u
        slope, before = step.start.slope(noise, signal), self.slope
        self.slope = slope
        if before is None or step.previous is None:
            return sample.add(slope, alpha=length)
        half = 0.5 * length / (step.start.u - step.previous.u)
        return sample.add(slope, alpha=length * (1 + half)).sub_(before, alpha=length * half)


class Multistep(Solver):
    """Exact for a constant predicted signal (first-order DDIM), or for one that runs on as it did in the step before.

    From u to v, x_v = sigma_v / sigma_u x_u + (alpha_v - alpha_u sigma_v / sigma_u) x_0. The signal that is predicted
    at the start of a step is, over the step, half a step old on average: the second order adds half of the change that
    the step will bring, by the rate of the step before. With injected noise the half is that of the step that is
    gained, not of the longer way to `predicted`; so the variance stays right when steps are few.

    Args:
        coordinate: in which the signal runs on: the position ('multistep'), the log-SNR (DPM-Solver++ 2M, Lu et al.
            2022), or None for first order.
        own_ratio: p where the user names none; None where it is eta.
        own_eta: eta where the user names none.
    """

    def __init__(
        self,
        coordinate: Optional[Callable[[PathPoint], float]] = None,
        own_ratio: Optional[float] = 1.0,
        own_eta: Optional[float] = None,
    ) -> None:
        self.coordinate, self.has_memory = coordinate, coordinate is not None
        self.own_ratio, self.own_eta = own_ratio, own_eta
        self.reset()

    def reset(self) -> None:
        self.signal: Optional[Tensor] = None

    def _half_step(self, step: Step) -> float:
        """Half of the step over the step before; 0 where one of them is infinite or there is none."""
        if self.coordinate is None or self.signal is None or step.previous is None:
            return 0.0
        end, start, previous = (self.coordinate(point) for point in (step.end, step.start, step.previous))
        if not math.isfinite(end) or not math.isfinite(previous):
            return 0.0
        return 0.5 * step.memory * (end - start) / (start - previous)

    def advance(self, step: Step, call: int, noise: Tensor, signal: Tensor, sample: Tensor) -> Tensor:
        ratio = step.predicted.sigma / step.start.sigma
        weight = step.predicted.alpha - ratio * step.start.alpha
        half = self._half_step(step)
        result = (ratio * sample).add_(signal, alpha=weight * (1 + half))
        if self.signal is not None and half:
            result.sub_(self.signal, alpha=weight * half)
        if self.coordinate is not None:
            self.signal = signal.clone()  # not a view of the whole network output
        return result


EULER = ((0.0,), (1.0,))
HEUN = ((0.0, 1.0), (1 / 2, 1 / 2))
RK4 = ((0.0, 0.5, 0.5, 1.0), (1 / 6, 1 / 3, 1 / 3, 1 / 6))

SOLVERS: dict[str, Callable[[], Solver]] = {
    "predictor_corrector": lambda: RungeKutta(*EULER, own_ratio=2.0),
    "euler": lambda: RungeKutta(*EULER),
    "heun": lambda: RungeKutta(*HEUN),
    "rk4": lambda: RungeKutta(*RK4),
    "adams_bashforth": AdamsBashforth,
    "ddim": lambda: Multistep(own_ratio=None, own_eta=0.0),
    "multistep": lambda: Multistep(lambda point: point.u, own_ratio=3.0),  # best in docs/sampling.md
    "dpm_solver": lambda: Multistep(lambda point: point.log_snr),
}
