"""Statistics of a reader study: readers look at the same cases and say whether each is real or synthetic.

Synthetic is the positive class: sensitivity is the share of synthetic cases that are called so, specificity the share of
real ones that are called real. Tables are (readers, cases), NaN where a reader gave no answer.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from typing import Any, Optional

import numpy as np
from scipy import stats

from ..metrics.resampling import Estimate, bootstrap_weights

SHARES = ("accuracy", "sensitivity", "specificity")
LEVEL = 0.95
NUM_PERMUTATIONS = 9999
Array = np.ndarray


@dataclass(frozen=True)
class Readings:
    """What the readers said of the cases.

    Attributes:
        synthetic: (cases,), whether a case is synthetic.
        called: (readers, cases), 1 where it was called synthetic, 0 real.
        rating: (readers, cases), from -5, surely real, to 5, surely synthetic; there is no 0.
    """

    synthetic: Array
    called: Array
    rating: Array

    @property
    def correct(self) -> Array:
        """(readers, cases), 1 where the verdict is right."""
        return np.where(np.isnan(self.called), np.nan, self.called == self.synthetic)


def exact_share(count: int, total: int) -> Estimate:
    """A share with its exact (Clopper-Pearson) interval, 95 %."""
    if total == 0:
        return Estimate(None, note="no answers")
    interval = stats.binomtest(count, total).proportion_ci(LEVEL, method="exact")
    return Estimate(count / total, float(interval.low), float(interval.high))


def against_guessing(count: int, total: int) -> Optional[float]:
    """Two-sided exact p-value of so many right answers where readers guess; None without answers."""
    return float(stats.binomtest(count, total, 0.5).pvalue) if total else None


def counts_of(correct: Array, synthetic: Array) -> dict[str, tuple[int, int]]:
    """(right, all) of accuracy, sensitivity and specificity of answers (..., cases)."""
    parts = (correct, correct[..., synthetic], correct[..., ~synthetic])
    return {name: (int(np.nansum(part)), int(np.isfinite(part).sum())) for name, part in zip(SHARES, parts)}


class Bootstrap:
    """Draws of readers and of cases, the same for every number; cases are drawn within their kind.

    Args:
        synthetic: (cases,).
        num_readers: in the study.
        num_bootstrap: draws, B. Row 0 of the weights is the study itself.
        seed: of the draws.
    """

    def __init__(self, synthetic: Array, num_readers: int, num_bootstrap: int, seed: int) -> None:
        self.synthetic = synthetic
        self.readers = bootstrap_weights(num_readers, num_bootstrap, seed).numpy()  # (1 + B, readers)
        self.cases = np.empty((1 + num_bootstrap, len(synthetic)))
        for kind in (False, True):
            chosen = synthetic == kind
            self.cases[:, chosen] = bootstrap_weights(int(chosen.sum()), num_bootstrap, seed + 1 + kind).numpy()

    def mean_over_readers(self, values: Array) -> Array:
        """Mean of a number of each reader, (1 + B, readers) -> (1 + B,), over those that have one."""
        return _ratio((self.readers * np.nan_to_num(values)).sum(1), (self.readers * np.isfinite(values)).sum(1))

    def shares(self, correct: Array) -> dict[str, Array]:
        """Accuracy, sensitivity and specificity of all readings together, each (1 + B,)."""
        right = self.readers @ np.nan_to_num(correct) * self.cases
        answered = self.readers @ np.isfinite(correct) * self.cases
        parts = (slice(None), self.synthetic, ~self.synthetic)
        return {name: _ratio(right[:, part].sum(1), answered[:, part].sum(1)) for name, part in zip(SHARES, parts)}

    def areas(self, rating: Array) -> Array:
        """Area under each reader's ROC curve with the cases drawn, (1 + B, readers)."""
        synthetic, real = self.cases[:, self.synthetic], self.cases[:, ~self.synthetic]
        columns = []
        for ratings in rating:
            high, low = ratings[self.synthetic], ratings[~self.synthetic]
            wins = np.sign(np.nan_to_num(high[:, None] - low)) / 2 + 0.5  # 1/2 for a tie
            drawn, against = synthetic * np.isfinite(high), real * np.isfinite(low)
            columns.append(_ratio((drawn @ wins * against).sum(1), drawn.sum(1) * against.sum(1)))
        return np.stack(columns, 1)

    def fleiss(self, called: Array) -> Array:
        """Fleiss' kappa of all readers' verdicts, (1 + B,); the same cases and readers are left out as in `fleiss_kappa`."""
        return fleiss_kappa(verdict_counts(called), self.cases[:, np.isfinite(called).all(0)])

    def cohen(self, one: Array, other: Array) -> Array:
        """Cohen's kappa of two readers' verdicts, (1 + B,)."""
        both = np.isfinite(one) & np.isfinite(other)
        return cohen_kappa(one[both], other[both], self.cases[:, both])

    def difference(self, scores: Array) -> Array:
        """Mean score of the synthetic cases less that of the real ones, (1 + B,); a case's score is its readers' mean."""
        answered = self.readers @ np.isfinite(scores)
        means = _ratio(self.readers @ np.nan_to_num(scores), answered)
        weights = self.cases * (answered > 0)
        of_kind = [
            _ratio((weights * np.nan_to_num(means))[:, kind].sum(1), weights[:, kind].sum(1))
            for kind in (self.synthetic, ~self.synthetic)
        ]
        return of_kind[0] - of_kind[1]


