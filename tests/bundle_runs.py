"""Configs as a user runs them, from another folder, at a tiny size: what the tests of the bundle share."""

import csv
import os
import re
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from ignite.engine import Events
from monai.bundle import ConfigWorkflow

from scripts.errors import is_bad_input, root_cause

CONFIGS = Path(__file__).resolve().parents[1] / "bundle" / "configs"
DATA = Path(__file__).resolve().parent / "data"
TINY = {
    "grid": [16, 16, 16], "hidden_size": 24, "num_heads": 4, "patch_size": 6, "stride": 4, "local_patch_size": 4,
    "local_stride": 2, "num_phantoms": 8, "num_validation_phantoms": 2, "batch_size": 4, "num_validation_times": 3,
    "local_window": 2, "depth": 0, "val_interval": 1, "num_pictures": 0, "device": "$torch.device('cpu')",
}  # fmt: skip


def config_files(*names):
    return [str(CONFIGS / f"{name}.yaml") for name in names]


def run(run_id, stack, **settings):
    """Runs a config stack in this process, as `python -m monai.bundle run` does after parsing its arguments."""
    given = {name: str(value) if isinstance(value, Path) else value for name, value in settings.items()}
    workflow = ConfigWorkflow(config_files(*stack), run_id=run_id, logging_file=False, workflow_type=None, **given)
    workflow.initialize()
    workflow.run()


def run_process(run_id, stack, folder, launcher=(), **settings):
    """Runs a config stack as a user does, in a process of its own, in `folder`; returns the finished process."""
    files = str(config_files(*stack))
    command = [sys.executable, *launcher, "-m", "monai.bundle", "run", run_id, "--config_file", files]
    for name, value in settings.items():
        command += [f"--{name}", str(value)]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=300)


def training(stage, folder, **settings):
    """Stack and settings of a tiny training run with its checkpoints in `folder`/ckpt."""
    stack = ["train"] if stage == 1 else ["train", "train_global"]
    of_stage = {"depth": 2, "local_window": 0} if stage == 2 else {}
    return stack, {**TINY, **of_stage, "ckpt_dir": folder / "ckpt", **settings}


def train(stage, folder, **settings):
    stack, given = training(stage, folder, **settings)
    run("training", stack, **given)


def sample(**settings):
    run("run", ["inference"], **settings)


@contextmanager
def assert_refused(*facts):
    """Bad input: an error of ours that says the facts in one line, which `errors` prints without a traceback."""
    with pytest.raises((ValueError, RuntimeError)) as caught:
        yield
    cause = root_cause(caught.value)
    assert is_bad_input(cause), repr(cause)
    assert "\n" not in str(cause)
    for fact in facts:
        assert str(fact) in str(cause)


def losses(folder, stage="local"):
    with open(folder / "ckpt" / f"{stage}_losses.csv") as file:
        return list(csv.DictReader(file))


def bytes_of(path):
    """A file without the hours that a training took, which no two runs have alike."""
    return re.sub(rb'"device_hours[^\n]*\n', b"", path.read_bytes())


class KeepWeights:
    """A handler for configs: each process keeps the weights that it ends with."""

    def __init__(self, network, folder, rank):
        self.network, self.path = network, Path(folder) / f"rank{rank}.pt"

    def attach(self, engine):
        engine.add_event_handler(Events.COMPLETED, lambda: torch.save(self.network.state_dict(), self.path))
