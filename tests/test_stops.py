"""Runs that somebody ends say in one line how far they are, and go on from there."""

import os
import signal
import subprocess
import sys

import pytest
import yaml
from bundle_runs import CONFIGS, losses, run, run_process, training
from ignite.engine import Events

from scripts.data.ingest import dataset as ingest
from scripts.data.ingest.volume_job import VolumeJob
from scripts.stops import Terminated, stop_line, stoppable


class StopAt:
    """A handler for configs: the signal comes when an iteration of the run begins."""

    def __init__(self, iteration, signum):
        self.iteration, self.signum = iteration, signum

    def attach(self, engine):
        engine.add_event_handler(
            Events.ITERATION_STARTED(once=self.iteration), lambda: signal.raise_signal(self.signum)
        )


@pytest.fixture(autouse=True)
def interrupts_are_heard():
    """A shell lets what it runs in the background ignore Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def stop_at(tmp_path):
    """An overlay that ends a run by a signal: stop_at('train::handlers', iteration, signum) is its name."""

    def write(handlers, iteration, signum=signal.SIGINT):
        target = {"_target_": "test_stops.StopAt", "iteration": iteration, "signum": int(signum)}
        (tmp_path / "stop.yaml").write_text(yaml.safe_dump({f"+{handlers}": [target]}))
        return str(tmp_path / "stop")

    return write


def line_of(run_id, stack, **settings):
    """What a run that is ended says."""
    with pytest.raises(KeyboardInterrupt) as stopped:
        run(run_id, stack, **settings)
    return stop_line(stopped.value)


def test_training_says_which_epoch_is_kept_and_goes_on_as_if_it_had_not_been_stopped(tmp_path, stop_at):
    stack, settings = training(1, tmp_path / "stopped", max_epochs=4)
    early, later = (
        "before the first checkpoint; the same command begins again",
        "after epoch 2 of 4; the same command continues",
    )
    assert line_of("training", [*stack, stop_at("train::handlers", 2)], **settings) == f"stopped {early}"
    assert line_of("training", [*stack, stop_at("train::handlers", 6)], **settings) == f"stopped {later}"
    run("training", stack, **settings)
    whole, settings = training(1, tmp_path / "whole", max_epochs=4)
    run("training", whole, **settings)
    assert losses(tmp_path / "stopped") == losses(tmp_path / "whole")


def test_sampling_counts_the_volumes_that_are_there(trained, tmp_path, stop_at):
    settings = {"ckpt_path": trained / "ckpt" / "model.pt", "num_samples": 3, "num_inference_steps": 1}
    settings["output_dir"] = tmp_path / "out"
    stopping = ["inference", stop_at("handlers", 2)]
    assert line_of("run", stopping, **settings) == "stopped after 1 of 3 volumes; the same command continues"
    assert line_of("run", stopping, **settings) == "stopped after 2 of 3 volumes; the same command continues"
    run("run", ["inference"], **settings)
    line = line_of("run", stopping, **settings, overwrite=True)
    assert line == "stopped after 1 of 3 volumes; the same command, without overwrite, continues"


def test_preparing_counts_the_volumes(prepare, tmp_path, chest, write_nifti, monkeypatch):
    for name in "abc":
        write_nifti(chest, name=f"in/{name}.nii.gz")

    def two_only(function, items, *_):
        for number, item in enumerate(items):
            if isinstance(function, VolumeJob) and number == 2:
                raise KeyboardInterrupt
            yield function(item)

    monkeypatch.setattr(ingest, "work", two_only)
    with pytest.raises(KeyboardInterrupt) as stopped:
        prepare(tmp_path / "in")
    assert stop_line(stopped.value) == "stopped after 2 of 3 volumes; the same command continues"


def test_the_line_is_of_the_innermost_work_and_of_stops_alone():
    with pytest.raises(Terminated) as stopped, stoppable(lambda: "outside"), stoppable(lambda: "after this"):
        raise Terminated
    assert stop_line(stopped.value) == "stopped after this"
    with pytest.raises(ValueError) as failed, stoppable(lambda: "after this"):
        raise ValueError("x")
    assert stop_line(failed.value) is None and not hasattr(failed.value, "__notes__")


def test_sigterm_ends_the_program_with_its_status(tmp_path, stop_at, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.path.dirname(__file__))
    stack, settings = training(1, tmp_path, max_epochs=4)
    overlay = stop_at("train::handlers", 3, signal.SIGTERM)
    settings = {name: str(value).replace(" ", "") for name, value in settings.items()}
    process = run_process("training", [*stack, overlay], tmp_path, **settings)
    assert process.returncode == 128 + signal.SIGTERM
    assert process.stderr.splitlines()[-1] == "stopped after epoch 1 of 4; the same command continues"
    assert "Traceback" not in process.stderr + process.stdout


def test_a_pipe_that_nobody_reads_ends_the_program_quietly(tmp_path, write_nifti, chest):
    """As after `| head -1`: with a shell's status for SIGPIPE, and no traceback."""
    write_nifti(chest, name="in/a.nii.gz")
    command = [
        sys.executable,
        "-W",
        "ignore",
        "-m",
        "monai.bundle",
        "run",
        "--config_file",
        str(CONFIGS / "preprocess.yaml"),
    ]
    command += ["--source_dir", "in", "--dataset_dir", "D", "--size", "32", "--spacing", "10", "--num_workers", "0"]
    command += ["--center", "volume"]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    first = process.stdout.readline()
    process.stdout.close()
    said = process.stderr.read()
    assert process.wait() == 141 and "Traceback" not in said and "error:" not in said, said
    assert "logging.conf" in first  # and MONAI says no more
