"""What a user sees of a training run: progress bar, CSV, validation metrics."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any, Sequence, Sized, Union

import torch
from ignite.engine import Engine, Events
from ignite.metrics import Average
from tqdm import tqdm

from ..files import write_text
from .losses import NOISE_AND_SIGNAL, loss_terms


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


class LossMetric(Average):
    """Mean of the loss ('loss') or one of its terms, by the name of the prediction, over an epoch and all ranks."""

    def __init__(self, term: str = "loss", predictions: Sequence[str] = NOISE_AND_SIGNAL) -> None:
        super().__init__(output_transform=lambda output: loss_terms(output, predictions)[term])


def term_metrics(predictions: Sequence[str]) -> dict[str, LossMetric]:
    """The terms of the validation loss as metrics, for instance 'val_noise' and 'val_signal'."""
    return {f"val_{name}": LossMetric(name, predictions) for name in predictions}


class TrainingProgress:
    """A bar over the whole run with the time it will still take, the loss and the last validation loss."""

    def __init__(self, evaluator: Engine) -> None:
        self.evaluator = evaluator

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.EPOCH_STARTED, self.start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.update)
        engine.add_event_handler(Events.COMPLETED, self.finish)

    def start(self, engine: Engine) -> None:
        if not hasattr(self, "bar"):  # only now a continued run knows how far it is
            total = engine.state.max_epochs * engine.state.epoch_length
            self.bar = tqdm(total=total, initial=engine.state.iteration, unit="step", dynamic_ncols=True)

    def update(self, engine: Engine) -> None:
        self.bar.set_description(f"epoch {engine.state.epoch}/{engine.state.max_epochs}", refresh=False)
        shown = {"loss": f"{engine.state.output['loss'].item():.4f}"}
        if "val_loss" in self.evaluator.state.metrics:
            shown["val_loss"] = f"{self.evaluator.state.metrics['val_loss']:.4f}"
        self.bar.set_postfix(shown, refresh=False)
        self.bar.update()

    def finish(self, engine: Engine) -> None:
        if hasattr(self, "bar"):
            self.bar.close()
        else:
            print(f"trained to epoch {engine.state.epoch} already; raise max_epochs to train on")


class LossCSV:
    """One line per epoch: step, learning rate, the training loss and its terms (means), the validation metrics.

    Args:
        path: of the CSV; a continued run appends.
        optimizer: for the learning rate.
        evaluator: whose metrics it writes.
        predictions: of the process; names of the terms.
    """

    def __init__(
        self,
        path: Union[str, Path],
        optimizer: torch.optim.Optimizer,
        evaluator: Engine,
        predictions: Sequence[str] = NOISE_AND_SIGNAL,
    ) -> None:
        self.path, self.optimizer, self.evaluator, self.predictions = Path(path), optimizer, evaluator, predictions
        self.sums: dict[str, float] = {}
        self.last: dict[str, Any] = {}
        self.steps = 0

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.add)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.write)
        engine.add_event_handler(Events.COMPLETED, self.complete)

    def add(self, engine: Engine) -> None:
        for name, value in loss_terms(engine.state.output, self.predictions).items():
            self.sums[name] = self.sums.get(name, 0.0) + value
        self.steps += 1

    def write(self, engine: Engine) -> None:
        row: dict[str, Any] = {"epoch": engine.state.epoch, "step": engine.state.iteration}
        row["lr"] = f"{self.optimizer.param_groups[0]['lr']:.3e}"
        row.update({f"train_{name}": f"{value / self.steps:.6f}" for name, value in self.sums.items()})
        self.put(row, engine)
        self.sums, self.steps = {}, 0

    def complete(self, engine: Engine) -> None:
        """Adds the last validation, which comes after the last epoch where `val_interval` does not divide it."""
        if self.last and self.evaluator.state.epoch == engine.state.epoch:
            self.put(self.last, engine)

    def put(self, row: dict[str, Any], engine: Engine) -> None:
        """Writes a row in place of those of its epoch and later, which a broken run left behind its last checkpoint."""
        validated = self.evaluator.state.metrics if self.evaluator.state.epoch == engine.state.epoch else {}
        for name in ("loss", *self.predictions):
            row[f"val_{name}"] = f"{validated[f'val_{name}']:.6f}" if f"val_{name}" in validated else ""
        rows = []
        if self.path.is_file():
            with open(self.path, newline="") as file:
                rows = [old for old in csv.DictReader(file) if int(old["epoch"]) < row["epoch"]]
        write_text(self.path, _table([*rows, row]))
        self.last = row


def _table(rows: list[dict[str, Any]]) -> str:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, rows[-1])
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
