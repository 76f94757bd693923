"""Commands killed at their file operations and repeated make the same files as those that were not killed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from kills import COMMANDS

SCRIPT = Path(__file__).with_name("kills.py")


def kill(*arguments):
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", str(SCRIPT), *arguments]
    process = subprocess.run(command, env=env, capture_output=True, text=True)
    assert process.returncode == 0, process.stdout + process.stderr
    assert "0 kills" not in process.stdout, process.stdout


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_some_kills_leave_no_trace():
    kill("export", "train_1", "--first", "3", "--every", "9")


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.parametrize("command", COMMANDS)
def test_no_kill_leaves_a_trace(command):
    kill(command)
