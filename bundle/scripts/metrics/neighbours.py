"""Nearest neighbours: precision, recall, density and coverage of a generator, and the search for memorised volumes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .distribution import distances


def neighbour_scores(generated: Tensor, real: Tensor, k: int) -> dict[str, Tensor]:
    """Each volume's part in four scores; a score is the mean of its volumes.

    With balls around volumes that reach to their k-th nearest neighbour in their own set (k < N, M): precision, whether
    a generated volume (N,) lies in a ball of the real ones; recall, whether a real one (M,) lies in a ball of the
    generated ones (Kynkaanniemi et al. 2019); density, in how many balls of the real ones a generated volume (N,) lies,
    over k; coverage, whether the ball of a real one (M,) holds a generated volume (Naeem et al. 2020).
    """
    between = distances(generated, real)  # (N, M)
    real_radius, generated_radius = (
        distances(x, x).kthvalue(k + 1, dim=1).values for x in (real, generated)
    )  # the nearest is itself
    in_real, in_generated = between <= real_radius, between <= generated_radius[:, None]
    return {
        "precision": in_real.any(1).double(),
        "recall": in_generated.any(0).double(),
        "density": in_real.sum(1).double() / k,
        "coverage": (between.min(0).values <= real_radius).double(),
    }


@dataclass
class NearestVolumes:
    """The nearest training volume of each generated one, in one space.

    Attributes:
        index: of the training volume (N,).
        ratio: its distance over the median distance of a training volume to the nearest other one (N,).
        training_ratio: the same for each training volume and the nearest other one (M,).
        flipped: whether the mirrored training volume is the nearest (N,).
    """

    index: Tensor
    ratio: Tensor
    training_ratio: Tensor
    flipped: Tensor


def nearest_training_volumes(generated: Tensor, training: Tensor, mirrored: Tensor) -> NearestVolumes:
    """Searches training vectors (M, D) and those of the mirrored volumes (M, D) for the nearest of each (N, D).

    Raises:
        ValueError: in one line, when there is no distance between training volumes to compare with.
    """
    among = torch.minimum(distances(training, training), distances(training, mirrored))
    among.fill_diagonal_(float("inf"))
    own = among.min(1).values
    scale = own.median()
    if not 0 < scale < float("inf"):
        raise ValueError("most training volumes are copies of others: nothing to compare the generated ones with")
    straight, flipped = (distances(generated, x).min(1) for x in (training, mirrored))
    is_flipped = flipped.values < straight.values
    return NearestVolumes(
        index=torch.where(is_flipped, flipped.indices, straight.indices),
        ratio=torch.where(is_flipped, flipped.values, straight.values) / scale,
        training_ratio=own / scale,
        flipped=is_flipped,
    )
