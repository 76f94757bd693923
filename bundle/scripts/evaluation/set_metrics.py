"""The table of metrics: each a function of the records of one set or two, and of weights of their volumes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Callable, Optional, Sequence

from torch import Tensor

from ..metrics import (
    ANATOMY_NAMES,
    ASTRA,
    FEATURES,
    HU_BANDS,
    ORGAN_NAMES,
    SIZE_NAMES,
    cubic_kernel,
    fid,
    likeness,
    median_bandwidth,
    neighbour_scores,
    rbf_kernel,
    seam_ratio,
    spectrum_error,
    spread,
    squared_mmd,
    wasserstein_distance,
)
from .records import Records

MAX_FID_BOOTSTRAP = 100  # each is a singular value decomposition of N x M
NUM_NEIGHBOURS = 5
LIKENESS, EXCESS_LIKENESS = "likeness", "excess likeness"


@dataclass(frozen=True)
class SetMetric:
    """A number of a set of volumes.

    Attributes:
        name: in tables.
        compute: (records, weights (B, N), other records, other weights (B, M)) -> (B,); a property of one set has no
            other records.
        meaning: one sentence.
        better: 'lower' or 'higher', or 'real' for as in the real volumes.
        group: of the report.
        min_volumes: that each set needs.
        of_features: the features that it is made from, and whose label it carries: an entry of records; None for none.
    """

    name: str
    compute: Callable[..., Tensor]
    meaning: str
    better: str
    group: str
    min_volumes: int = 1
    of_features: Optional[str] = None


def _mean(values: Tensor, weights: Tensor) -> Tensor:
    """Weighted means (B, ...) of the values (N, ...) that are numbers."""
    flat = values.double().reshape(len(values), -1)
    valid = flat.isfinite()
    means = (weights @ flat.nan_to_num(0, 0, 0)) / (weights @ valid.double())
    return means.reshape(len(weights), *values.shape[1:])


def _fid(a: Tensor, u: Tensor, b: Tensor, v: Tensor) -> Tensor:
    rows = 1 + MAX_FID_BOOTSTRAP
    return fid(a, b, u[:rows], v[:rows])


def _mmd(a: Tensor, u: Tensor, b: Tensor, v: Tensor) -> Tensor:
    return squared_mmd(a, b, rbf_kernel(median_bandwidth(b)), u, v, unbiased=False).clamp(min=0).sqrt()


def _unbiased_mmd(a: Tensor, u: Tensor, b: Tensor, v: Tensor) -> Tensor:
    return squared_mmd(a, b, rbf_kernel(median_bandwidth(b)), u, v)


def _kid(a: Tensor, u: Tensor, b: Tensor, v: Tensor) -> Tensor:
    return squared_mmd(a, b, cubic_kernel, u, v)


def _neighbours(name: str) -> Callable[..., Tensor]:
    def compute(a: Tensor, u: Tensor, b: Tensor, v: Tensor) -> Tensor:
        scores = neighbour_scores(a, b, NUM_NEIGHBOURS)[name]
        return _mean(scores, u if name in ("precision", "density") else v)

    return compute


def _hu_distance(band: Optional[str], hu_min: float) -> Callable[..., Tensor]:
    def compute(a: Records, u: Tensor, b: Records, v: Tensor) -> Tensor:
        histograms = [_mean(r["histogram"], w) for r, w in ((a, u), (b, v))]
        return wasserstein_distance(*(_band(h, band, hu_min) for h in histograms))

    return compute


def _band(histogram: Tensor, band: Optional[str], hu_min: float) -> Tensor:
    """Bins of a histogram (..., K) whose HU are in a band of `HU_BANDS`; all of them for None."""
    if band is None:
        return histogram
    low, high = (max(0, int(hu - hu_min)) for hu in HU_BANDS[band])
    return histogram[..., low : high + 1]


def _band_share(band: str, hu_min: float) -> Callable[..., Tensor]:
    def compute(a: Records, u: Tensor) -> Tensor:
        histogram = _mean(a["histogram"], u)
        return 100 * _band(histogram, band, hu_min).sum(-1) / histogram.sum(-1)

    return compute


def _spectrum(a: Records, u: Tensor, b: Records, v: Tensor) -> Tensor:
    return spectrum_error(_mean(a["spectrum"], u), _mean(b["spectrum"], v))


def _seams(grid: Sequence[int], stride: int) -> Callable[..., Tensor]:
    return lambda a, u: seam_ratio(_mean(a["profile"], u), grid, stride)


def _likeness(a: Records, u: Tensor) -> Tensor:
    return likeness(a["coarse"], u)


def _excess_likeness(a: Records, u: Tensor, b: Records, v: Tensor) -> Tensor:
    return _likeness(a, u) - _likeness(b, v)


def _spread(index: int) -> Callable[..., Tensor]:
    return lambda a, u: spread(a["anatomy"][:, index], u)


def _grain(a: Records, u: Tensor) -> Tensor:
    return _mean(a["grain"], u)


def _column(entry: str, index: int) -> Callable[..., Tensor]:
    return lambda a, u: _mean(a[entry][:, index], u)


def comparison_metrics(hu_window: Sequence[float], astra: bool = False) -> list[SetMetric]:
    """Numbers of a set against the real volumes, in the order of the report; those of Astra's features beside the others."""
    low = hu_window[0]
    listed = [
        ("FID", _fid, "Fréchet distance", 2),
        ("MMD", _mmd, "RBF kernel, biased and rooted, as in the paper's tables", 3),
        ("MMD²", _unbiased_mmd, "RBF kernel, unbiased: around 0 where equal", 3),
        ("KID", _kid, "cubic kernel, unbiased: around 0 where equal", 2),
    ]
    entries = [FEATURES, ASTRA] if astra else [FEATURES]
    metrics = [
        _of_features(name, entry, compute, meaning, "lower", "distribution", least)
        for name, compute, meaning, least in listed
        for entry in entries
    ]
    metrics += [
        SetMetric(EXCESS_LIKENESS, _excess_likeness, "likeness less that of the real volumes", "lower", "diversity", 2)
    ]
    metrics += [
        _of_features(name, entry, _neighbours(name), meaning, "higher", "diversity", NUM_NEIGHBOURS + 2)
        for name, meaning in (
            ("precision", "share of volumes that lie among the real ones"),
            ("recall", "share of real volumes that lie among these"),
            ("density", f"real balls that hold a volume, over {NUM_NEIGHBOURS}"),
            ("coverage", "share of real volumes with one of these near"),
        )
        for entry in entries
    ]
    metrics += [
        SetMetric("HU-Wasserstein (HU)", _hu_distance(None, low), "between all voxels", "lower", "appearance"),
        SetMetric("log10 spectrum error", _spectrum, "mean over spatial frequencies", "lower", "appearance"),
    ]
    return metrics + [
        SetMetric(f"HU-Wasserstein, {band} (HU)", _hu_distance(band, low), f"inside {_hu(band)}", "lower", "HU bands")
        for band in _bands_in(hu_window)
    ]


