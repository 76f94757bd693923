"""All numbers of an evaluation: every metric of every set, with intervals, the floor, and what to beware of."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, Optional, Sequence

import torch
import torch.nn.functional as F
from monai.data import Dataset
from torch import Tensor
from tqdm import tqdm

from ..metrics import (
    ASTRA,
    FEATURES,
    Estimate,
    bootstrap_weights,
    estimate,
    ms_ssim_metric,
    ms_ssim_settings,
    nearest_training_volumes,
    random_halves,
    random_pairs,
)
from ..pages import number
from .records import Records
from .set_metrics import EXCESS_LIKENESS, LIKENESS, SetMetric, comparison_metrics, property_metrics

MS_SSIM = "MS-SSIM"
MEMORISATION = "memorisation"
NUM_FLOOR_SPLITS = 5
FEW_VOLUMES = 50
MIN_CHEST_MM = 200.0
SEARCH_SIDE = 16  # voxels per axis of the volumes that memorised ones are searched with


def choose_metrics(
    names: Optional[Sequence[str]],
    grid: Sequence[int],
    hu_window: Sequence[float],
    seam_strides: Sequence[int],
    with_organs: bool = False,
    astra: bool = False,
) -> dict[str, list[SetMetric]]:
    """The metrics to compute; {'comparisons': ..., 'properties': ..., 'others': names without a table entry}.

    Args:
        names: beginnings of their names, such as FID or HU-Wasserstein, or None for all.
        grid: of the volumes.
        hu_window: HU that are compared.
        seam_strides: of the patches whose borders are looked at.
        with_organs: whether the records have the sizes of organs.
        astra: whether they have Astra's features.

    Raises:
        ValueError: in one line, for an unknown name.
    """
    lists = {
        "comparisons": comparison_metrics(hu_window, astra),
        "properties": property_metrics(grid, hu_window, seam_strides, with_organs),
    }
    known = [metric.name for metrics in lists.values() for metric in metrics] + [MS_SSIM, MEMORISATION]
    for name in names or []:
        if not any(other.startswith(name) for other in known):
            raise ValueError(f"metrics: {name} is unknown; there are {', '.join(known)}")

    def is_chosen(name: str) -> bool:
        return names is None or any(name.startswith(chosen) for chosen in names)

    chosen: dict[str, Any] = {key: [m for m in metrics if is_chosen(m.name)] for key, metrics in lists.items()}
    chosen["others"] = [name for name in (MS_SSIM, MEMORISATION) if is_chosen(name)]
    return chosen


def needs_features(metrics: dict[str, Any]) -> bool:
    """Whether a chosen metric is made from features, which take most of the time of an evaluation."""
    chosen = [*metrics["comparisons"], *metrics["properties"]]
    return MEMORISATION in metrics["others"] or any(metric.of_features is not None for metric in chosen)


class Comparison:
    """Compares generated sets with the real one, by their records alone.

    Args:
        metrics: of `choose_metrics`.
        num_bootstrap: samples for the intervals.
        seed: of the bootstrap, the halves and the pairs.
        device: for the linear algebra.
    """

    def __init__(self, metrics: dict[str, Any], num_bootstrap: int, seed: int, device: torch.device) -> None:
        self.metrics, self.num_bootstrap, self.seed, self.device = metrics, num_bootstrap, seed, device

    def compare(self, generated: Records, real: Records) -> dict[str, dict[str, Any]]:
        """Every comparison of two sets: {metric: estimate}."""
        count, of_real = (len(records["features"]) for records in (generated, real))
        weights = (self._weights(count, 0), self._weights(of_real, 1))
        a, b = self._on_device(generated), self._on_device(real)
        return {
            metric.name: self._number(metric, min(count, of_real), a, weights[0], b, weights[1])
            for metric in tqdm(self.metrics["comparisons"], desc="metrics", leave=False)
        }

    def describe(self, records: Records) -> dict[str, dict[str, Any]]:
        """Every property of one set: {metric: estimate}."""
        count = len(records["features"])
        weights, on_device = self._weights(count, 0), self._on_device(records)
        return {metric.name: self._number(metric, count, on_device, weights) for metric in self.metrics["properties"]}

    def floor(self, real: Records) -> dict[str, dict[str, Any]]:
        """Comparisons between halves of the real set: mean, lowest and highest of some splits."""
        records = self._on_device(real)
        splits = random_halves(len(real["features"]), NUM_FLOOR_SPLITS, self.seed)
        one = torch.ones(1, len(splits[0][0]), dtype=torch.float64, device=self.device)
        result = {}
        for metric in self.metrics["comparisons"]:
            if one.shape[1] < metric.min_volumes:
                result[metric.name] = asdict(Estimate(None, note=f"needs {2 * metric.min_volumes} real volumes"))
                continue
            halves = [[{name: value[i] for name, value in records.items()} for i in split] for split in splits]
            values = torch.cat([metric.compute(a, one, b, one) for a, b in halves])
            lowest, highest = float(values.min()), float(values.max())
            result[metric.name] = asdict(Estimate(float(values.mean()), lowest, highest))
        return result

    def ms_ssim(
        self, volumes: Dataset, grid: Sequence[int], hu_window: Sequence[float], num_pairs: int
    ) -> dict[str, Any]:
        """Mean MS-SSIM of random pairs of one set; the interval is over pairs."""
        if len(volumes) < 2:
            return asdict(Estimate(None, note="needs 2 volumes, there is 1"))
        low, high = hu_window
        metric = ms_ssim_metric(grid)

        def scaled(index: int) -> Tensor:
            return ((volumes[index]["image"].as_tensor()[None].clamp(low, high) - low) / (high - low)).to(self.device)

        pairs = random_pairs(len(volumes), num_pairs, self.seed)
        values = torch.stack(
            [metric(scaled(i), scaled(j)).squeeze() for i, j in tqdm(pairs, desc=MS_SSIM, leave=False)]
        )
        weights = bootstrap_weights(len(pairs), self.num_bootstrap, self.seed)
        means = (weights @ values.double().cpu()) / weights.sum(1)
        weights_used, kernel = ms_ssim_settings(grid)
        note = f"{len(pairs)} pairs, {len(weights_used)} scales, kernel {kernel}"
        return {**asdict(estimate(means)), "note": note}

    def memorisation(self, generated: Records, training: Records, threshold: float) -> dict[str, Any]:
        """The nearest training volume of each generated one, by coarse voxels (also mirrored) and by features.

        Volumes nearer than `threshold` times what is usual between training volumes, in either space, are flagged.
        """
        count = len(training["features"])
        if count < 3:
            return {"note": f"needs 3 training volumes, there {'is' if count == 1 else 'are'} {count}"}
        spaces = {
            "voxels": [_searched(x) for x in (generated["coarse"], training["coarse"], training["coarse"].flip(1))],
            **{
                name: [generated[name], training[name], training[name]]
                for name in (FEATURES, ASTRA)
                if name in training
            },
        }
        try:
            nearest = {
                name: nearest_training_volumes(*(x.to(self.device) for x in vectors))
                for name, vectors in spaces.items()
            }
        except ValueError as error:  # the rest of the report stands without it
            return {"note": str(error)}
        flagged = torch.stack([found.ratio < threshold for found in nearest.values()]).any(0)
        false_alarms = torch.stack([found.training_ratio < threshold for found in nearest.values()]).any(0)
        return {
            "threshold": threshold,
            "num_training": len(training[FEATURES]),
            "flagged": flagged.nonzero().flatten().tolist(),
            "training_flagged": int(false_alarms.sum()),
            **{
                name: {
                    "nearest": found.index.tolist(),
                    "ratio": found.ratio.tolist(),
                    "mirrored": found.flipped.tolist(),
                    "training_ratio": found.training_ratio.tolist(),
                }
                for name, found in nearest.items()
            },
        }

    @staticmethod
    def _number(metric: SetMetric, count: int, *arguments: Any) -> dict[str, Any]:
        if count < metric.min_volumes:
            there = f"there {'is' if count == 1 else 'are'} {count}"
            return asdict(Estimate(None, note=f"needs {metric.min_volumes} volumes in each set, {there}"))
        values = metric.compute(*arguments).cpu()
        return asdict(estimate(values if count > 1 else values[:1]))  # one volume has no spread

    def _weights(self, count: int, offset: int) -> Tensor:
        return bootstrap_weights(count, self.num_bootstrap, self.seed + offset).to(self.device)

    def _on_device(self, records: Records) -> Records:
        return {name: value.to(self.device) for name, value in records.items()}


def _searched(coarse: Tensor) -> Tensor:
    """What memorised volumes are searched with, (N, 16^3), from coarse volumes (N, X, Y, Z)."""
    x, y, z = (min(SEARCH_SIDE, side) for side in coarse.shape[1:])
    return F.adaptive_avg_pool3d(coarse, (x, y, z)).flatten(1)


def warnings_of(
    metrics: dict[str, Any], records: dict[str, Records], trained_features: bool, size_mm: Sequence[float]
) -> list[str]:
    """What a reader of the numbers has to know, in sentences."""
    counts = {name: len(one["features"]) for name, one in records.items()}
    chosen = metrics["comparisons"]
    warnings = []
    if not trained_features and any(metric.of_features == FEATURES for metric in chosen):
        warnings.append(
            "No trained features: FID, MMD, KID and the diversity scores compare statistics of intensity and texture. They "
            "rank sets of this report; they are no Med3D numbers, and those of papers do not compare."
        )
    few = [f"{name} ({count})" for name, count in counts.items() if count < FEW_VOLUMES]
    if few:
        warnings.append(f"Few volumes in {', '.join(few)}: below {FEW_VOLUMES}, read no number without its interval.")
    num_features = records["real"][FEATURES].shape[1]
    if min(counts.values()) < num_features and any(metric.name == "FID" for metric in chosen):
        warnings.append(
            f"FID has a bias upwards, the more the fewer volumes there are, below {num_features:,} above all: compare it "
            "only with FIDs of as many volumes. MMD² and KID have no such bias."
        )
    for name, one in records.items():
        padded = int((one["size_mm"] < torch.tensor(size_mm) - 1).any(1).sum())
        if padded:
            what = "volume of {} is" if padded == 1 else "volumes of {} are"
            warnings.append(f"{padded} {what.format(name)} smaller than the field of view, padded with air.")
    if min(size_mm) < MIN_CHEST_MM:
        warnings.append(
            f"The field of view is only {min(size_mm):g} mm along an axis, less than a chest: is the spacing in the "
            "headers right?"
        )
    return warnings


def likeness_warnings(distances: dict[str, Any], properties: dict[str, Any]) -> list[str]:
    """One sentence for each generator whose volumes resemble one another more than the real ones, by more than chance."""
    too_alike = [name for name, found in distances.items() if is_beyond_chance(found.get(EXCESS_LIKENESS))]
    return [
        f"Too little diversity: the volumes of {name} are more alike than the real ones, beyond the interval (excess "
        f"likeness {number(distances[name][EXCESS_LIKENESS])}"
        + (
            f"; likeness {number(properties[name][LIKENESS])} against {number(properties['real'][LIKENESS])}). "
            if LIKENESS in properties[name]
            else "). "
        )
        + "Few large sampling steps where noise is strong do that, strong guidance too: see docs/sampling.md."
        for name in too_alike
    ]


def is_beyond_chance(excess: Optional[dict[str, Any]]) -> bool:
    """Whether the whole interval of an excess is above 0; of one that was not computed it is not."""
    return excess is not None and excess["low"] is not None and excess["low"] > 0
