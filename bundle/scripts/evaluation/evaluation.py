"""One evaluation: measure what is not yet measured, compare, write metrics.json and report.html."""

from __future__ import annotations

import platform
from typing import Any, Sequence

import ignite.distributed as idist
import monai
import torch
from monai.data import Dataset
from monai.engines import SupervisedEvaluator

from ..errors import require_writable
from ..files import hold, release, remove_leftovers, require_own, write_json, write_text
from ..metrics import FEATURES, FeatureExtractor
from ..pages import number
from ..stops import stoppable
from ..version import VERSION
from .comparison import MEMORISATION, MS_SSIM, Comparison, likeness_warnings, warnings_of
from .headline import headline, reference_of
from .records import Records, RecordStore
from .report import REPORT_MARK, report_html
from .volume_sets import VolumeSet, generators

PHANTOMS_ARE_REAL = "Compared with phantoms that no training has seen, since no real_dir was given."


class Evaluation:
    """Puts the parts together.

    Args:
        sets: of `load_sets`.
        store: of the records.
        comparison: of the numbers.
        extractor: that made the features.
        transform: loads a volume on the common grid.
        output_dir: of the report.
        settings: the common grid ('grid', 'field_of_view_mm'), 'hu_window', and what else belongs into metrics.json.
        num_ms_ssim_pairs: of random pairs of volumes per set.
        memorisation_threshold: share of the usual distance below which a volume is flagged.
        num_slices: volumes of each set to show.
        notes: further warnings of the report.
    """

    def __init__(
        self,
        sets: dict[str, VolumeSet],
        store: RecordStore,
        comparison: Comparison,
        extractor: FeatureExtractor,
        transform: Any,
        output_dir: str,
        settings: dict[str, Any],
        num_ms_ssim_pairs: int = 100,
        memorisation_threshold: float = 0.5,
        num_slices: int = 3,
        notes: Sequence[str] = (),
    ) -> None:
        self.notes = notes
        self.sets, self.store, self.comparison, self.extractor = sets, store, comparison, extractor
        self.transform, self.settings = transform, settings
        self.folder = require_writable(output_dir, "output_dir")
        require_own(self.folder / "report.html", REPORT_MARK, "output_dir")
        require_own(self.folder / "metrics.json", '"distances"', "output_dir")
        if idist.get_rank() == 0:
            hold(self.folder, "output_dir")
            remove_leftovers(self.folder)
        self.num_ms_ssim_pairs, self.memorisation_threshold = num_ms_ssim_pairs, memorisation_threshold
        self.num_slices = num_slices
        self.generated = generators(sets)

    def measure(self, evaluator: SupervisedEvaluator) -> None:
        """Makes the records that are missing, on all ranks."""
        idist.barrier()  # all ranks have listed what is missing, and so share it out alike, before one writes
        if len(evaluator.data_loader) > 0:
            with stoppable(lambda: self._progress(evaluator)):
                evaluator.run()
        idist.barrier()

    def _progress(self, evaluator: SupervisedEvaluator) -> str:
        measured = f"{evaluator.state.iteration} of {len(evaluator.data_loader)} batches of volumes"
        return f"after measuring {measured}; the same command continues"

    def write(self) -> None:
        """Compares and writes, on rank 0; prints the table."""
        if idist.get_rank() > 0:
            return
        records = {name: self.store.load(one) for name, one in self.sets.items()}
        results = self.results(records)
        write_json(self.folder / "metrics.json", results)
        html = report_html(results, records, self.sets, self.volumes, self.num_slices)
        write_text(self.folder / "report.html", html)
        self.store.release()
        release(self.folder)
        print(summary(results))

    def volumes(self, name: str) -> Dataset:
        """The volumes of a set on the common grid, in HU."""
        return Dataset(self.sets[name].inputs, self.transform)

    def results(self, records: dict[str, Records]) -> dict[str, Any]:
        """What metrics.json holds."""
        comparison = self.comparison
        counts = {name: len(one) for name, one in self.sets.items()}
        described = ["real", *self.generated]
        properties = {name: comparison.describe(records[name]) for name in described}
        if MS_SSIM in comparison.metrics["others"]:
            for name in described:
                properties[name][MS_SSIM] = comparison.ms_ssim(
                    self.volumes(name), self.settings["grid"], self.settings["hu_window"], self.num_ms_ssim_pairs
                )
        distances = {name: comparison.compare(records[name], records["real"]) for name in self.generated}
        results: dict[str, Any] = {
            "sets": {
                name: {
                    "num_volumes": counts[name],
                    "sha256": one.sha256,
                    "paper_compat": one.paper_compat,
                    "phantoms": one.folder is None,
                }
                for name, one in self.sets.items()
            },
            **self.extractor.described,
            "settings": {**self.settings, "num_bootstrap": comparison.num_bootstrap, "seed": comparison.seed},
            "warnings": [
                *([PHANTOMS_ARE_REAL] if self.sets["real"].folder is None else []),
                *self.notes,
                *likeness_warnings(distances, properties),
                *warnings_of(
                    comparison.metrics,
                    records,
                    self.extractor.described[FEATURES]["trained"],
                    self.settings["field_of_view_mm"],
                ),
            ],
            "distances": distances,
            "floor": {"num_volumes": counts["real"] // 2, "distances": comparison.floor(records["real"])},
            "properties": properties,
            "meaning": _meanings(comparison.metrics),
            "memorisation": self._memorisation(records),
            "versions": {
                "bundle": VERSION,
                "monai": monai.__version__,
                "torch": torch.__version__,
                "python": platform.python_version(),
            },
        }
        results["headlines"] = {name: headline(name, results) for name in self.generated}
        return results

    def _memorisation(self, records: dict[str, Records]) -> dict[str, Any]:
        if MEMORISATION not in self.comparison.metrics["others"]:
            return {}
        against = "training" if "training" in self.sets else "real"
        found: dict[str, Any] = {"against": against}
        for name in self.generated:
            one = self.comparison.memorisation(records[name], records[against], self.memorisation_threshold)
            found[name] = one
            if "flagged" in one:
                one["flagged_names"] = [self.sets[name].label(index) for index in one["flagged"]]
        return found


def _meanings(metrics: dict[str, Any]) -> dict[str, dict[str, Any]]:
    listed = [*metrics["comparisons"], *metrics["properties"]]
    table = {
        metric.name: {
            "meaning": metric.meaning,
            "better": metric.better,
            "group": metric.group,
            "of_features": metric.of_features,
        }
        for metric in listed
    }
    if MS_SSIM in metrics["others"]:
        meaning = "likeness of random pairs: higher than real is too little diversity"
        table[MS_SSIM] = {"meaning": meaning, "better": "real", "group": "diversity", "of_features": None}
    return table


def summary(results: dict[str, Any]) -> str:
    """The distances as text for the terminal."""
    counts = {name: one["num_volumes"] for name, one in results["sets"].items()}
    half = results["floor"]["num_volumes"]
    lines = list(results["headlines"].values())
    for name, distances in results["distances"].items():
        lines.append(
            f"\n{name} (N = {counts[name]}) against {reference_of(results)} (N = {counts['real']}), with 95 % intervals"
        )
        lines.append(f"  {'':75s} floor: halves of the {reference_of(results)} (N = {half})")
        for metric, estimate in distances.items():
            floor = results["floor"]["distances"][metric]
            entry = results["meaning"][metric]["of_features"]
            label = f" ({results[entry]['label']})" if entry else ""
            lines.append(f"  {metric + label:42s} {number(estimate):32s} {number(floor)}")
    for name, one in results["memorisation"].items():
        if isinstance(one, dict) and "flagged" in one:
            flagged = len(one["flagged"])
            what = "volume is a near copy" if flagged == 1 else "volumes are near copies"
            lines.append(f"\n{name}: {flagged} {what} of training volumes")
        elif isinstance(one, dict):
            lines.append(f"\n{name}: no search for copies: {one['note']}")
    lines += [f"note: {warning}" for warning in results["warnings"]]
    return "\n".join(lines)
