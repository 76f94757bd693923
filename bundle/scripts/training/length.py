"""How long a run is: in steps of the optimiser, so that 40 patients and 4,000 both train."""

from __future__ import annotations

import math
import sys
from typing import Optional

import ignite.distributed as idist

from ..words import count

FEW_STEPS = 300  # a third of the 920 that the shipped stage 1 took: a choice, not measured


def run_length(
    max_steps: int,
    batches: int,
    max_epochs: Optional[int] = None,
    epoch_length: Optional[int] = None,
    val_interval: Optional[int] = None,
    checkpoint_interval: Optional[int] = None,
) -> dict[str, int]:
    """Epochs, their steps, and what happens between them, each as given or else from the number of steps.

    Args:
        max_steps: steps of the run; the last epoch is finished.
        batches: steps once over the data.
        max_epochs: instead of `max_steps`.
        epoch_length: steps of an epoch; None: once over the data.
        val_interval: epochs between validations; None: eight validations.
        checkpoint_interval: epochs between checkpoints; None: each, in runs of 100 epochs and more 50 to 100 of them.

    Returns:
        'epoch_length', 'max_epochs', 'val_interval', 'checkpoint_interval'.
    """
    steps = epoch_length or batches
    epochs = max_epochs or math.ceil(max_steps / steps)
    return {
        "epoch_length": steps,
        "max_epochs": epochs,
        "val_interval": val_interval or math.ceil(epochs / 8),
        "checkpoint_interval": checkpoint_interval or max(1, epochs // 50),
    }


def steps_of(epochs: int, batches: int) -> int:
    """Steps of so many epochs of so many batches, for a recipe that counts epochs; a typed `max_steps` replaces it."""
    return epochs * batches


@idist.one_rank_only()
def tell_length(length: dict[str, int], volumes: int, batch_size: int) -> None:
    """Prints how long the run is, and warns of one that is too short to learn from.

    Args:
        length: see `run_length`.
        volumes: training volumes.
        batch_size: volumes a step, of this process.
    """
    steps = length["max_epochs"] * length["epoch_length"]
    print(
        f"{count(steps, 'step')} of {count(batch_size, 'volume')}, {count(length['max_epochs'], 'epoch')}, on "
        f"{count(volumes, 'training volume')}; validates every "
        + ("epoch" if length["val_interval"] == 1 else count(length["val_interval"], "epoch"))
    )
    if steps < FEW_STEPS:
        print(
            f"warning: a run of {count(steps, 'step')} is too short to learn much; set max_steps to {FEW_STEPS} or more",
            file=sys.stderr,
        )