def _of_features(
    name: str, entry: str, compute: Callable[..., Tensor], meaning: str, better: str, group: str, min_volumes: int
) -> SetMetric:
    def of_records(a: Records, u: Tensor, b: Records, v: Tensor) -> Tensor:
        return compute(a[entry], u, b[entry], v)

    title = name if entry == FEATURES else f"{name}, Astra"
    return SetMetric(title, of_records, meaning, better, group, min_volumes, of_features=entry)


def property_metrics(
    grid: Sequence[int], hu_window: Sequence[float], seam_strides: Sequence[int], with_organs: bool = False
) -> list[SetMetric]:
    """Numbers of one set, to be read beside those of the real volumes, in the order of the report."""
    metrics = [
        SetMetric(
            LIKENESS,
            _likeness,
            "mean correlation between coarse volumes: higher is too little diversity",
            "real",
            "diversity",
            2,
        )
    ]
    metrics += [
        SetMetric(f"spread of {name}", _spread(index), "standard deviation over volumes", "real", "diversity", 2)
        for index, name in enumerate(SIZE_NAMES)
    ]
    metrics += [
        SetMetric("grain (HU)", _grain, "median that a 3x3x3 mean takes out of soft tissue", "real", "appearance")
    ]
    metrics += [
        SetMetric(
            f"seams, stride {stride}",
            _seams(grid, stride),
            "gradient across patch borders over that inside",
            "real",
            "appearance",
        )
        for stride in seam_strides
    ]
    metrics += [
        SetMetric(f"{band} (% of voxels)", _band_share(band, hu_window[0]), _hu(band), "real", "HU bands")
        for band in _bands_in(hu_window)
    ]
    sources: list[tuple[str, Sequence[str], str]] = [("anatomy", ANATOMY_NAMES, "by thresholds")]
    if with_organs:
        sources.append(("organs", ORGAN_NAMES, "by TotalSegmentator"))
    return metrics + [
        SetMetric(name, _column(entry, index), f"{source}, mean over volumes", "real", "anatomy")
        for entry, names, source in sources
        for index, name in enumerate(names)
    ]


def _bands_in(hu_window: Sequence[float]) -> list[str]:
    return [name for name, (low, high) in HU_BANDS.items() if hu_window[0] <= low and high <= hu_window[1]]


def _hu(band: str) -> str:
    return "{:g} to {:g} HU".format(*HU_BANDS[band]).replace("-", "−")
