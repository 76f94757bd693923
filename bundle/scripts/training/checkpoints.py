"""What continues a broken training run, and the weights that validated best."""

from __future__ import annotations

import atexit
import json
import math
import time
from pathlib import Path
from typing import Any, Optional, Union

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events
from ignite.handlers import Checkpoint

from ..files import hold, release, remove_leftovers, set_aside, write_json, write_text
from ..networks.base import DenoisingNetwork
from ..networks.card import Card
from ..networks.checkpoint import CHANGE_NO_WEIGHT, load_tensors, save_tensors, save_weights
from ..networks.kinds import override_settings
from ..stops import stoppable_engine
from .stages import seen_of

# hashes of the weights that a run stands on or started from
STARTED_ON = {
    "local_sha256": "stage 1 than local.pt",
    "residual_sha256": "transformer than that of residual_ckpt",
    "backbone_sha256": "backbone than backbone_ckpt",
    "autoencoder_sha256": "autoencoder than autoencoder_ckpt",
    "finetune_sha256": "start than finetune_from",
    "teacher_sha256": "start than distill_from",
}


def checkpoints(ckpt_dir: Union[str, Path], prefix: str) -> list[Path]:
    """The files `prefix_checkpoint_epoch=N.pt` of a folder, the oldest first."""
    found = {path.stem.rpartition("=")[2]: path for path in Path(ckpt_dir).glob(f"{prefix}_checkpoint_epoch=*.pt")}
    return [found[epoch] for epoch in sorted((epoch for epoch in found if epoch.isdecimal()), key=int)]


def claim_folder(ckpt_dir: Union[str, Path], name: str) -> None:
    """Lets one run at a time train a stage in a folder, and keeps a finished training's files from a new run.

    Args:
        ckpt_dir: folder that is there.
        name: 'local' for stage 1, 'model' for stage 2.

    Raises:
        ValueError: in one line, when another run is there, or files of a run that no checkpoint continues.
    """
    hold(ckpt_dir, "ckpt_dir", name)
    remove_leftovers(ckpt_dir)
    if checkpoints(ckpt_dir, name):
        return
    begun = _begun(ckpt_dir, name)
    there = _results(ckpt_dir, name)
    if there and not begun.exists():
        release(ckpt_dir, name)
        raise ValueError(
            f"{there[0]} is of a training that no checkpoint beside it continues, and a new one would replace it; "
            "choose another ckpt_dir, or move it away"
        )
    write_text(begun, "")
    atexit.register(_unclaim, ckpt_dir, name)


def _results(ckpt_dir: Union[str, Path], name: str) -> list[Path]:
    """What a training has written beside its checkpoints."""
    paths = [Path(ckpt_dir) / f"{name}{end}" for end in (".pt", ".json", "_losses.csv", "_progress.png")]
    return [path for path in [*paths, *Path(ckpt_dir).glob(f"pictures/{name}_epoch_*.png")] if path.exists()]


def _unclaim(ckpt_dir: Union[str, Path], name: str) -> None:
    """Takes the mark of a new run away where it came to nothing."""
    if not _results(ckpt_dir, name):
        _begun(ckpt_dir, name).unlink(missing_ok=True)


def require_epochs(
    ckpt_dir: Union[str, Path], name: str, max_epochs: Optional[int], epoch_length: Optional[int] = None
) -> None:
    """Refuses to continue a training that is longer already.

    Args:
        ckpt_dir: of the run.
        name: 'local' for stage 1, 'model' for stage 2.
        max_epochs: of the run; None where it is not known yet.
        epoch_length: steps; None where the run was not asked for in steps.

    Raises:
        ValueError: in one line, when the newest checkpoint is of a later epoch.
    """
    kept = checkpoints(ckpt_dir, name)
    if kept:
        _require_epochs(kept[-1], max_epochs, epoch_length)


