"""The W-score (paper A.9.3): a critic for two generators, so that their Wasserstein distances to real CT compare.

A 3D WGAN-GP critic learns to tell real training volumes from a mix of the generators' ones. On held-out volumes,
W1(model) = mean D(real) - mean D(model). Its scale is the critic's own, so models are compared by ratios.
"""

from __future__ import annotations

import hashlib
import math
from itertools import combinations
from typing import Any, Optional, Sequence

import torch
from monai.networks.nets import Critic
from torch import Tensor, nn
from torch.utils.data import Dataset


def critic_network(grid: Sequence[int], channels: Sequence[int], seed: int) -> Critic:
    """MONAI's critic: a convolution of stride 2 per entry of `channels`, InstanceNorm, LeakyReLU, mean of the last map.

    Raises:
        ValueError: in one line, when the grid is too small for so many.
    """
    smallest = min(grid) // 2 ** len(channels)
    if smallest < 1:
        raise ValueError(f"critic_channels: {len(channels)} halvings leave nothing of a grid of {list(grid)}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Critic(
            in_shape=(1, *grid),
            channels=channels,
            strides=[2] * len(channels),
            num_res_units=0,
            act=("LEAKYRELU", {"negative_slope": 0.2}),
            norm="INSTANCE",
            dropout=None,
        )


def gradient_penalty(critic: nn.Module, real: Tensor, fake: Tensor, mix: Tensor) -> Tensor:
    """Mean (|grad D(x)| - 1)^2 at x between real and fake volumes (Gulrajani et al. 2017, Eq. 3); mix is (B,) in 0..1."""
    share = mix.view(-1, 1, 1, 1, 1)
    between = (share * real + (1 - share) * fake).requires_grad_(True)
    (gradient,) = torch.autograd.grad(critic(between).sum(), between, create_graph=True)
    return (gradient.flatten(1).norm(dim=1) - 1).square().mean()


def critic_losses(
    critic: nn.Module, real: Tensor, fake: Tensor, mix: Tensor, penalty_weight: float
) -> dict[str, Tensor]:
    """{'loss': what the critic minimises, 'distance': mean D(real) - mean D(fake)}."""
    distance = critic(real).mean() - critic(fake).mean()
    return {"loss": penalty_weight * gradient_penalty(critic, real, fake, mix) - distance, "distance": distance}


class CriticPairs(Dataset):
    """For each place in the training one real and one fake volume; the same for a seed, whatever the batch.

    Args:
        volumes: data set whose items have an 'image'.
        real: indices of the real training volumes.
        fakes: indices of each generator's training volumes; a generator is drawn first, so each has the same part.
        length: of the whole training.
        first: pairs that are done already.
        seed: of the draws.
    """

    def __init__(
        self, volumes: Any, real: Sequence[int], fakes: Sequence[Sequence[int]], length: int, first: int, seed: int
    ) -> None:
        self.volumes = volumes
        draw = torch.rand(length, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        models = (draw[:, 0] * len(fakes)).long().tolist()
        self.pairs = [
            (real[int(x * len(real))], fakes[model][int(y * len(fakes[model]))])
            for model, x, y in zip(models, draw[:, 1].tolist(), draw[:, 2].tolist())
        ][first:]

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        real, fake = (self.volumes[i]["image"].as_tensor() for i in self.pairs[index])
        return {"image": real, "label": fake}


def held_out(hashes: Sequence[str], share: float) -> list[bool]:
    """Which volumes are kept from training: those whose content hash comes first, so the same in every run.

    Equal volumes get the same answer. At least one volume is kept, and one is not.
    """
    order = sorted(set(hashes), key=lambda value: hashlib.sha256(value.encode()).hexdigest())
    count = min(max(1, round(share * len(order))), len(order) - 1)
    kept = set(order[:count])
    return [value in kept for value in hashes]


def mixes(models: Sequence[str], anchor: str, critics: str) -> list[tuple[str, ...]]:
    """The generators that each critic learns to tell from real volumes together.

    Args:
        models: all generators.
        anchor: one of them.
        critics: 'anchor' for one critic per competitor, of it and the anchor (A.9.3); 'pairs' for one per pair of
            generators, each the anchor once (A.10, Table 11); 'joint' for one of all.
    """
    if critics == "joint" or len(models) == 1:
        return [tuple(models)]
    return [pair for pair in combinations(models, 2) if critics == "pairs" or anchor in pair]


def w_ratio(a: Sequence[float], b: Sequence[float]) -> dict[str, dict[str, Any]]:
    """Eq. 11 from W1 of two generators, seed by seed, as one critic measures them.

    Returns:
        'ratio' of W1(a) / W1(b), and 'log_ratio' of log(W1(b) / W1(a)), above 0 where a is nearer to the real volumes
        (the sign of Table 11): mean and standard deviation over seeds. A seed where a W1 is not positive has no ratio, as
        its critic sees no distance; 'num_seeds' are those that count, 'num_undefined' the others.
    """
    kept = [(x, y) for x, y in zip(a, b) if x > 0 and y > 0]
    values = {"ratio": [x / y for x, y in kept], "log_ratio": [math.log(y / x) for x, y in kept]}
    counts = {"num_seeds": len(kept), "num_undefined": len(a) - len(kept)}
    return {name: {**_mean_std(one), **counts} for name, one in values.items()}


def _mean_std(values: Sequence[float]) -> dict[str, Optional[float]]:
    x = torch.tensor(values, dtype=torch.float64)
    return {"mean": float(x.mean()) if len(x) else None, "std": float(x.std()) if len(x) > 1 else None}
