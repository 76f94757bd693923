"""Writes bundle/docs/side_by_side.png: phantoms that the shipped weights were trained on beside what they generate."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import nibabel as nib

ROOT = Path(__file__).resolve().parents[1]
PIXELS = 330  # of a plane
ROWS = 3
GRID, SIZE_MM = (64, 64, 64), (320.0, 320.0, 320.0)  # of the shipped weights


def main() -> None:
    from scripts.data import chest_phantom
    from scripts.data.pictures import pair_picture, stacked, titled
    from scripts.output.generated import GeneratedVolume

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--generated_dir", default=str(ROOT / "demo"), help="volumes of the shipped weights; make demo")
    parser.add_argument("--output_path", default=str(ROOT / "bundle" / "docs" / "side_by_side.png"))
    given = parser.parse_args()
    rows = []
    for seed in range(ROWS):
        generated, affine = GeneratedVolume(Path(given.generated_dir) / f"seed_{seed:06d}.nii.gz").read()
        sides = [
            titled(pair_picture(chest_phantom(seed, GRID, SIZE_MM), SIZE_MM, PIXELS), f"training data: phantom {seed}"),
            titled(
                pair_picture(generated, nib.affines.voxel_sizes(affine) * generated.shape, PIXELS),
                f"generated: seed {seed}",
            ),
        ]
        rows.append(stacked(sides, across=True))
    stacked(rows).save(given.output_path)


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT / "bundle"))
    main()