def _ratio(above: Array, below: Array) -> Array:
    """above / below, NaN where nothing is counted."""
    return np.divide(above, below, out=np.full(np.shape(above), np.nan), where=below > 0)


def percentile(values: Array, note: str = "") -> Estimate:
    """Value and 95 % percentile interval of numbers (1 + B,), the first of which is that of the study."""
    drawn = values[1:][np.isfinite(values[1:])]
    if not np.isfinite(values[0]):
        return Estimate(None, note=note or "not defined for these answers")
    if len(drawn) < 2:
        return Estimate(float(values[0]), note=note)
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(float(values[0]), float(low), float(high), note)


def verdict_counts(called: Array) -> Array:
    """How many readers said real and how many synthetic, (cases, 2), of the cases that all of them judged."""
    whole = called[:, np.isfinite(called).all(0)]
    return np.stack([(whole == 0).sum(0), (whole == 1).sum(0)], 1)


def fleiss_kappa(counts: Array, weights: Optional[Array] = None) -> Array:
    """Agreement of several readers beyond chance (Fleiss 1971).

    Args:
        counts: (cases, categories), how many readers chose a category; each case has as many readers, at least 2.
        weights: (draws, cases), how often each case counts; None: once.

    Returns:
        (draws,); NaN where there are fewer than 2 readers, or all readings are of one category.
    """
    weights = np.ones((1, len(counts))) if weights is None else weights
    if len(counts) == 0 or counts[0].sum() < 2:
        return np.full(len(weights), np.nan)
    readers = counts[0].sum()
    agreement = ((counts**2).sum(1) - readers) / (readers * (readers - 1))
    observed = _ratio(weights @ agreement, weights.sum(1))
    shares = _ratio(weights @ counts, np.repeat(weights.sum(1, keepdims=True) * readers, counts.shape[1], 1))
    return _beyond_chance(observed, (shares**2).sum(1))


def cohen_kappa(one: Array, other: Array, weights: Optional[Array] = None) -> Array:
    """Agreement of two readers beyond chance (Cohen 1960).

    Args:
        one: (cases,), category of each case.
        other: of the other reader.
        weights: (draws, cases), how often each case counts; None: once.

    Returns:
        (draws,); NaN where both readers say the same of all cases.
    """
    weights = np.ones((1, len(one))) if weights is None else weights
    total = weights.sum(1)
    expected = sum(
        _ratio(weights @ (one == c), total) * _ratio(weights @ (other == c), total) for c in np.union1d(one, other)
    )
    return _beyond_chance(_ratio(weights @ (one == other), total), expected * np.ones(len(weights)))


def _beyond_chance(observed: Array, expected: Array) -> Array:
    return _ratio(observed - expected, np.where(expected < 1 - 1e-12, 1 - expected, 0.0))


def roc_curve(rating: Array, synthetic: Array) -> tuple[list[float], list[float]]:
    """(1 - specificity, sensitivity) for each threshold, from (0, 0) to (1, 1), of ratings (..., cases)."""
    truth = np.broadcast_to(synthetic, rating.shape)[np.isfinite(rating)]
    rated = rating[np.isfinite(rating)]
    thresholds = np.array([np.inf, *np.unique(rated)[::-1]])
    points = [[float((rated[truth == kind] >= t).mean()) for t in thresholds] for kind in (False, True)]
    return points[0], points[1]


def permutation_p(scores: Array, synthetic: Array, seed: int) -> Optional[float]:
    """p-value of the difference of mean scores, two-sided, when cases swap their kinds; exact where they are few.

    Args:
        scores: (readers, cases).
        synthetic: (cases,).
        seed: of the permutations.
    """
    answered = np.isfinite(scores).any(0)
    means = np.nanmean(scores[:, answered], 0)
    groups = means[synthetic[answered]], means[~synthetic[answered]]
    if min(map(len, groups)) < 2:
        return None

    def difference(one: Array, other: Array, axis: int) -> Array:
        return one.mean(axis) - other.mean(axis)

    found = stats.permutation_test(
        groups, difference, vectorized=True, n_resamples=NUM_PERMUTATIONS, batch=500, rng=np.random.default_rng(seed)
    )
    return float(found.pvalue)


def pairwise(bootstrap: Bootstrap, readers: list[str], called: Array) -> list[dict[str, Any]]:
    """Cohen's kappa of each two readers."""
    return [
        {"readers": [readers[a], readers[b]], "kappa": percentile(bootstrap.cohen(called[a], called[b]))}
        for a, b in combinations(range(len(readers)), 2)
    ]
