"""Distances between sets of feature vectors: FID, MMD, KID.

Sets are (N, D). Where a function takes weights (B, N), it returns B values: that of each weighted set, such as the
bootstrap samples of `resampling`; a weight is how many times a vector counts. All arithmetic is float64.
"""

from __future__ import annotations

import math
from typing import Callable, Optional

import torch
from torch import Tensor

BLOCK = 1024  # vectors of a block of a kernel matrix


def frechet_distance(mean_a: Tensor, covariance_a: Tensor, mean_b: Tensor, covariance_b: Tensor) -> float:
    """|a - b|^2 + Tr(A + B - 2 (A B)^(1/2)) of two Gaussians (Heusel et al. 2017, Eq. 6).

    The trace of the root is that of (A^(1/2) B A^(1/2))^(1/2), a symmetric matrix, also where A or B is singular, as it
    is for fewer vectors than features. MONAI's FIDMetric takes SciPy's general root of A B, which then is unstable.
    """
    root = _symmetric_root(covariance_a)
    middle = torch.linalg.eigvalsh(root @ covariance_b @ root).clamp(min=0).sqrt().sum()
    trace = covariance_a.trace() + covariance_b.trace() - 2 * middle
    return float((mean_a - mean_b).square().sum() + trace)


def _symmetric_root(matrix: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    return (vectors * values.clamp(min=0).sqrt()) @ vectors.T


def fid(a: Tensor, b: Tensor, weights_a: Optional[Tensor] = None, weights_b: Optional[Tensor] = None) -> Tensor:
    """Frechet distance between sets (N, D) and (M, D), for each pair of weights (B, N) and (B, M): (B,).

    Decomposes D x D covariances or, where a set has fewer vectors than features, N x M matrices: see `_fid_of_few`.
    """
    a, b = a.double(), b.double()
    weights_a, weights_b = (_weights(w, x) for w, x in ((weights_a, a), (weights_b, b)))
    if min(len(a), len(b)) <= a.shape[1]:
        return _fid_of_few(a, b, weights_a, weights_b)
    values = [frechet_distance(*_moments(a, u), *_moments(b, v)) for u, v in zip(weights_a, weights_b)]
    return torch.tensor(values, dtype=torch.float64)


def _moments(x: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (D,) and unbiased covariance (D, D) of vectors (N, D), each as often as its weight (N,) says."""
    return weights @ x / weights.sum(), torch.cov(x.T, fweights=weights.long())


def _fid_of_few(a: Tensor, b: Tensor, weights_a: Tensor, weights_b: Tensor) -> Tensor:
    """FID by the vectors, in float64.

    With centred vectors X, Y scaled so that A = X^T X and B = Y^T Y, Tr (A B)^(1/2) is the sum of the singular values of
    X Y^T: only N x M matrices are decomposed, of which a bootstrap needs many.
    """
    origin = a.mean(0)
    a, b = a - origin, b - origin  # nearer to zero, so that less cancels below
    cross, squares_a, squares_b = a @ b.T, a.square().sum(1), b.square().sum(1)  # (N, M), (N,), (M,)
    values = []
    for u, v in zip(weights_a, weights_b):
        mean_a, mean_b = u @ a / u.sum(), v @ b / v.sum()
        trace_a = (u @ squares_a - u.sum() * mean_a @ mean_a) / (u.sum() - 1)
        trace_b = (v @ squares_b - v.sum() * mean_b @ mean_b) / (v.sum() - 1)
        centred = cross - (a @ mean_b)[:, None] - (b @ mean_a)[None] + mean_a @ mean_b
        scaled = (u / (u.sum() - 1)).sqrt()[:, None] * centred * (v / (v.sum() - 1)).sqrt()
        kept = scaled[u > 0][:, v > 0]
        values.append((mean_a - mean_b).square().sum() + trace_a + trace_b - 2 * torch.linalg.svdvals(kept).sum())
    return torch.stack(values)


def distances(a: Tensor, b: Tensor) -> Tensor:
    """Euclidean distances (N, M) of vectors (N, D) and (M, D); by products, ten times as fast as by differences."""
    return torch.cdist(a.double(), b.double(), compute_mode="use_mm_for_euclid_dist")


def median_bandwidth(x: Tensor, max_vectors: int = 2000) -> float:
    """gamma = 1 / (2 median |x_i - x_j|^2) of the RBF kernel, over all pairs with i = j, as the authors' code has it.

    Of more than `max_vectors`, evenly spaced ones are taken.
    """
    chosen = x[:: math.ceil(len(x) / max_vectors)]
    return float(1 / (2 * distances(chosen, chosen).square().median()).clamp(min=1e-30))


def rbf_kernel(gamma: float) -> Callable[[Tensor, Tensor], Tensor]:
    """exp(-gamma |x - y|^2)."""
    return lambda x, y: (-gamma * distances(x, y).square()).exp()


def cubic_kernel(x: Tensor, y: Tensor) -> Tensor:
    """(x . y / D + 1)^3, the kernel of KID (Binkowski et al. 2018)."""
    return (x.double() @ y.double().T / x.shape[1] + 1) ** 3


def squared_mmd(
    a: Tensor,
    b: Tensor,
    kernel: Callable[[Tensor, Tensor], Tensor],
    weights_a: Optional[Tensor] = None,
    weights_b: Optional[Tensor] = None,
    unbiased: bool = True,
) -> Tensor:
    """Squared maximum mean discrepancy (Gretton et al. 2012, Eq. 3; biased, Eq. 5), for each pair of weights: (B,).

    The kernel matrix is never whole in memory. Unbiased leaves out the pairs of a vector with itself, also where a
    bootstrap draws it twice, which would otherwise count as perfect agreement.
    """
    weights_a, weights_b = (_weights(w, x) for w, x in ((weights_a, a), (weights_b, b)))
    within = [weighted_pair_mean(x, x, kernel, w, w, unbiased) for x, w in ((a, weights_a), (b, weights_b))]
    return within[0] + within[1] - 2 * weighted_pair_mean(a, b, kernel, weights_a, weights_b, False)


def _weights(weights: Optional[Tensor], x: Tensor) -> Tensor:
    return (
        torch.ones(1, len(x), dtype=torch.float64, device=x.device)
        if weights is None
        else weights.double().to(x.device)
    )


def weighted_pair_mean(
    a: Tensor, b: Tensor, kernel: Callable[[Tensor, Tensor], Tensor], u: Tensor, v: Tensor, without_diagonal: bool
) -> Tensor:
    """Sum of u_i v_j k(a_i, b_j) over the sum of u_i v_j, for each row of u (B, N) and v (B, M); block by block."""
    total = torch.zeros(len(u), dtype=torch.float64, device=a.device)
    for i in range(0, len(a), BLOCK):
        for j in range(0, len(b), BLOCK):
            block = kernel(a[i : i + BLOCK], b[j : j + BLOCK])
            if without_diagonal and i == j:
                block = block.clone().fill_diagonal_(0)
            total += ((u[:, i : i + BLOCK] @ block) * v[:, j : j + BLOCK]).sum(1)
    pairs = u.sum(1) * v.sum(1) - ((u * v).sum(1) if without_diagonal else 0)
    return total / pairs
