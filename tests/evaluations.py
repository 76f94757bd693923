"""Evaluations of tiny phantoms without a feature network: what their tests share."""

import json
from functools import cache

from bundle_runs import run

from scripts.data import chest_phantom, grid_affine
from scripts.output import save_volume

GRID, SIZE_MM = [32, 32, 32], [320.0] * 3
QUICK = {"num_bootstrap": 20, "num_ms_ssim_pairs": 3, "num_slices": 1, "bf16": False}


def write(folder, name, volume, grid=GRID, affine=None):
    folder.mkdir(parents=True, exist_ok=True)
    save_volume(volume.clip(-1000, 1000), grid_affine(grid, SIZE_MM) if affine is None else affine, folder / name)


@cache
def drawn(seed, grid):
    return chest_phantom(seed, grid, SIZE_MM)


def phantom(seed, grid=GRID):
    return drawn(seed, tuple(grid)).copy()


def evaluate(folder, **settings):
    """Runs evaluate.yaml; returns what metrics.json says."""
    run("run", ["evaluate"], **{**QUICK, "output_dir": folder, "device": "$torch.device('cpu')", **settings})
    return json.loads((folder / "metrics.json").read_text())
