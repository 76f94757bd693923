"""Work shared by processes of one machine, any of which may die."""

from __future__ import annotations

import os
import signal
from collections import deque
from contextlib import suppress
from multiprocessing import Pipe, Process
from multiprocessing.connection import Connection, wait
from typing import Any, Callable, Iterable, Iterator, Optional, Sequence

import torch

from ...hardware import machine_memory

WORKER_BYTES = 2 * 1024**3  # what preparing a CT needs at most, see benchmarks/ingest.py


class _Worker:
    """A process that applies a function to what it is sent, one list of items after another."""

    def __init__(self, function: Callable[[Any], Any]) -> None:
        self.pipe, theirs = Pipe()
        self.process = Process(target=_serve, args=(function, theirs, self.pipe), daemon=True)
        self.process.start()
        theirs.close()  # the worker's alone: its death is the end of the pipe
        self.items: list[Any] = []

    def send(self, items: list[Any]) -> None:
        self.items = items
        with suppress(OSError):  # it has just died, which is noticed when its answer is awaited
            self.pipe.send(items)

    def stop(self) -> None:
        with suppress(OSError):  # it is dead already
            self.pipe.send(None)  # closing would not do: workers that started later hold this end, too
        self.pipe.close()
        self.process.join()


def _serve(function: Callable[[Any], Any], pipe: Connection, parents: Connection) -> None:
    parents.close()  # else the parent's death would not be noticed; it ends the last worker, and that the one before
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the parent stops its workers
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    torch.set_num_threads(1)
    with suppress(EOFError, OSError):  # no more work, or nobody left to work for
        while (items := pipe.recv()) is not None:
            pipe.send(_results(function, items))


def _results(function: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
    try:
        return [function(item) for item in items]
    except OSError:
        raise SystemExit(1) from None  # not taken for the end of the pipe


def work(
    function: Callable[[Any], Any],
    items: Sequence[Any],
    num_workers: int,
    died: Callable[[Any, str], Any],
    batch_size: int = 1,
) -> Iterator[Any]:
    """Results in any order, from worker processes; a library that ends its process costs one item, not the rest.

    Args:
        function: of an item; it tells of failures in its result.
        items: to work on.
        num_workers: processes; at least one is used.
        died: gives the result of an item at which two processes died, from the item and the cause in words. The second
            works on it alone, so that memory which others took is no cause.
        batch_size: items sent to a process at a time.
    """
    batches = [list(items[start : start + batch_size]) for start in range(0, len(items), batch_size)]
    lost: list[Any] = []
    for results, cause in _shared(function, batches, num_workers):
        lost += results if cause else []
        yield from [] if cause else results
    for results, cause in _shared(function, [[item] for item in lost], 1):
        yield from [died(item, cause) for item in results] if cause else results


def _shared(
    function: Callable[[Any], Any], batches: Iterable[list[Any]], num_workers: int
) -> Iterator[tuple[list[Any], str]]:
    """(results, '') of each batch, or (its items, why) where its process died."""
    todo = deque(batches)
    workers = [_Worker(function) for _ in range(min(max(num_workers, 1), len(todo)))]
    try:
        for worker in workers:
            worker.send(todo.popleft())
        while workers:
            for pipe in wait([worker.pipe for worker in workers]):
                worker = next(worker for worker in workers if worker.pipe is pipe)
                try:
                    yield worker.pipe.recv(), ""
                except (EOFError, OSError):
                    worker.stop()
                    yield worker.items, _cause_of_death(worker.process.exitcode)
                    workers[workers.index(worker)] = worker = _Worker(function) if todo else worker
                if todo:
                    worker.send(todo.popleft())
                else:
                    workers.remove(worker)
                    worker.stop()
    finally:
        for worker in workers:
            worker.process.terminate()
            worker.stop()


def died(cause: str) -> str:
    """The reason of a source at which its process ended."""
    return f"the process that read it was {cause}"


def _cause_of_death(exit_code: Optional[int]) -> str:
    if exit_code == -9:  # SIGKILL, which Windows lacks
        return "killed by the system, likely for want of memory"
    if exit_code is not None and exit_code < 0:
        return f"ended by {signal.Signals(-exit_code).name}"
    return f"ended with status {exit_code}"


def worker_count(num_workers: Optional[int]) -> int:
    """The processes to use: as many as asked for, or one for each core that has memory, shared by torchrun's ranks."""
    if num_workers is not None:
        if num_workers < 0:
            raise ValueError(f"num_workers must be 0 or more, got {num_workers}")
        return num_workers
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    memory = machine_memory()
    most = cores if memory is None else min(cores, memory // WORKER_BYTES)
    return max(1, most // max(1, int(os.environ.get("LOCAL_WORLD_SIZE", 1))))
