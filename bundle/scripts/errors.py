"""What a user can get wrong is told in one line, not in a traceback."""

from __future__ import annotations

import json
import logging
import os
import sys
import tempfile
import traceback
from pathlib import Path
from types import TracebackType
from typing import Optional, Union

import monai
from monai.utils.module import OptionalImportError, version_geq

_PACKAGE = str(Path(__file__).resolve().parent)


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
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError as error:
        raise ValueError(f"{setting} {folder} is not writable: {error.strerror}") from None


def root_cause(error: BaseException) -> BaseException:
    """Follows what MONAI's config parser wraps around an error."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def is_bad_input(error: BaseException) -> bool:
    """Whether this package raised the ValueError or OSError itself, and no library deep below."""
    frames = traceback.extract_tb(error.__traceback__)
    return isinstance(error, (ValueError, OSError)) and bool(frames) and frames[-1].filename.startswith(_PACKAGE)


def what_to_say(error: BaseException) -> Optional[str]:
    """The line for the user about bad input or a package that is not installed; None for any other error."""
    if is_bad_input(error):
        return str(error)
    if isinstance(error, OptionalImportError):
        return str(error).splitlines()[0]
    if isinstance(error, ModuleNotFoundError) and error.name and error.name.split(".")[0] != "scripts":
        return f"the Python package {error.name} is not installed"
    return None


def require_monai() -> None:
    """Refuses a MONAI older than configs/metadata.json says, ValueError in one line."""
    metadata = json.loads((Path(bundle_root()) / "configs" / "metadata.json").read_text())
    needed = metadata["monai_version"]
    if not version_geq(monai.__version__, needed):
        raise ValueError(f'MONAI {monai.__version__} is too old: pip install "monai>={needed}"')


def _print_error(kind: type[BaseException], error: BaseException, trace: Optional[TracebackType]) -> None:
    line = what_to_say(root_cause(error))
    if line is not None and not os.environ.get("PRDIT_TRACEBACK"):
        print(f"\nerror: {line}", file=sys.stderr)  # a progress bar may have left the line open
    else:
        sys.__excepthook__(kind, error, trace)


def report_errors_in_one_line() -> None:
    """Makes this process print bad input as `error: ...`, with exit status 1; PRDIT_TRACEBACK=1 shows the traceback.

    The first such error is a MONAI that is too old.

    A program calls it, never a library: the configs do, first in their list of what to run.
    """
    sys.excepthook = _print_error
    # Ignite logs each error once more, at every level of its engines
    for name in ("SupervisedTrainer", "SupervisedEvaluator"):
        logging.getLogger(f"ignite.engine.engine.{name}").setLevel(logging.CRITICAL)
    require_monai()
