"""What the two parts of a network make of a noisy volume."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..schedulers import DiffusionProcess
from ..spaces import Space


@torch.no_grad()
def denoised_parts(
    network: Any, scheduler: DiffusionProcess, space: Space, hu: Tensor, level: float
) -> tuple[Tensor, Tensor, Tensor]:
    """A volume with noise, what the network makes of it, and what the first of its parts alone does; all in HU.

    Args:
        network: whose parts `forward_parts` gives; one without is all of one part.
        scheduler: the process.
        space: of the network.
        hu: the volume (1, C, X, Y, Z), on the network's device; its noise is always the same.
        level: position on the path, 1 is noise.
    """
    volume = space.encode(hu)
    noise = scheduler.sample_noise(volume.cpu(), [torch.Generator().manual_seed(0)]).to(hu.device)
    time = torch.full((1,), float(scheduler.path.time(level)), device=hu.device)
    noisy, (point,) = scheduler.add_noise(volume, noise, time), scheduler.path.points([level])
    parts = network.forward_parts(noisy, time) if hasattr(network, "forward_parts") else (network(noisy, time),)
    whole, first = sum(part.float() for part in parts), parts[0].float()
    signal, of_first = (scheduler.path.noise_and_signal(one, noisy, point)[1] for one in (whole, first))
    return space.decode(noisy), space.decode(signal), space.decode(of_first)
