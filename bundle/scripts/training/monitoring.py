"""What a user sees of a training run: progress bar, CSV, validation metrics."""

from __future__ import annotations

import csv
import io
import math
import sys
import time
from pathlib import Path
from typing import Any, Optional, Sequence, Sized, Union

import ignite.distributed as idist
import numpy as np
import torch
from ignite.engine import Engine, Events
from ignite.metrics import Average
from monai.handlers import TensorBoardStatsHandler
from PIL import Image
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from torch import nn
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from ..files import write_text
from ..hardware import device_name
from .objectives import StepNumbers, numbers_of
from .pictures import picture_path


def validation_share(dataset: Sized, rank: int, world_size: int) -> range:
    """Indices of the volumes that one of several processes validates on.

    Raises:
        ValueError: in one line, when a process would have none: the others would wait for its metrics for ever.
    """
    if len(dataset) < world_size:
        raise ValueError(
            f"there are {len(dataset)} validation volumes for {world_size} processes; use fewer processes or validate on more"
        )
    return range(rank, len(dataset), world_size)


@idist.one_rank_only()
def tell_run(what: str, network: nn.Module, computed_in: dict[str, str], device: Union[str, torch.device]) -> None:
    """Prints what is trained, how large it is, and in what.

    Args:
        what: is trained.
        network: that the trainer calls.
        computed_in: see `scripts.inferers.computed_in`.
        device: where it runs.
    """
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in network.parameters()]
    trained, total = sum(size for size, trains in sizes if trains), sum(size for size, _ in sizes)
    where = f"{computed_in['precision']} on {device_name(device)}"
    print(f"trains {what}: {trained / 1e6:.2f} of {total / 1e6:.2f} million parameters, in {where}")


class LossMetric(Average):
    """Mean of the loss ('loss') or one of the objective's terms, by its name, over an epoch and all ranks."""

    def __init__(self, term: str = "loss") -> None:
        super().__init__(output_transform=lambda output: numbers_of(output)[term])


def term_metrics(terms: Sequence[str]) -> dict[str, LossMetric]:
    """The terms of the validation loss as metrics, for instance 'val_noise' and 'val_signal'."""
    return {f"val_{name}": LossMetric(name) for name in terms}


class _Bar(tqdm):
    """A bar that is told how long the rest takes, since steps are not all that takes time."""

    seconds_left = float("nan")

    @property
    def format_dict(self) -> dict[str, Any]:
        left = self.format_interval(self.seconds_left) if self.seconds_left == self.seconds_left else "?"
        return {**super().format_dict, "left": left}


class TrainingProgress:
    """A bar over the whole run with the time it will still take, validation included, and the losses.

    The losses are those of a step a second, for each look waits for a GPU. Where there is no terminal, it prints a line
    after each validation and not more than two a minute.

    Args:
        evaluator: that validates.
        val_interval: epochs between validations.
    """

    def __init__(self, evaluator: Engine, val_interval: int = 1) -> None:
        self.evaluator, self.val_interval = evaluator, val_interval
        self.seconds = {"steps": 0.0, "validations": 0.0}
        self.count = {"steps": 0, "validations": 0}
        self.printed = -math.inf

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.EPOCH_STARTED, self.start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.update)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.validated)
        engine.add_event_handler(Events.COMPLETED, self.finish)

    def start(self, engine: Engine) -> None:
        if not hasattr(self, "bar"):  # only now a continued run knows how far it is
            total = engine.state.max_epochs * engine.state.epoch_length
            layout = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}<{left}{postfix}]"
            self.bar = _Bar(
                total=total,
                initial=engine.state.iteration,
                dynamic_ncols=True,
                bar_format=layout,
                disable=not sys.stderr.isatty(),
            )
            self.clock = time.monotonic()

    def lap(self, of: str) -> None:
        """Counts the time since the last call as that of one more step or validation."""
        now = time.monotonic()
        self.seconds[of] += now - self.clock
        self.count[of] += 1
        self.clock = now

    def update(self, engine: Engine) -> None:
        self.lap("steps")
        self.show(engine, 1)

    def validated(self, engine: Engine) -> None:
        if self.evaluator.state.epoch == engine.state.epoch:
            self.lap("validations")
            self.printed = -math.inf
            self.show(engine, 0)

    def show(self, engine: Engine, steps: int) -> None:
        state = engine.state
        left = {
            "steps": self.bar.total - state.iteration,
            "validations": math.ceil(state.max_epochs / self.val_interval)
            - state.iteration // state.epoch_length // self.val_interval,
        }
        self.bar.seconds_left = sum(left[of] * self.seconds[of] / max(1, self.count[of]) for of in left)
        where = f"epoch {state.epoch}/{state.max_epochs}"
        self.bar.set_description(where, refresh=False)
        if time.monotonic() - self.printed > (30 if self.bar.disable else 1):
            self.printed = time.monotonic()
            losses = {"loss": f"{state.output['loss'].item():.4f}"}
            if "val_loss" in self.evaluator.state.metrics:
                losses["val_loss"] = f"{self.evaluator.state.metrics['val_loss']:.4f}"
            self.bar.set_postfix(losses, refresh=not steps)
            numbers = ", ".join(f"{name} {value}" for name, value in losses.items())
            left_text = self.bar.format_interval(self.bar.seconds_left)
            if self.bar.disable:
                print(f"{where}, step {state.iteration}/{self.bar.total}: {numbers}, {left_text} left", file=sys.stderr)
        self.bar.update(steps)

    def finish(self, engine: Engine) -> None:
        if hasattr(self, "bar"):
            self.bar.close()
        else:
            print(
                f"trained to epoch {engine.state.epoch} already; raise max_steps, or max_epochs where it is given, to train on"
            )


