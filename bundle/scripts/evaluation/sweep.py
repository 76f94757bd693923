"""Volumes of several checkpoints and sampler settings, to be compared in one report."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any, Mapping, Optional, Sequence

from monai.bundle import ConfigWorkflow

from ..errors import bundle_root, is_bad_input, require_writable, root_cause
from ..inferers.items import require_drawing
from ..networks.card import read_card
from ..settings.checks import literal

_IN_WORDS = {
    "predictor_ratio": "p = {:g}", "eta": "eta = {:g}", "prediction": "{} alone", "guidance": "guidance {:g}",
    "num_inference_steps": "{} calls", "seed": "seeds from {}",
}  # fmt: skip
_CHECKS = [{"_target_": "scripts.settings.checks.check_settings"}, "@generator", "@data"]  # all but the sampling


class SamplingSweep:
    """Every combination of checkpoints and sampler settings.

    Args:
        checkpoints: weights by name.
        samplers: values by the names of the settings of inference.yaml; None is that of the weights or the solver.
        num_samples: volumes of each combination, from the same seeds.
        batch_size: of the sampler.
        output_dir: gets a folder for each combination.
        others: settings of inference.yaml that are the same in all.

    Attributes:
        folders: of the combinations, by the name of the checkpoint and the whole sampler.
        notes: what a reader of the comparison has to know of it.
    """

    def __init__(
        self,
        checkpoints: Mapping[str, str],
        samplers: Mapping[str, Sequence[Any]],
        num_samples: int,
        batch_size: int,
        output_dir: str,
        **others: Any,
    ) -> None:
        self.folder, self.folders, self._runs = output_dir, dict[str, str](), dict[str, dict[str, Any]]()
        cards = {name: read_card(ckpt_path) for name, ckpt_path in checkpoints.items()}
        for card in cards.values():
            require_drawing(card, others.get("allow_stage_1", False))
        self.notes = [
            f"{name}: its weights predict what is missing from x_t (parametrization skip), so that their noise holds the signal: "
            "sampling from the noise alone tests nothing here."
            for name, card in cards.items()
            if "noise" in samplers.get("prediction", ()) and "skip" in parametrizations(card.network)
        ]
        for (name, ckpt_path), *values in product(checkpoints.items(), *samplers.values()):
            sampler = dict(zip(samplers, values))
            told = {one: value for one, value in sampler.items() if value is not None}
            words = [_IN_WORDS.get(one, "{}").format(value) for one, value in told.items()]
            label = ", ".join([name, *words])
            # all that is asked for: volumes of another seed or number beside these would be measured, too
            folder = "_".join([name, *map(str, told.values()), f"n{num_samples}"])
            self.folders[label] = str(Path(output_dir).absolute() / folder)
            settings = {
                **others,
                **sampler,
                "ckpt_path": ckpt_path,
                "num_samples": num_samples,
                "batch_size": batch_size,
            }
            self._runs[label] = {**settings, "output_dir": self.folders[label]}

    def run(self) -> None:
        """Runs inference.yaml for each; volumes that are there already are kept.

        Raises:
            ValueError: in one line that names the combination that cannot be sampled, before any of them is.
        """
        require_writable(self.folder, "samples_dir")
        for label, settings in self._runs.items():
            try:
                run_configs("inference", steps=_CHECKS, **settings)
            except (ValueError, RuntimeError) as error:
                cause = root_cause(error)
                if not is_bad_input(cause):
                    raise
                raise ValueError(f"{label}: {cause}") from None
        for settings in self._runs.values():
            run_configs("inference", **settings)


def run_configs(*names: str, steps: Optional[list[Any]] = None, **settings: Any) -> None:
    """Runs config files of the bundle, or other steps of them, in this process, as `python -m monai.bundle run` does."""
    files = [str(Path(bundle_root()) / "configs" / f"{name}.yaml") for name in names]
    given = {name: literal(value) for name, value in settings.items()} | ({} if steps is None else {"run": steps})
    workflow = ConfigWorkflow(files, logging_file=False, workflow_type=None, **given)
    workflow.initialize()
    workflow.run()


def parametrizations(network: Mapping[str, Any]) -> set[str]:
    """Of a network by its settings, and of those below it."""
    below = parametrizations(network["backbone"]) if "backbone" in network else set()
    return {network.get("parametrization", "none"), *below}


def sweep_folders(sweep: SamplingSweep) -> dict[str, str]:
    """The folders that a sweep fills, to be compared."""
    return sweep.folders
