"""Volumes of several checkpoints and sampler settings, to be compared in one report."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Mapping, Sequence

from monai.bundle import ConfigWorkflow

from ..errors import bundle_root, require_writable


class SamplingSweep:
    """Every combination of checkpoints, values of p and numbers of steps.

    Args:
        checkpoints: weights by name.
        predictor_ratios: values of p.
        num_inference_steps: numbers of steps.
        num_samples: volumes of each combination, from the same seeds.
        seed: the first one.
        batch_size: of the sampler.
        output_dir: gets a folder for each combination.

    Attributes:
        folders: of the combinations, by a name that says what differs.
    """

    def __init__(
        self,
        checkpoints: Mapping[str, str],
        predictor_ratios: Sequence[float],
        num_inference_steps: Sequence[int],
        num_samples: int,
        seed: int,
        batch_size: int,
        output_dir: str,
    ) -> None:
        self.folder, self.folders, self._runs = output_dir, dict[str, str](), []
        for (name, ckpt_path), ratio, steps in product(checkpoints.items(), predictor_ratios, num_inference_steps):
            label = name
            label += f", p = {ratio:g}" if len(predictor_ratios) > 1 else ""
            label += f", {steps} steps" if len(num_inference_steps) > 1 else ""
            self.folders[label] = str(Path(output_dir).absolute() / f"{name}_p{ratio:g}_steps{steps}")
            settings = {"ckpt_path": ckpt_path, "predictor_ratio": ratio, "num_inference_steps": steps, "seed": seed}
            settings |= {"num_samples": num_samples, "batch_size": batch_size, "output_dir": self.folders[label]}
            self._runs.append(settings)

    def run(self) -> None:
        """Runs inference.yaml for each; volumes that are there already are kept."""
        require_writable(self.folder, "samples_dir")
        for settings in self._runs:
            config = str(Path(bundle_root()) / "configs" / "inference.yaml")
            workflow = ConfigWorkflow(config, logging_file=False, workflow_type=None, **settings)
            workflow.initialize()
            workflow.run()


def sweep_folders(sweep: SamplingSweep) -> dict[str, str]:
    """The folders that a sweep fills, to be compared."""
    return sweep.folders
