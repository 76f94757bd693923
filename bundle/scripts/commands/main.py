"""What `prdit` does with what was typed."""

from __future__ import annotations

import logging
import os
import runpy
import sys
import warnings
from pathlib import Path
from typing import Sequence

from .plan import planned
from .runs import Run, runs_of
from .table import ABOUT, Command, available
from .typed import nearest, read_words

QUIET = "monai"  # `prdit monai run ...`: MONAI's own command without its noise, what torchrun starts
_HELP = {"help", "h"}


def run(words: Sequence[str]) -> None:
    """Runs what was typed after `prdit`; ends the process with one line and status 1 for what is not right in it."""
    try:
        _run(list(words))
    except ValueError as error:
        if sys.excepthook is not sys.__excepthook__:  # the bundle's own, which a run has set
            raise
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        if sys.excepthook is not sys.__excepthook__:
            raise
        print("\nstopped", file=sys.stderr)
        sys.exit(130)


def _run(words: list[str]) -> None:
    commands = available()
    name = words.pop(0) if words else ""
    plan = name == "plan"
    if plan:
        name = words.pop(0) if words else "--help"
    if name in ("", "help", "--help", "-h"):
        return print(_listed(commands))
    if name == QUIET:
        return run_monai(words)
    if name == "doctor":
        from .doctor import examine

        sys.exit(1 if examine() else 0)
    if name not in commands:
        raise ValueError(f"no command {name}{nearest(name, [*commands, *ABOUT])}  (prdit lists them)")
    typed = read_words(words, ("show", "verbose"))
    command = commands[name]
    if _HELP & typed.settings.keys():
        from .help import print_command

        return print_command(name, command, typed)
    show, verbose = typed.take("show"), typed.take("verbose")
    runs = runs_of(name, command, typed)
    runs = planned(runs) if plan else runs
    if show:
        return print("\n".join(one.line() for one in runs))
    for one in runs:
        if plan:
            _told(one, verbose is not None)
        else:
            start(one, verbose is not None)
    if command.then and not plan:
        print(f"next: {_next(command, runs[-1])}")


def _told(one: Run, verbose: bool) -> None:
    """A run that ends when it has told what it would do."""
    try:
        start(one, verbose)
    except SystemExit as end:
        if end.code:
            raise


def _listed(commands: dict[str, Command]) -> str:
    sentences = {**{name: one.sentence for name, one in commands.items()}, **ABOUT}
    lines = [f"  {name:13s}{sentence}" for name, sentence in sentences.items()]
    return "\n".join([*lines, "prdit COMMAND --help lists its settings; --show prints MONAI's command for it."])


def _next(command: Command, last: Run) -> str:
    from .stacks import keys

    return command.then.format_map({**keys(last.stack), **last.settings})


def start(one: Run, verbose: bool) -> None:
    """Runs one in this process, or in as many as it asks for."""
    words = one.words()
    if verbose:
        print(one.line())
    if one.processes == 1:
        return run_monai(words, verbose)
    own = [QUIET, *words] if not verbose else ["-m", "monai.bundle", *words]
    start_processes(one.processes, own, verbose)


def run_monai(words: Sequence[str], verbose: bool = False) -> None:
    """`python -m monai.bundle ...` in this process, without what MONAI and Ignite say of themselves unless `verbose`."""
    if not verbose:
        logging.disable(logging.INFO)
        warnings.simplefilter("ignore")
        os.environ.setdefault("PYTHONWARNINGS", "ignore")  # of processes that load data
    sys.argv = ["monai.bundle", *words]
    runpy.run_module("monai.bundle", run_name="__main__", alter_sys=True)


def start_processes(number: int, words: Sequence[str], verbose: bool) -> None:
    """`torchrun --standalone`; a process that fails has told why, and torchrun's page about it is left out."""
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import parse_args
    from torch.distributed.run import run as torchrun

    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // number)))
    script = [] if verbose else [str(Path(__file__).resolve().parents[2] / "prdit.py")]
    if not verbose:
        logging.disable(logging.ERROR)
    try:
        torchrun(parse_args(["--standalone", f"--nproc_per_node={number}", *script, *words]))
    except ChildFailedError as error:
        sys.exit(next(iter(error.failures.values())).exitcode)