_UNMADE: Any = object()  # MONAI makes a writer, and its file, where there is none


class TensorBoardLog(TensorBoardStatsHandler):
    """The loss and its terms at each step and the validation metrics at the step of their epoch, for TensorBoard.

    A continued run hides what a broken one has logged after its last checkpoint, so that no step is there twice.

    Args:
        log_dir: folder.
        evaluator: whose metrics it writes.
        optimizer: for the learning rate.
        pictures: folder and start of the names of those of `TrainingPictures`, which comes before.
    """

    _writer: Any  # MONAI's, without a type

    def __init__(
        self,
        log_dir: str,
        evaluator: Engine,
        optimizer: Optional[torch.optim.Optimizer] = None,
        pictures: Optional[str] = None,
    ) -> None:
        super().__init__(summary_writer=_UNMADE, epoch_event_writer=self.write_validation)
        self.log_dir, self.evaluator, self.optimizer, self.pictures = log_dir, evaluator, optimizer, pictures
        self.validated, self.numbers = 0, StepNumbers()

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.write_steps)
        super().attach(engine)
        engine.add_event_handler(Events.EPOCH_STARTED, self.start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.write_rate)
        engine.add_event_handler(
            Events.COMPLETED, self.epoch_completed
        )  # the last validation comes after the last epoch

    def start(self, engine: Engine) -> None:
        """Makes the file, which a run that is refused must not leave.

        Only now a continued run knows its step; TensorBoard drops what lies after it in older files.
        """
        if self._writer is _UNMADE:
            self._writer = SummaryWriter(log_dir=self.log_dir)
            start = SessionLog(status=SessionLog.START)
            self._writer.file_writer.add_event(Event(step=engine.state.iteration + 1, session_log=start))

    def iteration_completed(self, engine: Engine) -> None:
        if self.numbers.add(engine):
            self.write_steps()

    def write_steps(self) -> None:
        for step, numbers in self.numbers.fetch():
            for name, value in numbers.items():
                self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def write_rate(self, engine: Engine) -> None:
        if self.optimizer is not None:
            self._writer.add_scalar("lr", self.optimizer.param_groups[0]["lr"], engine.state.iteration)

    def write_validation(self, engine: Engine, writer: SummaryWriter) -> None:
        if self.validated < self.evaluator.state.epoch == engine.state.epoch:
            self.validated = engine.state.epoch
            self.start(engine)  # a run may have nothing left to do but its last validation
            for name, value in self.evaluator.state.metrics.items():
                self._writer.add_scalar(name, value, engine.state.iteration)
            if self.pictures and (picture := picture_path(self.pictures, self.validated)).is_file():
                pixels = np.asarray(Image.open(picture).convert("RGB"))
                self._writer.add_image("denoised and sampled", pixels, engine.state.iteration, dataformats="HWC")


