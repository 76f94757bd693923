"""Training and sampling on a path, as a MONAI scheduler."""

from __future__ import annotations

import math
from numbers import Real
from typing import Callable, Mapping, Optional, Sequence, Union

import torch
from monai.networks.schedulers import Scheduler
from torch import Tensor, nn

from ..settings import whole_number
from .cosine_sine import CosineSine
from .ddpm import CosineDDPM, LinearDDPM
from .direct import Direct
from .flow_matching import FlowMatching
from .path import Generators, Path, PathPoint, draw_noise
from .solvers import SOLVERS
from .steps import SPACINGS, Schedule, plan_steps
from .training_times import TRAINING_TIMES, TrainingTimes

# between the network's prediction and the step that follows from it: (signal, noise, x_t, point) -> (signal, noise)
Correct = Callable[[Tensor, Tensor, Tensor, PathPoint], tuple[Tensor, Tensor]]


def require_one_of(setting: str, value: object, choices: Sequence[str]) -> None:
    """Raises a ValueError in one line when a setting is none of its choices."""
    if value not in choices:
        raise ValueError(f"{setting} must be one of {', '.join(choices)}, got '{value}'")


def _require_number(setting: str, value: object, is_valid: Callable[[float], bool], bound: str) -> None:
    if not isinstance(value, Real) or not math.isfinite(value) or not is_valid(float(value)):
        raise ValueError(f"{setting} must be {bound}, got {value}")


