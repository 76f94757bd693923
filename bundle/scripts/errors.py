"""What a user can get wrong is told in one line, not in a traceback."""

from __future__ import annotations

import dis
import json
import logging
import os
import queue
import re
import sys
import tempfile
from datetime import timedelta
from io import TextIOWrapper
from pathlib import Path
from types import TracebackType
from typing import Optional, Union

import monai
from monai.utils.module import OptionalImportError, version_geq
from torch.distributed import DistError, TCPStore
from tqdm import tqdm

from .files import make_folder
from .machine import machine_fault
from .stops import PIPE_CLOSED, TERMINATED, Terminated, is_closed_pipe, raise_at_sigterm, stop_line

_PACKAGE = os.path.dirname(__file__)  # as tracebacks have it, ".." included
_RAISE = dis.opmap["RAISE_VARARGS"]
_REPORT = "This is likely a fault of the bundle: please report it, with the lines above and your command."


def bundle_root() -> str:
    """The bundle's folder, so that no path depends on the current one."""
    return str(Path(__file__).resolve().parents[1])


def require_writable(folder: Union[str, Path], setting: str) -> Path:
    """Makes a folder and tries to write there.

    Raises:
        ValueError: in one line that names the setting, when that fails.
    """
    folder = Path(folder)
    try:
        there = next(one for one in (folder, *folder.absolute().parents) if one.exists())
        if not there.is_dir():
            raise ValueError(f"{setting} {folder} is not writable: {there} is a file, where a folder is needed")
        make_folder(folder)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError as error:
        raise ValueError(f"{setting} {folder} is not writable: {error.strerror}") from None


def root_cause(error: BaseException) -> BaseException:
    """Follows what MONAI's config parser wraps around an error.

    A queue that stayed empty is no cause: by it PyTorch's loaders find out that a process of theirs is dead.
    """
    while error.__cause__ is not None and not isinstance(error.__cause__, queue.Empty):
        error = error.__cause__
    return error


def is_bad_input(error: BaseException) -> bool:
    """Whether a `raise` of this package made the ValueError, and so its message.

    One that a library raised, or Python itself, as for `int("x")`, tells the user nothing and is a fault of ours.
    """
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if not isinstance(error, ValueError) or trace is None:
        return False
    code = trace.tb_frame.f_code
    return code.co_filename.startswith(_PACKAGE) and code.co_code[trace.tb_lasti] == _RAISE


def what_to_say(error: BaseException) -> Optional[str]:
    """The line for the user about bad input, the machine, or a package that is not installed; None for other errors."""
    if is_bad_input(error):
        return str(error)
    if isinstance(error, OptionalImportError):
        return str(error).splitlines()[0]
    if isinstance(error, ModuleNotFoundError) and error.name and error.name.split(".")[0] != "scripts":
        return f"the Python package {error.name} is not installed"
    return _in_worker(str(error)) or machine_fault(error)


def _in_worker(text: str) -> Optional[str]:
    """`what_to_say` about an error in a process that loads data: PyTorch hands on its traceback as text."""
    if not re.match(r"Caught \w+ in DataLoader worker process", text):
        return None
    root = text.partition("\nThe above exception was the direct cause")[0].rpartition("\nDuring handling of the above")[
        2
    ]
    frames = re.findall(r'^  File "(.+)", line .*\n    (.*)', root, re.MULTILINE)
    kind, _, message = root.rstrip().rpartition("\n")[2].partition(": ")
    if kind == "ValueError" and frames and frames[-1][0].startswith(_PACKAGE) and frames[-1][1].startswith("raise "):
        return message
    if kind.endswith("MemoryError"):
        return machine_fault(MemoryError())
    found = re.match(r"\[Errno (\d+)\] ([^:]*)(?:: '(.*)')?", message)
    return machine_fault(OSError(int(found[1]), found[2], found[3])) if found else None


def require_monai() -> None:
    """Refuses a MONAI older than configs/metadata.json says, ValueError in one line."""
    metadata = json.loads((Path(bundle_root()) / "configs" / "metadata.json").read_text())
    needed = metadata["monai_version"]
    if not version_geq(monai.__version__, needed):
        raise ValueError(f'MONAI {monai.__version__} is too old: pip install "monai>={needed}"')


def _first_to_tell() -> bool:
    """Whether no other process of this `torchrun` has told its error yet: one error mostly ends them all."""
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return True
    try:
        host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        store = TCPStore(host, port, is_master=False, timeout=timedelta(seconds=10))
        return store.add(f"prdit/error/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '')}", 1) == 1
    except (DistError, RuntimeError, KeyError, ValueError):
        return True


def _print_error(kind: type[BaseException], error: BaseException, trace: Optional[TracebackType]) -> None:
    cause = root_cause(error)
    if is_closed_pipe(cause):
        sys.exit(PIPE_CLOSED)
    line = stop_line(error)
    if line is None:
        said = what_to_say(cause)
        line = f"error: {said}" if said is not None else None
    tells = os.environ.get("RANK", "0") == "0" if isinstance(error, KeyboardInterrupt) else _first_to_tell()
    for bar in list(getattr(tqdm, "_instances", ())):  # else its line stays open, and it is drawn once more, below
        bar.close()
    if tells and (line is None or os.environ.get("PRDIT_TRACEBACK")):
        sys.__excepthook__(kind, error, trace)
    if tells:
        print(line or _REPORT, file=sys.stderr)
    if isinstance(error, Terminated):
        sys.exit(TERMINATED)


def report_errors_in_one_line() -> None:
    """Makes MONAI's command line print bad input, stops and what the machine refuses in one line each.

    Bad input is `error: ...` with exit status 1; PRDIT_TRACEBACK=1 shows the traceback. A MONAI that is too old is the
    first such error. The configs call this, first in their lists of what to run. In another program, a notebook or a
    test, nothing is changed: there errors are exceptions.

    Raises:
        ValueError: when MONAI is too old.
    """
    if getattr(getattr(sys.modules["__main__"], "__spec__", None), "name", None) == "monai.bundle.__main__":
        sys.excepthook = _print_error
        raise_at_sigterm()
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, TextIOWrapper):
                stream.reconfigure(errors="backslashreplace")  # names of files need not be UTF-8
        logging.raiseExceptions = False  # a closed pipe is told once, by the end of the program
        # Ignite logs each error once more, at every level of its engines
        for name in ("SupervisedTrainer", "SupervisedEvaluator"):
            logging.getLogger(f"ignite.engine.engine.{name}").setLevel(logging.CRITICAL)
    require_monai()