class LastValidation:
    """Validates the end of a run whose length is no multiple of the validation's interval.

    It comes before the handlers that write what was validated.

    Args:
        evaluator: that validates.
    """

    def __init__(self, evaluator: Engine) -> None:
        self.evaluator = evaluator

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        if self.evaluator.state.epoch != engine.state.epoch:
            self.evaluator.run(engine.state.epoch)


class LossCSV:
    """One line per epoch: step, learning rate, the training loss and its terms (means), the validation metrics.

    It comes before `TrainingCheckpoint`: a run that is killed between both draws its last epoch again, and its line with
    it. In the other order the line would be missing for ever.

    Args:
        path: of the CSV; a continued run appends.
        optimizer: for the learning rate.
        evaluator: whose metrics it writes.
        terms: of the objective.
    """

    def __init__(
        self, path: Union[str, Path], optimizer: torch.optim.Optimizer, evaluator: Engine, terms: Sequence[str]
    ) -> None:
        self.path, self.optimizer, self.evaluator, self.terms = Path(path), optimizer, evaluator, ("loss", *terms)
        self.sums: dict[str, float] = {}
        self.steps, self.numbers = 0, StepNumbers()

    def attach(self, engine: Engine) -> None:
        self.rows()  # one that cannot be read is found now, and not after an epoch
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.add)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.write)
        engine.add_event_handler(Events.COMPLETED, self.complete)

    def add(self, engine: Engine) -> None:
        if self.numbers.add(engine):
            self.count()

    def count(self) -> None:
        for _, numbers in self.numbers.fetch():
            for name, value in numbers.items():
                self.sums[name] = self.sums.get(name, 0.0) + value
            self.steps += 1

    def write(self, engine: Engine) -> None:
        self.count()
        row: dict[str, Any] = {"epoch": engine.state.epoch, "step": engine.state.iteration}
        row["lr"] = f"{self.optimizer.param_groups[0]['lr']:.3e}"
        row.update({f"train_{name}": f"{value / self.steps:.6f}" for name, value in self.sums.items()})
        self.put(row, engine)
        self.sums, self.steps = {}, 0

    def complete(self, engine: Engine) -> None:
        """Adds the last validation, which comes after the last epoch where `val_interval` does not divide it."""
        row = self.rows().get(engine.state.epoch)
        if row is not None and self.evaluator.state.epoch == engine.state.epoch:
            self.put(row, engine)

    def put(self, row: dict[str, Any], engine: Engine) -> None:
        """Writes a row in place of those of its epoch and later, which a broken run left behind its last checkpoint."""
        validated = self.evaluator.state.metrics if self.evaluator.state.epoch == engine.state.epoch else {}
        for name in self.terms:
            row[f"val_{name}"] = f"{validated[f'val_{name}']:.6f}" if f"val_{name}" in validated else ""
        rows = [old for epoch, old in self.rows().items() if epoch < engine.state.epoch]
        write_text(self.path, _table([*rows, row]))

    def rows(self) -> dict[int, dict[str, Any]]:
        """What is in the file, by epoch.

        Raises:
            ValueError: in one line, when it is not what a run has written.
        """
        if not self.path.is_file():
            return {}
        try:
            with open(self.path, newline="", encoding="utf-8") as file:
                table = csv.DictReader(file)
                rows = {int(row["epoch"]): row for row in table}
                if not table.fieldnames or list(table.fieldnames) != self.columns():
                    raise ValueError("of something else")
                return rows
        except (ValueError, KeyError, TypeError, csv.Error):
            raise ValueError(
                f"{self.path} is damaged, or no table of this run's losses, and would be replaced; move it away, and run "
                "again"
            ) from None

    def columns(self) -> list[str]:
        return ["epoch", "step", "lr", *(f"{kind}_{name}" for kind in ("train", "val") for name in self.terms)]


def _table(rows: list[dict[str, Any]]) -> str:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, rows[-1], extrasaction="ignore")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