class DiffusionProcess(Scheduler):
    """A path with its training times and a solver, behind the interface of MONAI's schedulers.

    Training asks for noise, times and target; sampling is `set_timesteps`, `initial_noise`, then one `step` for each
    network call, with any loop of MONAI's `DiffusionInferer` kind.

    A sampling step goes from u to u'. Its solver takes the sample to u_pred <= u', and noise then carries it up to u':
    x_{u'} = a x + sqrt(sigma_{u'}^2 - a^2 sigma_pred^2) z with a = alpha_{u'} / alpha_pred (paper Algorithm 1).

    Args:
        num_train_timesteps: T, the largest network time.
        noise_std: standard deviation of eps; 1.0 in the paper, 0.5 in the authors' first code.
        solver: one of `SOLVERS`.
        predictor_ratio: p of Algorithm 1, any real number from 1 on: u_pred = u - p (u - u'), at least 0. None is the
            solver's own: 2 for 'predictor_corrector', 3 for 'multistep', eta 0 for 'ddim', otherwise 1, which is
            deterministic.
        eta: instead of p, the injected noise as a share of the ancestral sampler's, 0 to 1 (DDIM, Song et al. 2021).
        spacing: of the steps, one of `SPACINGS`.
        schedule: instead of spacing, predictor_ratio and eta: the lists of a `Schedule`, by name.
        prediction: what is taken from the network's output; None is all of it.
        training_times: see `TrainingTimes`.
        time_power: see `TrainingTimes`.

    Raises:
        ValueError: in one line, when a setting is unknown or out of range.
    """

    path_type: type[Path]
    name: str
    predictions: tuple[str, ...]

    def __init_subclass__(cls) -> None:
        cls.name, cls.predictions = cls.path_type.name, cls.path_type.predictions

    def __init__(
        self,
        num_train_timesteps: int = 1000,
        noise_std: float = 1.0,
        solver: str = "predictor_corrector",
        predictor_ratio: Optional[float] = None,
        eta: Optional[float] = None,
        spacing: str = "uniform",
        schedule: Optional[Mapping[str, Sequence[float]]] = None,
        prediction: Optional[str] = None,
        training_times: str = "uniform",
        time_power: float = 1.0,
    ) -> None:
        _require_number("num_train_timesteps", num_train_timesteps, lambda value: value >= 1, "at least 1")
        _require_number("noise_std", noise_std, lambda value: value > 0, "more than 0")
        _require_number("time_power", time_power, lambda value: value > 0, "more than 0")
        if predictor_ratio is not None:
            _require_number("predictor_ratio", predictor_ratio, lambda value: value >= 1, "at least 1")
        if eta is not None:
            _require_number("eta", eta, lambda value: 0 <= value <= 1, "0 to 1")
        require_one_of("solver", solver, list(SOLVERS))
        require_one_of("spacing", spacing, list(SPACINGS))
        require_one_of("training_times", training_times, TRAINING_TIMES)
        nn.Module.__init__(
            self
        )  # as MONAI's RFlowScheduler: its base class makes a table of betas, which a path has not
        self.path = self.path_type(num_train_timesteps, noise_std, prediction)
        self.training_times = TrainingTimes(self.path, training_times, time_power)
        self.num_train_timesteps = num_train_timesteps
        self.solver_name, self.solver = solver, SOLVERS[solver]()
        self.spacing: Optional[str] = spacing
        self.predictor_ratio, self.eta = self.solver.injection(solver, predictor_ratio, eta)
        self.schedule = None if schedule is None else _schedule(solver, schedule, predictor_ratio, eta)
        if self.schedule is not None:  # which says all that these say
            self.spacing = self.predictor_ratio = self.eta = None
        self.generator: Generators = None
        self.num_inference_steps: Optional[int] = None
        self.timesteps = torch.empty(0, dtype=torch.float64)  # until `set_timesteps`

    # training

    def sample_noise(self, images: Tensor, generator: Generators = None) -> Tensor:
        """Noise eps of the shape of images (B, C, D, H, W)."""
        return self.path.noise_std * draw_noise(images.shape, generator, images.device).to(images.dtype)

    def sample_timesteps(self, count: int, device: Union[torch.device, str] = "cpu") -> Tensor:
        """Training times (count,), see `TrainingTimes`."""
        return self.training_times(count, device)

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """x_t of the shape of original_samples (Eq. 1), for times (B,)."""
        return self.path.add_noise(original_samples, noise, timesteps)

    def get_target(self, images: Tensor, noise: Tensor, timesteps: Optional[Tensor] = None) -> Tensor:
        """What the network is to predict, (B, len(predictions) C, D, H, W); MONAI gives the times too."""
        return self.path.target(images, noise)

    # sampling

    def set_timesteps(
        self,
        num_inference_steps: int,
        device: Union[torch.device, str, None] = None,
        timesteps: Optional[Sequence[float]] = None,
    ) -> None:
        """Sets the times of the network calls, and computes what the steps need.

        Args:
            num_inference_steps: number of network calls, 1 to T; a multiple of the solver's calls per step.
            device: ignored; the times stay on the CPU, so that no step waits for the GPU.
            timesteps: other times for the starts of the steps, from noise to data.
        """
        per_step = len(self.solver.offsets)
        whole_number("num_inference_steps", num_inference_steps, 1, self.num_train_timesteps)
        if num_inference_steps % per_step:
            raise ValueError(
                f"num_inference_steps counts network calls and must be a multiple of {per_step} with the solver "
                f"{self.solver_name}, got {num_inference_steps}"
            )
        count = num_inference_steps // per_step
        if self.schedule is not None:
            starts = list(self.schedule.positions)
            if len(starts) != count or timesteps is not None:
                raise ValueError(f"the schedule is of {len(starts)} steps alone, got num_inference_steps {count}")
        else:
            assert self.spacing is not None
            starts = [SPACINGS[self.spacing]((count - i) / count) for i in range(count)]
        if timesteps is not None:
            starts = [float(self.path.position(float(t))) for t in timesteps]
            falling = all(a > b for a, b in zip(starts, starts[1:]))
            if len(starts) != count or not falling or not 0 < starts[-1] <= starts[0] <= 1:
                raise ValueError(f"timesteps must be {count} {self.path.time_order}, got {list(timesteps)}")
        self.num_inference_steps = num_inference_steps
        self._steps = plan_steps(self.path, starts, self.solver.offsets, self.predictor_ratio, self.eta, self.schedule)
        self._times = [float(self.path.time(point.u)) for step in self._steps for point in step.calls]
        self._first_call = {t: i for i, t in reversed(list(enumerate(self._times)))}
        self._call = 0
        self.solver.reset()
        self.timesteps = torch.tensor(self._times, dtype=torch.float64)

    def initial_noise(self, shape: Sequence[int], device: Union[torch.device, str] = "cpu") -> Tensor:
        """The sample of pure noise, (B, C, D, H, W), from `generator` (one for each volume, or one for all)."""
        return self.path.noise_std * draw_noise(shape, self.generator, device)

    def step(
        self,
        model_output: Tensor,
        timestep: Union[float, Tensor],
        sample: Tensor,
        generator: Generators = None,
        correct: Optional[Correct] = None,
    ) -> tuple[Tensor, Tensor]:
        """Takes one network call into account.

        Args:
            model_output: predicted at `timestep`, (B, len(predictions) C, D, H, W).
            timestep: one of `timesteps`; solvers that remember earlier calls need them in their order.
            sample: what the network was called on, (B, C, D, H, W).
            generator: source of the injected noise; `self.generator` where None.
            correct: changes what is predicted before the step is taken, for instance towards a measurement.

        Returns:
            The input of the next network call (after the last one the sample), and the predicted signal.

        Raises:
            ValueError: when the timestep is not of the schedule, or the output is not of this process.
        """
        if model_output.shape[1] != len(self.predictions) * sample.shape[1]:
            raise ValueError(
                f"the process {self.name} needs {len(self.predictions)} output channels for each of the network's "
                f"{sample.shape[1]} input channels ({', '.join(self.predictions)}), got {model_output.shape[1]}"
            )
        number, call = divmod(self._find(float(timestep)), len(self.solver.offsets))
        step = self._steps[number]
        noise, signal = self.path.noise_and_signal(model_output, sample, step.calls[call])
        if correct is not None:
            signal, noise = correct(signal, noise, sample, step.calls[call])
        result = self.solver.advance(step, call, noise, signal, sample)
        if call + 1 == len(self.solver.offsets) and step.inject:
            fresh = draw_noise(sample.shape, self.generator if generator is None else generator, sample.device)
            result.mul_(step.keep).add_(fresh, alpha=step.inject * self.path.noise_std)
        return result, signal

    def _find(self, t: float) -> int:
        """Which network call of the schedule comes at this time; the first one starts anew."""
        expected = self._times[self._call] == t
        call = self._call if expected else self._first_call.get(t)
        if call is None:
            raise ValueError(f"timestep {t} is none of the {self.num_inference_steps} of the schedule")
        if call == 0:
            self.solver.reset()
        elif not expected and self.solver.has_memory:
            raise ValueError(f"timestep {t} is out of turn: the solver {self.solver_name} needs the calls in order")
        self._call = (call + 1) % len(self._times)
        return call