def _require_epochs(newest: Path, max_epochs: Optional[int], epoch_length: Optional[int] = None) -> None:
    if max_epochs is not None and (done := _epoch_of(newest)) > max_epochs and _content(newest) is not None:
        name, given = ("max_steps", max_epochs * epoch_length) if epoch_length else ("max_epochs", max_epochs)
        also = f", which are {max_epochs} epochs" if epoch_length else ""
        raise ValueError(
            f"{name} is {given}{also}, but {newest} is trained to epoch {done}: set {name} to more than "
            f"{done * (epoch_length or 1)}"
        )


def _begun(ckpt_dir: Union[str, Path], name: str) -> Path:
    """A mark that the weights here are of a run that was broken before its first checkpoint."""
    return Path(ckpt_dir) / f".{name}.begun"


def _epoch_of(path: Path) -> int:
    return int(path.stem.rpartition("=")[2])


class TrainingCheckpoint:
    """Keeps what continues a broken run, and the averaged weights that validated best.

    Files in `ckpt_dir`: `NAME_checkpoint_epoch=N.pt` (network, average, optimiser, trainer; the last `keep`), and
    `NAME.pt` with `NAME.json`. A new run starts from the newest checkpoint that is whole.

    A continued run has the settings that it is given: its optimiser's, and its own number of steps an epoch, which the
    number of volumes and the batch say. It is at the end of the epoch of the checkpoint, so that a learning rate that
    follows the steps is at the same share of the run. What makes it another run is refused: the network, the process,
    the field of view, the weights it started from, the volumes that say which weights are best.

    Args:
        ckpt_dir: folder.
        name: 'local' for stage 1, 'model' for stage 2.
        network: the trained network.
        ema_network: its average, see `AveragedWeights`.
        optimizer: of the trainer.
        evaluator: its metric 'val_loss' says which weights are best.
        settings: what goes into the weights' JSON, see `save_weights`.
        keep: number of checkpoints to keep.
        interval: epochs between checkpoints.
        enabled: False on ranks that do not write.
        validated_on: what 'val_loss' depends on, by setting: texts and numbers.
        computed_in: 'precision' and 'device', see `scripts.inferers.computed_in`; kept for the weights' JSON.
        beside: other networks that continue the run, by name.
        keep_last: the weights are those validated last, not those validated best.
        start: the weights that the run stands on, whose hours the JSON has beside those of this training.
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
        validated_on: Optional[dict] = None,
        computed_in: Optional[dict] = None,
        beside: Optional[dict[str, torch.nn.Module]] = None,
        keep_last: bool = False,
        start: Optional[Card] = None,
    ) -> None:
        self.ckpt_dir, self.name, self.evaluator, self.settings = Path(ckpt_dir), name, evaluator, settings
        self.objects: dict[str, Any] = {
            "network": network,
            "ema": ema_network,
            "optimizer": optimizer,
            **(beside or {}),
        }
        self.keep_last = keep_last
        self.ema_network, self.keep, self.interval, self.enabled = ema_network, keep, interval, enabled
        self.validated_on = validated_on or {}
        self.computed_in = [" on ".join(computed_in.values())] if computed_in else []  # of all parts of the run
        self.best_loss = math.inf
        self.hours_before = {} if start is None else {"device_hours_before": start.device_hours}
        self.hours, self.started, self.trains = 0.0, time.monotonic(), False

    def state_dict(self) -> dict[str, Any]:
        return {
            "best_loss": self.best_loss,
            "computed_in": self.computed_in,
            **{name: self.settings.get(name) for name in STARTED_ON},
            **self.trained_as(),
        }

    def trained_as(self) -> dict[str, str]:
        """What a continued run must have in common with the one before, each as JSON."""
        parts = {
            "network": override_settings(self.objects["network"].settings, CHANGE_NO_WEIGHT),
            "process": self.settings.get("process", {}),
            "data": seen_of(self.settings["data"]) if "data" in self.settings else {},
            "validated_on": self.validated_on,
        }
        return {name: json.dumps(part, sort_keys=True) for name, part in parts.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.best_loss = state["best_loss"]
        before = state.get("computed_in", [])
        self.computed_in = [*(one for one in before if one not in self.computed_in), *self.computed_in]

    def path(self, epoch: int) -> Path:
        return self.ckpt_dir / f"{self.name}_checkpoint_epoch={epoch}.pt"

    def attach(self, engine: Engine) -> None:
        self.objects |= {"trainer": engine, "best": self}
        newest = self._newest()
        if newest is not None:
            path, state = newest
            _require_epochs(path, engine.state.max_epochs)
            self._check(path, state)
            # not now: Ignite would take a finished run for one to start anew
            engine.add_event_handler(Events.STARTED, lambda: self.resume(engine, path, state))
        stoppable_engine(engine, lambda: self._progress(engine))
        engine.add_event_handler(Events.STARTED, self._start_clock, newest is not None)
        engine.add_event_handler(Events.EPOCH_STARTED, lambda: setattr(self, "trains", True))
        if self.enabled:
            engine.add_event_handler(Events.EPOCH_COMPLETED, self.save_best)
            engine.add_event_handler(Events.EPOCH_COMPLETED(every=self.interval), self.save)
            engine.add_event_handler(Events.COMPLETED, self.finish)

    def resume(self, engine: Engine, path: Path, state: dict[str, Any]) -> None:
        """Puts a checkpoint into all objects, with this run's settings, and empties it."""
        steps, max_epochs = engine.state.epoch_length, engine.state.max_epochs
        groups = self.objects["optimizer"].param_groups
        own = [{name: value for name, value in group.items() if name not in ("params", "lr")} for group in groups]
        for group, settings in zip(state["optimizer"]["param_groups"], own):
            group.update(settings)  # `fused` says where the optimiser's counts go; lr is set before the next step
        Checkpoint.load_objects(self.objects, state)
        epoch, steps_before = engine.state.epoch, engine.state.epoch_length
        engine.state.epoch_length, engine.state.max_epochs, engine.state.iteration = steps, max_epochs, epoch * steps
        if self.enabled and epoch < max_epochs:
            facts = [f"continues {path} in epoch {epoch + 1} of {max_epochs}"]
            if steps != steps_before:
                facts.append(f"{steps} steps an epoch, before {steps_before}")
            if state["best"].get("computed_in", self.computed_in)[-1:] != self.computed_in[-1:]:
                facts.append(f"in {self.computed_in[-1]}, before {state['best']['computed_in'][-1]}")
            print("; ".join(facts))
        state.clear()

    def _progress(self, engine: Engine) -> str:
        """From where a run that was ended goes on: at the end of an epoch, and so it draws what an unbroken one would."""
        kept = checkpoints(self.ckpt_dir, self.name)
        if not kept:
            return "before the first checkpoint; the same command begins again"
        return f"after epoch {_epoch_of(kept[-1])} of {engine.state.max_epochs}; the same command continues"

    def _newest(self) -> Optional[tuple[Path, dict[str, Any]]]:
        """The newest checkpoint that is whole, and its content; damaged ones after it are set aside."""
        damaged: list[Path] = []
        for path in reversed(checkpoints(self.ckpt_dir, self.name)):
            state = _content(path)
            if state is not None:
                break
            damaged.append(path)
        else:
            if damaged:
                raise ValueError(f"{damaged[0]} is damaged, and none before it is whole; remove it to start anew")
            return None
        if self.enabled:
            for one in damaged:
                print(f"{one} is damaged and set aside as {set_aside(one).name}; {path.name} is continued")
        idist.barrier()
        return path, state

    def _check(self, path: Path, state: dict[str, Any]) -> None:
        """One line for a checkpoint that does not fit, before anything is loaded."""
        own = {name: value.shape for name, value in self.objects["network"].state_dict().items()}
        theirs = {name: value.shape for name, value in state["network"].items()}
        if own != theirs:
            raise ValueError(f"{path} is of another network; choose another ckpt_dir to start a new run")
        best = state["best"]
        for name, weights in STARTED_ON.items():
            if best.get(name, self.settings.get(name)) != self.settings.get(name):
                raise ValueError(f"{path} was trained on another {weights}; remove it, or bring that back")
        if _trained(self.objects["optimizer"].state_dict()) != _trained(state["optimizer"]):
            raise ValueError(
                f"{path} is of a run that trains other parts of the network, or by another optimizer; choose another "
                "ckpt_dir"
            )
        for part, now in self.trained_as().items():
            before = json.loads(best.get(part, now))
            before = seen_of(before) if part == "data" and before else before  # older ones have sizes as typed
            for name, value in json.loads(now).items():
                if before.get(name, value) != value:
                    raise ValueError(
                        f"{path} was trained with {name} {before[name]}, this run has {value}; choose another ckpt_dir "
                        "to start a new run"
                    )

    def save(self, engine: Engine) -> None:
        """Saves what continues the run, unless its loss is not finite: good checkpoints are not to be replaced."""
        if getattr(engine.state, "bad_steps", 0):
            return
        state = {name: one.state_dict() for name, one in self.objects.items()}
        save_tensors(state, self.path(engine.state.epoch))
        self._log_hours()
        _begun(self.ckpt_dir, self.name).unlink(missing_ok=True)
        for path in checkpoints(self.ckpt_dir, self.name)[: -self.keep]:
            path.unlink()

    def finish(self, engine: Engine) -> None:
        """Takes the last validation into account, also in what continues the run when `max_epochs` is raised."""
        before = self.best_loss
        self.save_best(engine)
        if self.best_loss != before or not self.path(engine.state.epoch).exists():
            self.save(engine)
        if self.trains:  # a run that was finished already changes nothing
            self._log_hours()
        release(self.ckpt_dir, self.name)

    def _start_clock(self, continues: bool) -> None:
        self.started = time.monotonic()
        if continues:
            self.hours = self._described().get("training", {}).get("device_hours", 0.0)

    def _described(self) -> dict[str, Any]:
        """The JSON of the weights so far; empty where there is none that can be read."""
        try:
            return json.loads((self.ckpt_dir / f"{self.name}.json").read_bytes())
        except (OSError, ValueError):
            return {}

    def _device_hours(self) -> dict[str, Any]:
        """Hours of all devices together, all parts of the run and its validations included."""
        hours = self.hours + (time.monotonic() - self.started) * idist.get_world_size() / 3600
        return {"device_hours": hours, **self.hours_before}

    def _log_hours(self) -> None:
        """Tells the weights' JSON what the training took until now, though its best weights are of before."""
        described = self._described()
        if "training" in described:
            described["training"] |= self._device_hours()
            write_json(self.ckpt_dir / f"{self.name}.json", described)

    def save_best(self, engine: Engine) -> None:
        if self.evaluator.state.epoch != engine.state.epoch:
            return  # not validated in this epoch
        loss = float(self.evaluator.state.metrics["val_loss"])
        if loss < self.best_loss or self.keep_last:
            self.best_loss = loss
            extra: dict[str, Any] = {"epoch": engine.state.epoch, "step": engine.state.iteration, "val_loss": loss}
            extra |= {"computed_in": self.computed_in, **self._device_hours()}
            settings = {name: value for name, value in self.settings.items() if value is not None}
            save_weights(self.ema_network, self.ckpt_dir / f"{self.name}.pt", {**settings, "training": extra})


def _content(path: Path) -> Optional[dict[str, Any]]:
    """What is in a checkpoint, or None where it is truncated or holds anything else."""
    try:
        state = load_tensors(path)
        weights = [*state["network"].values(), *state["ema"].values()]
        steps = [state["trainer"][name] for name in ("epoch_length", "max_epochs", "iteration")]
        numbers = [*steps, state["best"]["best_loss"]]
        groups = _trained(state["optimizer"]), state["optimizer"]["state"]
    except (ValueError, LookupError, TypeError, AttributeError):
        return None
    of_type = ((weights, torch.Tensor), (numbers, (int, float)), (groups, (list, dict)))
    return state if all(isinstance(value, kind) for values, kind in of_type for value in values) else None


def _trained(optimizer: dict[str, Any]) -> list[list[int]]:
    """Numbers of the parameters in an optimiser's state, by group."""
    return [list(group["params"]) for group in optimizer["param_groups"]]
