"""What all networks of the bundle share: the times, and the contract with schedulers, inferers and trainers."""

from __future__ import annotations

import math
from functools import partial
from typing import Any, Callable, List, Optional, Sequence

import torch
import torch.nn as nn
import torch.nn.functional as F
from monai.networks.nets.diffusion_model_unet import get_timestep_embedding
from torch import Tensor

from .residual_dit import Guide


class DenoisingNetwork(nn.Module):
    """Predicts from a noisy volume and its time what the process asks for.

    A subclass says what the times make of its layers (`modulations`), what the shape makes of them (`positions`), and
    how both and the volume give the prediction (`predict`).

    Args:
        time_size: length of the shared time features.
        parametrization: 'none' or 'skip', see the subclasses.
        num_train_timesteps: T of the process, used by 'skip' alone.

    Raises:
        ValueError: when the parametrization is unknown.
    """

    def __init__(self, time_size: int, parametrization: str = "none", num_train_timesteps: int = 1000) -> None:
        super().__init__()
        if parametrization not in ("none", "skip"):
            raise ValueError(f"parametrization must be 'none' or 'skip', got '{parametrization}'")
        self.skip, self.num_train_timesteps = parametrization == "skip", num_train_timesteps
        self.settings = dict[str, Any]()  # what builds the network again; goes with the weights
        self.time = nn.Linear(256, time_size)

    def modulations(self, times: Tensor) -> List[Tensor]:
        """Everything computed from the times (B,) alone; the second axis of each is B."""
        raise NotImplementedError

    def predict(
        self,
        x: Tensor,
        times: Tensor,
        modulations: List[Tensor],
        positions: Optional[Tensor] = None,
        guide: Optional[Guide] = None,
    ) -> Tensor:
        """As `forward`, with times (B,) or (1,) and what `modulations` and `positions` made; guided at one time alone."""
        raise NotImplementedError

    @torch.jit.unused
    def positions(self, spatial_shape: List[int]) -> Optional[Tensor]:
        """Everything computed from the volume's shape alone, if anything."""
        raise NotImplementedError

    @torch.jit.unused
    def strides(self) -> List[int]:
        """Numbers that must divide every side of a volume."""
        raise NotImplementedError

    @torch.jit.unused
    def require_process(self, num_train_timesteps: int) -> None:
        """Refuses a process with another T than 'skip' counts with, which would be silently wrong; ValueError."""
        if self.skip and num_train_timesteps != self.num_train_timesteps:
            raise ValueError(
                f"the network's parametrization skip counts num_train_timesteps {self.num_train_timesteps}, the process "
                f"has {num_train_timesteps}"
            )

    def _times(self, x: Tensor, timesteps: Optional[Tensor]) -> Tensor:
        """Times (B,) in float32."""
        times = torch.zeros(1, device=x.device) if timesteps is None else timesteps.to(x.device).float().reshape(-1)
        return times.expand(x.shape[0])

    def _time_features(self, times: Tensor) -> Tensor:
        """Shared features of times (B,), (B, time_size) in the weights' precision."""
        return F.silu(self.time(get_timestep_embedding(times, 256).to(self.time.weight.dtype)))

    def _angles(self, times: Tensor) -> Tensor:
        """theta = pi/2 t/T, (B, 1, 1, 1, 1)."""
        return (times * (0.5 * math.pi / self.num_train_timesteps)).reshape(-1, 1, 1, 1, 1)

    def _skip(self, x: Tensor, times: Tensor, raw: Tensor, weight: float) -> Tensor:
        """Applies 'skip' to raw (a, b); `weight` is 1 for the part that carries x_t, 0 for a part added to it."""
        theta = self._angles(times)
        a, b = raw.chunk(2, dim=1)
        cos, sin = theta.cos(), theta.sin()
        return torch.cat([weight * sin * x + cos * a, weight * cos * x - sin * b], dim=1)

    def forward(self, x: Tensor, timesteps: Optional[Tensor] = None, context: Optional[Tensor] = None) -> Tensor:
        """Predicts (noise, signal).

        Args:
            x: noisy volume, (B, C, D, H, W), sides multiples of the strides.
            timesteps: (B,) or (1,), in [0, T], integer or real; None is t = 0.
            context: must be None; MONAI's `DiffusionInferer` passes it.

        Returns:
            (B, num_predictions C, D, H, W) in the precision of x: noise first, then signal.
        """
        if context is not None:
            raise ValueError("PRDiT takes no context")
        times = self._times(x, timesteps)
        return self.predict(x, times, self.modulations(times))

    @torch.jit.unused
    def at_times(
        self, times: Tensor, spatial_shape: List[int], guides: Optional[Sequence[Optional[Guide]]] = None
    ) -> List[Callable[[Tensor], Tensor]]:
        """The network at each of the times (S,), as functions of volumes (B, C, *spatial_shape) alone.

        All that depends on the time and on the shape alone is computed here.

        Args:
            times: network times.
            spatial_shape: of the volumes.
            guides: at each time, see `Guidance`; None where there is no guidance.
        """
        modulations, positions = self.modulations(times), self.positions(spatial_shape)
        calls: List[Callable[[Tensor], Tensor]] = []
        for i, guide in enumerate(guides or [None] * len(times)):
            now, time = [part[:, i : i + 1].contiguous() for part in modulations], times[i : i + 1]
            calls.append(partial(self.predict, times=time, modulations=now, positions=positions, guide=guide))
        return calls
