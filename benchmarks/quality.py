"""How much generated volumes look like the phantoms, on numbers that a picture can hide. Run by hand:

    python benchmarks/quality.py --generated DIR          # folder written by inference.yaml from the shipped weights

Prints, for the generated volumes and, as the floor, for a second set of phantoms, both against the same phantoms:
HU-Wasserstein (mean difference of the sorted HU, in HU), mean |log10| error of the radial power spectrum, grain (median
of what a 3x3x3 mean removes inside soft tissue, in HU), and seams (gradient across patch borders over the others).
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "bundle"))
from scripts.data import chest_phantom  # noqa: E402

FIRST_REFERENCE = 2_000_000  # seeds that no training or validation set has


def phantoms(count: int, grid: list[int], field_of_view_mm: float, first: int = FIRST_REFERENCE) -> np.ndarray:
    """Phantoms (N, X, Y, Z) in HU, clipped to the window as generated volumes are."""
    return np.stack([chest_phantom(first + i, grid, field_of_view_mm) for i in range(count)]).clip(-1000, 1000)


def hu_wasserstein(a: np.ndarray, b: np.ndarray) -> float:
    """1-Wasserstein distance of all HU of two sets, in HU."""
    levels = np.linspace(0, 1, 20001)
    return float(np.abs(np.quantile(a, levels) - np.quantile(b, levels)).mean())


def spectrum(volumes: np.ndarray) -> np.ndarray:
    """Radial power spectrum, mean over the volumes."""
    power = (np.abs(np.fft.fftn(volumes, axes=(1, 2, 3))) ** 2).mean(0)
    axes = np.meshgrid(*[np.fft.fftfreq(side) for side in volumes.shape[1:]], indexing="ij")
    radius = (np.sqrt(sum(axis**2 for axis in axes)) * volumes.shape[1]).round().astype(int)
    return np.bincount(radius.ravel(), power.ravel()) / np.bincount(radius.ravel())


def grain(volumes: np.ndarray) -> float:
    """Median |v - 3x3x3 mean| where the neighbourhood is soft tissue (0 to 80 HU), in HU."""
    x = torch.from_numpy(volumes).float()[:, None]
    mean = F.avg_pool3d(x, 3, 1, 1)
    spread = F.max_pool3d((x - mean).abs(), 3, 1, 1)
    inside = (mean > 0) & (mean < 80) & (spread < 100)
    return float((x - mean).abs()[inside].median())


def seams(volumes: np.ndarray, stride: int) -> float:
    """Mean |gradient| across the borders of patches over that between other voxels; 1 is no seam."""
    ratios = []
    for axis in (1, 2, 3):
        gradient = np.abs(np.diff(volumes, axis=axis)).mean(axis=tuple(i for i in range(4) if i != axis))
        border = (np.arange(len(gradient)) + 1) % stride == 0
        ratios.append(gradient[border].mean() / gradient[~border].mean())
    return float(np.mean(ratios))


def measure(volumes: np.ndarray, reference: np.ndarray) -> dict[str, float]:
    """All numbers of one set against a reference set, both (N, X, Y, Z) in HU."""
    ratio = np.log10(spectrum(volumes)[1:] / spectrum(reference)[1:])
    return {
        "HU-Wasserstein": hu_wasserstein(volumes, reference),
        "log10 spectrum error": float(np.abs(ratio).mean()),
        "grain (HU)": grain(volumes),
        "seams (stride 4)": seams(volumes, 4),
        "seams (stride 8)": seams(volumes, 8),
    }


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
            f"{len(generated)} generated": measure(generated, reference),
            f"{len(generated)} other phantoms (floor)": measure(floor, reference),
        }
    )


if __name__ == "__main__":
    main()
