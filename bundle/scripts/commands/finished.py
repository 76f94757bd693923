"""Which stages of a training are finished, so that the command that trains them all goes on with the next."""

from __future__ import annotations

import json
from pathlib import Path

from .runs import Run


def is_finished(run: Run) -> bool:
    """Whether prdit has trained these weights to the end, with the same settings."""
    mark = _mark(run)
    try:
        return bool(run.stage) and run.weights().is_file() and mark.read_text() == _content(run)
    except OSError:
        return False


def mark_finished(run: Run) -> None:
    """Remembers that a stage was trained to the end."""
    if run.stage and run.weights().is_file():
        from ..files import write_text

        write_text(_mark(run), _content(run))


def _mark(run: Run) -> Path:
    return run.weights().with_name(f".{run.stage}.finished")


def _content(run: Run) -> str:
    return json.dumps([run.stack, dict(run.settings)])
