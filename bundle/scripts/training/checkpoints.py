"""What continues a broken training run, and the weights that validated best."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, Optional, Union

import torch
from ignite.engine import Engine, Events
from ignite.handlers import Checkpoint, DiskSaver
from monai.handlers import CheckpointLoader

from ..networks.base import DenoisingNetwork
from ..networks.checkpoint import CHANGE_NO_WEIGHT, load_tensors, save_weights
from ..networks.high_resolution import override_settings

# hashes of the frozen weights that a run stands on
STARTED_ON = {
    "local_sha256": "stage 1 than local.pt",
    "residual_sha256": "transformer than that of residual_ckpt",
    "backbone_sha256": "backbone than backbone_ckpt",
}


def checkpoints(ckpt_dir: Union[str, Path], prefix: str) -> list[Path]:
    """The files `prefix_checkpoint_epoch=N.pt` of a folder, the oldest first."""
    found = {path.stem.rpartition("=")[2]: path for path in Path(ckpt_dir).glob(f"{prefix}_checkpoint_epoch=*.pt")}
    return [found[epoch] for epoch in sorted((epoch for epoch in found if epoch.isdecimal()), key=int)]


class TrainingCheckpoint:
    """Keeps what continues a broken run, and the averaged weights that validated best.

    Files in `ckpt_dir`: `NAME_checkpoint_epoch=N.pt` (network, average, optimiser, trainer; the last `keep`), and
    `NAME.pt` with `NAME.json`. A new run starts from the newest checkpoint it finds.

    Args:
        ckpt_dir: folder.
        name: 'local' for stage 1, 'model' for stage 2.
        network: the trained network.
        ema_network: its average, from Ignite's EMAHandler.
        optimizer: of the trainer.
        evaluator: its metric 'val_loss' says which weights are best.
        settings: what goes into the weights' JSON, see `save_weights`.
        keep: number of checkpoints to keep.
        interval: epochs between checkpoints.
        enabled: False on ranks that do not write.
    """

    def __init__(
        self,
        ckpt_dir: str,
        name: str,
        network: DenoisingNetwork,
        ema_network: DenoisingNetwork,
        optimizer: torch.optim.Optimizer,
        evaluator: Engine,
        settings: dict,
        keep: int = 2,
        interval: int = 1,
        enabled: bool = True,
    ) -> None:
        self.ckpt_dir, self.name, self.evaluator, self.settings = Path(ckpt_dir), name, evaluator, settings
        self.objects: dict[str, Any] = {"network": network, "ema": ema_network, "optimizer": optimizer}
        self.ema_network, self.keep, self.interval, self.enabled = ema_network, keep, interval, enabled
        self.best_loss = math.inf

    def state_dict(self) -> dict[str, Any]:
        return {
            "best_loss": self.best_loss,
            **{name: self.settings.get(name) for name in STARTED_ON},
            **self.trained_as(),
        }

    def trained_as(self) -> dict[str, str]:
        """What a continued run must have in common with the one before, each as JSON."""
        network = override_settings(self.objects["network"].settings, CHANGE_NO_WEIGHT)
        parts = {"network": network, **{name: self.settings.get(name, {}) for name in ("process", "data")}}
        return {name: json.dumps(part, sort_keys=True) for name, part in parts.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.best_loss = state["best_loss"]

    def attach(self, engine: Engine) -> None:
        self.objects |= {"trainer": engine, "best": self}
        found = checkpoints(self.ckpt_dir, self.name)
        if found:
            path = str(found[-1])
            self._check(path, engine.state.max_epochs)
            CheckpointLoader(path, self.objects, map_location="cpu").attach(engine)
        engine.add_event_handler(Events.COMPLETED, self.validate_last)
        if self.enabled:
            saver = DiskSaver(str(self.ckpt_dir), atomic=True, create_dir=False, require_empty=False)
            self.checkpoint = Checkpoint(
                self.objects,
                saver,
                filename_pattern=f"{self.name}_checkpoint_epoch={{global_step}}.pt",
                global_step_transform=lambda trainer, _: trainer.state.epoch,
                n_saved=self.keep,
            )
            engine.add_event_handler(Events.EPOCH_COMPLETED, self.save_best)
            engine.add_event_handler(Events.EPOCH_COMPLETED(every=self.interval), self.save)

    def _check(self, path: str, max_epochs: Optional[int]) -> None:
        """One line for a checkpoint that does not fit, before anything is loaded."""
        epoch = int(Path(path).stem.rpartition("=")[2])
        if max_epochs is not None and epoch > max_epochs:
            raise ValueError(f"{path} is past max_epochs {max_epochs}: raise it above {epoch} to train on")
        state = load_tensors(path)
        missing = [name for name in self.objects if name not in state]
        if missing:
            raise ValueError(f"{path} is no checkpoint of this bundle: it has no {missing[0]}; remove it")
        own = {name: value.shape for name, value in self.objects["network"].state_dict().items()}
        theirs = {name: value.shape for name, value in state.get("network", {}).items()}
        if own != theirs:
            raise ValueError(f"{path} is of another network; choose another ckpt_dir to start a new run")
        for name, weights in STARTED_ON.items():
            if state.get("best", {}).get(name) != self.settings.get(name):
                raise ValueError(f"{path} was trained on another {weights}; remove it, or bring that back")
        for part, now in self.trained_as().items():
            before = json.loads(state.get("best", {}).get(part, now))
            for name, value in json.loads(now).items():
                if before.get(name, value) != value:
                    raise ValueError(
                        f"{path} was trained with {name} {before[name]}, this run has {value}; choose another ckpt_dir "
                        "to start a new run"
                    )

    def save(self, engine: Engine) -> None:
        """Saves what continues the run, unless its loss is not finite: good checkpoints are not to be replaced."""
        if not getattr(engine.state, "bad_steps", 0):
            self.checkpoint(engine)
            self.remove_old()

    def validate_last(self, engine: Engine) -> None:
        """Validates the end of a run whose length is no multiple of the validation's interval."""
        if self.evaluator.state.epoch != engine.state.epoch:
            self.evaluator.run(engine.state.epoch)
            if self.enabled:
                self.save_best(engine)

    def save_best(self, engine: Engine) -> None:
        if self.evaluator.state.epoch != engine.state.epoch:
            return  # not validated in this epoch
        loss = float(self.evaluator.state.metrics["val_loss"])
        if loss < self.best_loss:
            self.best_loss = loss
            extra = {"epoch": engine.state.epoch, "step": engine.state.iteration, "val_loss": loss}
            save_weights(self.ema_network, self.ckpt_dir / f"{self.name}.pt", {**self.settings, "training": extra})

    def remove_old(self) -> None:
        """Removes checkpoints of earlier, broken runs, which Ignite does not count."""
        for path in checkpoints(self.ckpt_dir, self.name)[: -self.keep]:
            path.unlink()
