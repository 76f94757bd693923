"""How much generated volumes look like phantoms, and differ from one another as phantoms do. Run by hand:

    python benchmarks/quality.py --generated DIR          # folder written by inference.yaml from the shipped weights

Prints the numbers of `evaluate.yaml` that need no feature network, with 95 % bootstrap intervals, for the generated
volumes and for their floor: other sets of as many phantoms (mean and range), all against one large set of phantoms.

The first line is one number to rank samplers with, `distance`: 0 is as good as phantoms. It is the mean of its `PARTS`,
and a part is the mean over its numbers of |ln(number / phantoms' number)|; of what can only be too large (HU-Wasserstein,
error of the spectrum) 0 below the phantoms' number; of likeness, of what volumes do not share, 1 - likeness. Phantoms
are not quite at 0 themselves, by chance: the floor says how far they are.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Sequence, Union

import nibabel as nib
import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "bundle"))
from scripts.data import chest_phantom  # noqa: E402
from scripts.data.geometry import three  # noqa: E402
from scripts.evaluation import MeasureVolumed, choose_metrics  # noqa: E402
from scripts.evaluation.records import Records  # noqa: E402
from scripts.evaluation.set_metrics import EXCESS_LIKENESS, LIKENESS  # noqa: E402
from scripts.evaluation.volume_sets import FIRST_REFERENCE_PHANTOM as FIRST_REFERENCE  # noqa: E402
from scripts.metrics import BONE_NAMES, HU_BANDS, SIZE_NAMES, Estimate, bootstrap_weights, estimate  # noqa: E402
from scripts.pages import number  # noqa: E402

HU_WINDOW = (-1000.0, 1000.0)
STRIDES = (4, 8)
NUM_BOOTSTRAP = 200
NUM_FLOORS = 4
DISTANCE = "distance"
PARTS: dict[str, list[str]] = {
    "diversity": [LIKENESS],
    "spread": [f"spread of {name}" for name in SIZE_NAMES],
    "HU": ["HU-Wasserstein (HU)", *(f"HU-Wasserstein, {band} (HU)" for band in HU_BANDS)],
    "bone and vessels": ["bone pieces", "lung vessels (%)"],
    "texture": ["log10 spectrum error", "grain (HU)", *(f"seams, stride {stride}" for stride in STRIDES)],
}
ONE_SIDED = [name for part in ("HU", "texture") for name in PARTS[part] if "Wasserstein" in name or "error" in name]
NUMBERS = [EXCESS_LIKENESS, *(name for names in PARTS.values() for name in names), *SIZE_NAMES, *BONE_NAMES]


def phantoms(count: int, grid: Sequence[int], field_of_view_mm: float, first: int = FIRST_REFERENCE) -> np.ndarray:
    """Phantoms (N, X, Y, Z) in HU, clipped to the window as generated volumes are."""
    return np.stack([chest_phantom(first + i, grid, field_of_view_mm) for i in range(count)]).clip(-1000, 1000)


def load_generated(folder: Path, first: int = 0) -> np.ndarray:
    """Volumes of a folder of inference.yaml from a seed on, (N, X, Y, Z) in HU."""
    paths = [path for path in sorted(folder.glob("seed_*.nii.gz")) if int(path.name[5:-7]) >= first]
    return np.stack([np.asanyarray(nib.load(path).dataobj) for path in paths]).astype(np.float32)


def records_of(volumes: np.ndarray, field_of_view_mm: float) -> Records:
    """What evaluate.yaml keeps of volumes (N, X, Y, Z) in HU, without features."""
    measuring = MeasureVolumed("image", three(field_of_view_mm), HU_WINDOW)
    records = [measuring.measure(torch.from_numpy(volume).float()) for volume in volumes]
    return {name: torch.stack([record[name] for record in records]) for name in records[0]}


def numbers_of(volumes: np.ndarray, reference: Records, field_of_view_mm: float) -> dict[str, Tensor]:
    """Each of `NUMBERS` for volumes (N, X, Y, Z) in HU, then for bootstrap samples of both sets: (1 + NUM_BOOTSTRAP,)."""
    records = records_of(volumes, field_of_view_mm)
    u, v = (bootstrap_weights(len(one["grain"]), NUM_BOOTSTRAP, seed) for seed, one in enumerate((records, reference)))
    metrics = choose_metrics(NUMBERS, volumes.shape[1:], HU_WINDOW, STRIDES)
    found = {metric.name: metric.compute(records, u, reference, v) for metric in metrics["comparisons"]}
    found |= {metric.name: metric.compute(records, u) for metric in metrics["properties"]}
    return {name: found[name] for name in NUMBERS}


class Scale:
    """What generated volumes are held against: reference phantoms, and what other phantoms have against them.

    Args:
        num_reference: phantoms to compare with.
        num_volumes: of each of the `NUM_FLOORS` other sets; as many as are generated.
        grid: of the volumes.
        field_of_view_mm: of the volumes.
    """

    def __init__(self, num_reference: int, num_volumes: int, grid: Sequence[int], field_of_view_mm: float) -> None:
        self.field_of_view_mm = field_of_view_mm
        self.reference = records_of(phantoms(num_reference, grid, field_of_view_mm), field_of_view_mm)
        firsts = [FIRST_REFERENCE + 1000 * (index + 1) for index in range(NUM_FLOORS)]
        sets = [phantoms(num_volumes, grid, field_of_view_mm, first) for first in firsts]
        found = [numbers_of(one, self.reference, field_of_view_mm) for one in sets]
        self.aims = {name: float(np.mean([float(one[name][0]) for one in found])) for name in NUMBERS}
        values = [{name: float(x[0]) for name, x in self._with_distance(one).items()} for one in found]
        columns = {name: [one[name] for one in values] for name in values[0]}
        self.floor = {name: Estimate(float(np.mean(x)), min(x), max(x)) for name, x in columns.items()}

    def measure(self, volumes: np.ndarray) -> dict[str, Estimate]:
        """`distance`, its parts and all `NUMBERS` of volumes (N, X, Y, Z) in HU, with their intervals."""
        found = numbers_of(volumes, self.reference, self.field_of_view_mm)
        return {name: estimate(values) for name, values in self._with_distance(found).items()}

    def _with_distance(self, values: dict[str, Tensor]) -> dict[str, Tensor]:
        parts = {
            part: torch.stack([self._off(name, values[name]) for name in names]).mean(0)
            for part, names in PARTS.items()
        }
        return {DISTANCE: torch.stack(list(parts.values())).mean(0), **parts, **values}

    def _off(self, name: str, values: Tensor) -> Tensor:
        """How far off a number is, as a logarithm, at most that of a thousand."""
        aim = self.aims[name]
        ratio = (1 - values) / (1 - aim) if name == LIKENESS else values / aim
        return ratio.clamp(0.001, 1000).log().clamp(min=0 if name in ONE_SIDED else -7).abs()


def print_table(rows: dict[str, dict[str, Union[float, Estimate]]]) -> None:
    """A Markdown table: one line per number, one column per set."""
    print("| | " + " | ".join(rows) + " |\n|" + "---|" * (len(rows) + 1))
    for name in next(iter(rows.values())):
        cells = [row[name] for row in rows.values()]
        texts = [number(asdict(one)) if isinstance(one, Estimate) else f"{one:.3g}" for one in cells]
        print(f"| {name} | " + " | ".join(texts) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--generated", type=Path, required=True)
    parser.add_argument("--num_phantoms", type=int, default=128)
    args = parser.parse_args()
    generated = load_generated(args.generated)
    sidecar = json.loads(sorted(args.generated.glob("seed_*.json"))[0].read_text())
    scale = Scale(args.num_phantoms, len(generated), sidecar["grid"], sidecar["field_of_view_mm"])
    print_table({f"{len(generated)} generated": scale.measure(generated), "other phantoms (floor)": scale.floor})


if __name__ == "__main__":
    main()
