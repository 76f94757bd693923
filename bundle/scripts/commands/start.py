"""Starts runs of MONAI, without what MONAI and Ignite say of themselves."""

from __future__ import annotations

import logging
import os
import runpy
import sys
import warnings
from pathlib import Path
from typing import Any, Callable, Sequence

from .runs import Run

PRDIT = Path(__file__).resolve().parents[2] / "prdit.py"
SECONDS_BETWEEN_LINES = "30"  # where no terminal can draw a bar


def start(one: Run, verbose: bool) -> int:
    """Runs one in this process, or in as many as it asks for; its exit status."""
    if verbose:
        print(one.line())
    if one.processes > 1:
        return _start_processes(one, verbose)
    run_monai(one.words(), verbose)
    return 0


def run_monai(words: Sequence[str], verbose: bool = False) -> None:
    """`python -m monai.bundle ...` in this process."""
    if not verbose:
        logging.disable(logging.INFO)
        warnings.simplefilter("ignore")
        os.environ.setdefault("PYTHONWARNINGS", "ignore")  # of processes that load data
    if not sys.stderr.isatty():
        _lines_instead_of_bars()
    sys.argv = ["monai.bundle", *words]
    runpy.run_module("monai.bundle", run_name="__main__", alter_sys=True)


def _lines_instead_of_bars() -> None:
    """A line now and then in place of a bar that is drawn again and again: log files stay readable."""
    os.environ.setdefault("TQDM_MININTERVAL", SECONDS_BETWEEN_LINES)  # tqdm reads it when it is imported
    import tqdm

    def printer(file: Any) -> Callable[[str], None]:
        def show(text: str) -> None:
            if text.strip():
                file.write(f"{text.strip()}\n")

        return show

    tqdm.tqdm.status_printer = staticmethod(printer)


def _start_processes(one: Run, verbose: bool) -> int:
    """`torchrun --standalone`; a process that fails has told why, and torchrun's page about it is left out."""
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import parse_args
    from torch.distributed.run import run as torchrun

    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // one.processes)))
    program = ["-m", "monai.bundle"]
    if not verbose:
        program = [str(PRDIT), "monai"]
        logging.disable(logging.ERROR)
    try:
        torchrun(parse_args(["--standalone", f"--nproc_per_node={one.processes}", *program, *one.words()]))
    except ChildFailedError as error:
        return max(1, *(failure.exitcode for failure in error.failures.values()))
    return 0
