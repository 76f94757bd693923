"""The paper's process: cosine-sine noising and the predictor-corrector sampler (paper Eq. 1-6, Algorithm 1)."""

from __future__ import annotations

import math
from typing import Optional, Sequence, Union

import torch
from monai.networks.schedulers import Scheduler
from monai.networks.schedulers.scheduler import NoiseSchedules
from torch import Tensor

Generators = Union[torch.Generator, Sequence[torch.Generator], None]


@NoiseSchedules.add_def("cosine_sine", "alphas_cumprod = cos^2(pi/2 t/T) for t = 1..T, in float64")
def _cosine_sine(num_train_timesteps: int) -> tuple[Tensor, Tensor, Tensor]:
    theta = 0.5 * math.pi * torch.arange(num_train_timesteps + 1, dtype=torch.float64) / num_train_timesteps
    alphas_cumprod = theta.cos().square()
    alphas = alphas_cumprod[1:] / alphas_cumprod[:-1]
    return 1 - alphas, alphas, alphas_cumprod[1:]


def draw_noise(shape: Sequence[int], generator: Generators, device: Union[torch.device, str]) -> Tensor:
    """Unit Gaussian noise in float32, (B, ...); with a sequence of generators each volume has its own."""
    if generator is None or isinstance(generator, torch.Generator):
        return torch.randn(tuple(shape), generator=generator, device=device)
    if len(generator) != shape[0]:
        raise ValueError(f"one generator per volume is needed: {len(generator)} generators, {shape[0]} volumes")
    return torch.stack([torch.randn(tuple(shape[1:]), generator=item, device=device) for item in generator])