def _schedule(
    solver: str, lists: Mapping[str, Sequence[float]], ratio: Optional[float], eta: Optional[float]
) -> Schedule:
    """A schedule by the names of its lists; ValueError in one line where it does not suit the solver."""
    if solver != "multistep" or ratio is not None or eta is not None:
        raise ValueError(
            "a schedule is for the solver multistep, and has p of each step: set solver to multistep, and leave "
            "predictor_ratio and eta out"
        )
    if set(lists) != set(Schedule._fields):
        raise ValueError(f"a schedule has the lists {', '.join(Schedule._fields)}, got {', '.join(lists)}")
    for name, values in lists.items():
        whole = isinstance(values, Sequence) and not isinstance(values, str)
        if not whole or not all(isinstance(one, Real) and not isinstance(one, bool) for one in values):
            raise ValueError(f"{name} of a schedule must be a list of numbers, got {values}")
    return Schedule(**lists).checked()


class CosineSineScheduler(DiffusionProcess):
    """The paper's process: noise and signal on the path `CosineSine` (Eq. 1-8, Algorithm 1)."""

    path_type = CosineSine


class FlowMatchingScheduler(DiffusionProcess):
    """Flow matching: the velocity on the path `FlowMatching`."""

    path_type = FlowMatching


class LinearDDPMScheduler(DiffusionProcess):
    """DDPM with linear betas, on the path `LinearDDPM`."""

    path_type = LinearDDPM


class CosineDDPMScheduler(DiffusionProcess):
    """DDPM with the cosine schedule, on the path `CosineDDPM`."""

    path_type = CosineDDPM


class DirectScheduler(DiffusionProcess):
    """Stands for the process of weights that have none, see `Direct`."""

    path_type = Direct


PROCESSES: dict[str, type[DiffusionProcess]] = {
    process.name: process
    for process in (
        CosineSineScheduler,
        FlowMatchingScheduler,
        LinearDDPMScheduler,
        CosineDDPMScheduler,
        DirectScheduler,
    )
}
