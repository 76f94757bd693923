"""Work shared by processes of one machine."""

from __future__ import annotations

import os
from typing import Any, Callable, Iterable, Optional, Sequence

from torch.utils.data import DataLoader, Dataset

WORKER_BYTES = 2 * 1024**3  # what preparing a CT needs at most, see benchmarks/ingest.py


class _Mapped(Dataset):
    """A function over a sequence, for the worker processes of a DataLoader."""

    def __init__(self, function: Callable[[Any], Any], items: Sequence[Any]) -> None:
        self.function, self.items = function, items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        return self.function(self.items[index])


def work(function: Callable[[Any], Any], items: Sequence[Any], num_workers: int, batch_size: int = 1) -> Iterable[Any]:
    """Results in any order, from worker processes.

    Raises:
        ValueError: in one line, when the system killed a worker.
    """
    loader = DataLoader(
        _Mapped(function, items), batch_size, num_workers=num_workers, collate_fn=list, in_order=False, prefetch_factor=1
    ) if num_workers else [[function(item)] for item in items]  # fmt: skip
    try:
        for batch in loader:
            yield from batch
    except RuntimeError as error:
        if "killed by signal" not in str(error) and "exited unexpectedly" not in str(error):
            raise
        raise ValueError(
            "a worker process was killed, likely for want of memory; lower num_workers, run again"
        ) from None


def worker_count(num_workers: Optional[int]) -> int:
    """The processes to use: as many as asked for, or one for each core that has memory, shared by torchrun's ranks."""
    if num_workers is not None:
        if num_workers < 0:
            raise ValueError(f"num_workers must be 0 or more, got {num_workers}")
        return num_workers
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return max(1, min(cores, memory // WORKER_BYTES) // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))