class CosineSineScheduler(Scheduler):
    """x_t = cos(theta) x_0 + sin(theta) eps with theta = pi/2 t/T; the network predicts (eps, x_0).

    Times are real numbers in [0, T]; 0 is clean and T is pure noise. Sampling walks from T to 0; a step from t to t'
    first predicts t_pred = t - p (t - t') by one Euler step in theta, then corrects: it adds noise that carries the
    sample from t_pred up to t' (Algorithm 1). p = 1 is deterministic ('cold').

    Args:
        num_train_timesteps: T.
        noise_std: standard deviation of eps; 1.0 in the paper, 0.5 in the authors' first code.
        predictor_ratio: p, any real number from 1 on; 2 is the paper's best.
        time_power: training times are T u**time_power with u uniform; more than 1 prefers little noise.

    Raises:
        ValueError: when a setting is out of range.
    """

    def __init__(
        self,
        num_train_timesteps: int = 1000,
        noise_std: float = 1.0,
        predictor_ratio: float = 2.0,
        time_power: float = 1.0,
    ) -> None:
        for name, value, valid in (
            ("num_train_timesteps", num_train_timesteps, num_train_timesteps >= 1),
            ("noise_std", noise_std, noise_std > 0),
            ("predictor_ratio", predictor_ratio, predictor_ratio >= 1),
            ("time_power", time_power, time_power > 0),
        ):
            if not valid:
                bound = "at least 1" if name in ("num_train_timesteps", "predictor_ratio") else "more than 0"
                raise ValueError(f"{name} must be {bound}, got {value}")
        super().__init__(num_train_timesteps, "cosine_sine")
        self.noise_std, self.predictor_ratio, self.time_power = noise_std, predictor_ratio, time_power
        self.generator: Generators = None
        self.set_timesteps(num_train_timesteps)

    def theta(self, t: float) -> float:
        """Angle of a time, in radians."""
        return 0.5 * math.pi * t / self.num_train_timesteps

    def _cos_sin(self, timesteps: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """cos and sin of each volume's angle, (B, 1, 1, ...), computed in float64 and cast to float32."""
        theta = timesteps.to(like.device).double() * (0.5 * math.pi / self.num_train_timesteps)
        theta = theta.reshape(-1, *[1] * (like.ndim - 1))
        return theta.cos().float(), theta.sin().float()

    # training

    def sample_noise(self, images: Tensor, generator: Generators = None) -> Tensor:
        """Noise eps of the shape of images (B, C, D, H, W)."""
        return self.noise_std * draw_noise(images.shape, generator, images.device).to(images.dtype)

    def sample_timesteps(self, count: int, device: Union[torch.device, str] = "cpu") -> Tensor:
        """Training times (count,) in (0, T], one from each of `count` equal shares of u: less variance than free draws."""
        uniform = (torch.randperm(count, device=device) + 1 - torch.rand(count, device=device)) / count
        return self.num_train_timesteps * uniform**self.time_power

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Eq. 1: x_t of the shape of original_samples, for times (B,)."""
        cos, sin = self._cos_sin(timesteps, original_samples)
        return (cos * original_samples + sin * noise).to(original_samples.dtype)

    def get_target(self, images: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """What the network has to predict, (B, 2C, D, H, W): noise, then signal. It does not depend on the time."""
        return torch.cat([noise, images], dim=1)

    # sampling

    def set_timesteps(
        self,
        num_inference_steps: int,
        device: Union[torch.device, str, None] = None,
        timesteps: Optional[Sequence[float]] = None,
    ) -> None:
        """Sets the times of the network calls.

        Args:
            num_inference_steps: number of network calls, 1 to T; uniform from T down to T / num_inference_steps.
            device: ignored; the times stay on the CPU, so that no step waits for the GPU.
            timesteps: another falling sequence of `num_inference_steps` times in (0, T].
        """
        total = self.num_train_timesteps
        if not 1 <= num_inference_steps <= total:
            raise ValueError(f"num_inference_steps must be 1 to {total}, got {num_inference_steps}")
        times = [total * (num_inference_steps - i) / num_inference_steps for i in range(num_inference_steps)]
        if timesteps is not None:
            times = [float(t) for t in timesteps]
            falling = all(a > b for a, b in zip(times, times[1:]))
            if len(times) != num_inference_steps or not falling or not 0 < times[-1] <= times[0] <= total:
                raise ValueError(f"timesteps must be {num_inference_steps} falling times in (0, {total}], got {times}")
        self.num_inference_steps = num_inference_steps
        self.timesteps = torch.tensor(times, dtype=torch.float64)
        self._next = dict(zip(times, times[1:] + [0.0]))

    def initial_noise(self, shape: Sequence[int], device: Union[torch.device, str] = "cpu") -> Tensor:
        """The sample at t = T, (B, C, D, H, W), from `generator` (one for each volume, or one for all)."""
        return self.noise_std * draw_noise(shape, self.generator, device)

    def step(
        self, model_output: Tensor, timestep: Union[float, Tensor], sample: Tensor, generator: Generators = None
    ) -> tuple[Tensor, Tensor]:
        """One step of Algorithm 1, from `timestep` to the next one of the schedule.

        Args:
            model_output: (noise, signal) predicted at `timestep`, (B, 2C, D, H, W).
            timestep: one of `timesteps`.
            sample: x_t, (B, C, D, H, W).
            generator: source of the injected noise; `self.generator` where None.

        Returns:
            The sample at the next time, and the predicted signal.

        Raises:
            ValueError: when the timestep is not of the schedule.
        """
        t = float(timestep)
        if t not in self._next:
            raise ValueError(f"timestep {t} is none of the {self.num_inference_steps} of the schedule")
        t_next = self._next[t]
        # t_pred < 0 would give alpha > 1 and the root of a negative number at the end
        t_pred = max(t - self.predictor_ratio * (t - t_next), 0.0)
        noise, signal = model_output.chunk(2, dim=1)
        theta, theta_pred = self.theta(t), self.theta(t_pred)
        # x~ = x_t + (theta_pred - theta_t) (cos theta_t noise - sin theta_t signal)
        delta = theta_pred - theta
        sample = sample + (delta * math.cos(theta)) * noise - (delta * math.sin(theta)) * signal
        if t_pred < t_next:
            # x_t' = alpha x~ + sqrt(1 - alpha^2) z, alpha = cos theta_t' / cos theta_pred
            alpha = math.cos(self.theta(t_next)) / math.cos(theta_pred)
            fresh = draw_noise(sample.shape, self.generator if generator is None else generator, sample.device)
            sample = alpha * sample + (math.sqrt(1 - alpha**2) * self.noise_std) * fresh
        return sample, signal
