"""The W-score (paper A.9.3): one critic for all generators, so that their Wasserstein distances to real CT compare.

A 3D WGAN-GP critic learns to tell real training volumes from a mix of all generators' ones. On held-out volumes,
W1(model) = mean D(real) - mean D(model). Its scale is the critic's own, so models are compared by ratios.
"""

from __future__ import annotations

import hashlib
import math
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


def w_scores(distances: dict[str, list[float]], anchor: str) -> dict[str, Any]:
    """Tables of the W-score from W1 of each generator and seed.

    Args:
        distances: {generator: W1 of each seed}.
        anchor: the generator that ratios are taken to.

    Returns:
        'distance', 'ratio': {generator: mean and standard deviation over seeds}; 'log_ratio': {a: {b: of
        log(W1(a) / W1(b))}}. A ratio is None where a W1 is not positive: that critic sees no distance.
    """
    return {
        "distance": {name: _mean_std(values) for name, values in distances.items()},
        "ratio": {
            name: _mean_std([_ratio(a, b) for a, b in zip(values, distances[anchor])])
            for name, values in distances.items()
        },
        "log_ratio": {
            name: {
                other: _mean_std([_log(_ratio(a, b)) for a, b in zip(values, distances[other])]) for other in distances
            }
            for name, values in distances.items()
        },
    }


def _ratio(a: float, b: float) -> Optional[float]:
    return a / b if a > 0 and b > 0 else None


def _log(ratio: Optional[float]) -> Optional[float]:
    return None if ratio is None else math.log(ratio)


def _mean_std(values: Sequence[Optional[float]]) -> Optional[dict[str, Any]]:
    numbers = [value for value in values if value is not None]
    if len(numbers) < len(values):
        return None
    x = torch.tensor(numbers, dtype=torch.float64)
    return {"mean": float(x.mean()), "std": float(x.std()) if len(x) > 1 else None, "num_seeds": len(x)}
