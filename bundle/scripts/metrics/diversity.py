"""How much the volumes of a set differ from one another."""

from __future__ import annotations

from torch import Tensor

from .distribution import weighted_pair_mean


def likeness(volumes: Tensor, weights: Tensor) -> Tensor:
    """Mean correlation between pairs of volumes (N, ...), for each row of weights (B, N): (B,).

    1 where all volumes are the same picture; a volume makes no pair with itself, also where a bootstrap draws it twice.
    Give coarse volumes, in which noise and grain do not count.
    """
    centred = volumes.flatten(1) - volumes.flatten(1).mean(1, keepdim=True)
    unit = centred / centred.norm(dim=1, keepdim=True)
    return weighted_pair_mean(unit, unit, lambda x, y: (x @ y.T).double(), weights, weights, without_diagonal=True)


def spread(values: Tensor, weights: Tensor) -> Tensor:
    """Standard deviation of the values (N,) that are numbers, for each row of weights (B, N): (B,)."""
    valid = values.isfinite()
    x, w = values[valid].double(), weights[:, valid]
    count = w.sum(1)
    mean = w @ x / count
    return ((w * (x - mean[:, None]).square()).sum(1) / (count - 1)).clamp(min=0).sqrt()
