"""Runs that somebody ends: Ctrl-C, SIGTERM of a batch system, a pipe that nobody reads any more."""

from __future__ import annotations

import os
import signal
import sys
from contextlib import contextmanager
from typing import Any, Callable, Iterator, NoReturn, Optional

from ignite.engine import Engine, Events

TERMINATED, PIPE_CLOSED = 128 + signal.SIGTERM, 141  # exit statuses, as shells count them


class Terminated(KeyboardInterrupt):
    """SIGTERM, which ends a run as Ctrl-C does: temporary files are removed, and the line says how far it is."""


def _terminate(signum: int, frame: Any) -> NoReturn:
    raise Terminated


def raise_at_sigterm() -> None:
    """Makes SIGTERM an exception, unless it is ignored or there are more processes.

    Those wait for each other inside of NCCL or gloo, where no Python runs: there SIGTERM goes on to end each at once.
    """
    if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL and os.environ.get("WORLD_SIZE", "1") == "1":
        signal.signal(signal.SIGTERM, _terminate)


@contextmanager
def stoppable(progress: Callable[[], str]) -> Iterator[None]:
    """Work that Ctrl-C and SIGTERM may end: `progress` says how far it is and what continues it."""
    try:
        yield
    except KeyboardInterrupt as stop:
        stop.add_note(progress())
        raise


def stoppable_engine(engine: Engine, progress: Callable[[], str]) -> None:
    """`stoppable` for a run of Ignite's engine."""

    def reraise(_: Engine, error: BaseException) -> None:
        with stoppable(progress):
            raise error

    engine.add_event_handler(Events.EXCEPTION_RAISED, reraise)


def stop_line(error: BaseException) -> Optional[str]:
    """The line for the user about a run that was ended; None for any other error."""
    if not isinstance(error, KeyboardInterrupt):
        return None
    notes = getattr(error, "__notes__", [])
    return " ".join(["stopped", *notes[:1]])


def is_closed_pipe(error: BaseException) -> bool:
    """Whether nobody reads what this process prints, as after `| head -1`; what it prints from now on is dropped."""
    if not isinstance(error, BrokenPipeError):
        return False
    try:
        print(flush=True)
        return False
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return True
