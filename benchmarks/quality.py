"""How much generated volumes look like the phantoms, on numbers that a picture can hide. Run by hand:

    python benchmarks/quality.py --generated DIR          # folder written by inference.yaml from the shipped weights

Prints, for the generated volumes and, as the floor, for a second set of phantoms, both against the same phantoms:
HU-Wasserstein, error of the radial power spectrum, grain and seams, of `scripts.metrics`. `evaluate.yaml` has these and
more, with intervals and pictures.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "bundle"))
from scripts.data import chest_phantom  # noqa: E402
from scripts.data.transforms import three  # noqa: E402
from scripts.evaluation.volume_sets import FIRST_REFERENCE_PHANTOM as FIRST_REFERENCE  # noqa: E402
from scripts.metrics import (  # noqa: E402
    gradient_profile,
    hu_histogram,
    radial_power_spectrum,
    seam_ratio,
    soft_tissue_grain,
    spectrum_error,
    wasserstein_distance,
)

HU_WINDOW = (-1000.0, 1000.0)


def phantoms(count: int, grid: list[int], field_of_view_mm: float, first: int = FIRST_REFERENCE) -> np.ndarray:
    """Phantoms (N, X, Y, Z) in HU, clipped to the window as generated volumes are."""
    return np.stack([chest_phantom(first + i, grid, field_of_view_mm) for i in range(count)]).clip(-1000, 1000)


def measure(volumes: np.ndarray, reference: np.ndarray, field_of_view_mm: float) -> dict[str, float]:
    """All numbers of one set against a reference set, both (N, X, Y, Z) in HU."""
    sets = [[torch.from_numpy(volume).float() for volume in one] for one in (volumes, reference)]
    histograms = [sum(hu_histogram(volume, HU_WINDOW) for volume in one) for one in sets]
    spectra = [torch.stack([radial_power_spectrum(v, three(field_of_view_mm)) for v in one]).mean(0) for one in sets]
    profile = torch.stack([gradient_profile(volume) for volume in sets[0]]).mean(0)
    numbers = {
        "HU-Wasserstein": wasserstein_distance(*histograms),
        "log10 spectrum error": spectrum_error(*spectra),
        "grain (HU)": torch.stack([soft_tissue_grain(volume) for volume in sets[0]]).nanmean(),
        **{f"seams (stride {stride})": seam_ratio(profile, volumes.shape[1:], stride) for stride in (4, 8)},
    }
    return {name: float(value) for name, value in numbers.items()}


def load_generated(folder: Path) -> np.ndarray:
    """All volumes of a folder of inference.yaml, (N, X, Y, Z) in HU."""
    return np.stack([np.asanyarray(nib.load(path).dataobj) for path in sorted(folder.glob("seed_*.nii.gz"))]).astype(
        np.float32
    )


def print_table(rows: dict[str, dict[str, float]]) -> None:
    """A Markdown table, one line per set."""
    names = list(next(iter(rows.values())))
    print("| | " + " | ".join(names) + " |\n|" + "---|" * (len(names) + 1))
    for label, row in rows.items():
        print(f"| {label} | " + " | ".join(f"{row[name]:.3g}" for name in names) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--generated", type=Path, required=True)
    parser.add_argument("--num_phantoms", type=int, default=64)
    args = parser.parse_args()
    generated = load_generated(args.generated)
    sidecar = json.loads(sorted(args.generated.glob("seed_*.json"))[0].read_text())
    grid, fov = sidecar["grid"], sidecar["field_of_view_mm"]
    reference = phantoms(args.num_phantoms, grid, fov)
    floor = phantoms(len(generated), grid, fov, FIRST_REFERENCE + 1000)
    print_table(
        {
            f"{len(generated)} generated": measure(generated, reference, fov),
            f"{len(generated)} other phantoms (floor)": measure(floor, reference, fov),
        }
    )


if __name__ == "__main__":
    main()
