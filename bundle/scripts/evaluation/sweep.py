"""Volumes of several checkpoints and sampler settings, to be compared in one report."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Mapping, Sequence

from monai.bundle import ConfigWorkflow

from ..errors import bundle_root, require_writable


def sampled_folders(
    checkpoints: Mapping[str, str],
    predictor_ratios: Sequence[float],
    num_inference_steps: Sequence[int],
    num_samples: int,
    seed: int,
    batch_size: int,
    output_dir: str,
) -> dict[str, str]:
    """Runs inference.yaml for every combination; volumes that are there already are kept.

    Args:
        checkpoints: weights by name.
        predictor_ratios: values of p.
        num_inference_steps: numbers of steps.
        num_samples: volumes of each combination, from the same seeds.
        seed: the first one.
        batch_size: of the sampler.
        output_dir: gets a folder for each combination.

    Returns:
        The folders, by a name that says what differs.
    """
    folder = require_writable(output_dir, "samples_dir")
    combinations = list(product(checkpoints.items(), predictor_ratios, num_inference_steps))
    folders = {}
    for (name, ckpt_path), ratio, steps in combinations:
        label = name
        label += f", p = {ratio:g}" if len(predictor_ratios) > 1 else ""
        label += f", {steps} steps" if len(num_inference_steps) > 1 else ""
        folders[label] = str(folder / f"{name}_p{ratio:g}_steps{steps}")
        settings = {"ckpt_path": ckpt_path, "predictor_ratio": ratio, "num_inference_steps": steps, "seed": seed}
        settings |= {"num_samples": num_samples, "batch_size": batch_size, "output_dir": folders[label]}
        workflow = ConfigWorkflow(
            str(Path(bundle_root()) / "configs" / "inference.yaml"), logging_file=False, workflow_type=None, **settings
        )
        workflow.initialize()
        workflow.run()
    return folders
