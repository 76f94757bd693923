"""Bootstrap intervals and random halves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional

import torch
from torch import Tensor


@dataclass
class Estimate:
    """A number with its 95 % bootstrap interval, or why there is none."""

    value: Optional[float]
    low: Optional[float] = None
    high: Optional[float] = None
    note: str = ""


def bootstrap_weights(count: int, num_bootstrap: int, seed: int) -> Tensor:
    """How often each of `count` volumes is drawn: (1 + num_bootstrap, count); the first row is the set itself."""
    generator = torch.Generator().manual_seed(seed)
    draws = torch.randint(count, (num_bootstrap, count), generator=generator)
    counts = torch.zeros(num_bootstrap, count, dtype=torch.float64)
    counts.scatter_add_(1, draws, torch.ones_like(draws, dtype=torch.float64))
    return torch.cat([torch.ones(1, count, dtype=torch.float64), counts])


def estimate(values: Tensor) -> Estimate:
    """Value and 95 % interval from the values (1 + B,) under the rows of `bootstrap_weights`.

    The percentiles are shifted by mean(bootstrap) - value: a bootstrap sample repeats volumes, has fewer different ones,
    and so is off by a bias of its own where a metric depends on their number (FID above all).
    """
    value, samples = values[0], values[1:][values[1:].isfinite()]
    if not value.isfinite():
        return Estimate(None, note="not defined for these volumes")
    if len(samples) < 2:
        return Estimate(float(value))
    low, high = samples.quantile(torch.tensor([0.025, 0.975], dtype=samples.dtype, device=samples.device))
    shift = samples.mean() - value
    return Estimate(float(value), float(low - shift), float(high - shift))


def random_halves(count: int, num_splits: int, seed: int) -> list[tuple[Tensor, Tensor]]:
    """Indices of two halves of equal size, drawn `num_splits` times; an odd one is left out."""
    generator = torch.Generator().manual_seed(seed)
    orders = [torch.randperm(count, generator=generator) for _ in range(num_splits)]
    half = count // 2
    return [(order[:half], order[half : 2 * half]) for order in orders]
