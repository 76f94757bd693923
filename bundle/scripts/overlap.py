"""What a run writes is never what it reads: one check of all its places, for all commands."""

from __future__ import annotations

import os
from functools import lru_cache
from itertools import permutations
from pathlib import Path
from typing import Any, Collection, Iterator, Mapping, Union

from .files import PathLike

Identity = Union[tuple[int, int], str]  # of a file or folder whatever its name; the path where there is none yet


def check_places(read: Mapping[str, Any], written: Mapping[str, Any], apart: Collection[str] = ()) -> None:
    """Refuses places where a run would write to what it only reads, before anything is written.

    Links are followed, also those in a folder that is written to. Another name of the same file is the same file.

    Args:
        read: by setting, files or folders that are only read: one, a list, or None.
        written: by setting, a file or folder that need not be there yet, or None.
        apart: settings of `written` of which none may lie in another, nor hold what is read.

    Raises:
        ValueError: in one line that names the settings.
    """
    folders_of = lru_cache(maxsize=None)(_folders)
    sources = [(name, place) for name, value in read.items() for place in _each(value)]
    outputs = {name: value for name, value in written.items() if value is not None}
    for setting, output in outputs.items():
        for target in _targets(output):
            itself, around = _identity(target), folders_of(os.path.dirname(os.path.realpath(target)))
            for name, place in sources:
                found = _identity(place)
                if found == itself:
                    raise ValueError(f"{setting} {output} is also {name}, which is only read; choose another place")
                if found in around:
                    raise ValueError(f"{setting} {output} lies in {name}, which is only read; choose a place outside")
    for setting in apart:
        if setting not in outputs:
            continue
        for name, place in sources:
            if _identity(outputs[setting]) in folders_of(os.path.dirname(os.path.realpath(place))):
                raise ValueError(
                    f"{name} lies in {setting} {outputs[setting]}; choose a {setting} that holds no source"
                )
    for one, other in permutations([name for name in apart if name in outputs], 2):
        itself, around = _identity(outputs[one]), _folders(os.path.dirname(os.path.realpath(outputs[one])))
        if _identity(outputs[other]) in (itself, *around):
            raise ValueError(f"{one} {outputs[one]} must not lie in {other} {outputs[other]}; choose a place outside")


def _each(value: Any) -> Iterator[PathLike]:
    if isinstance(value, (str, Path)):
        yield value
    elif isinstance(value, Mapping):
        yield from value.values()
    elif value is not None:
        yield from value


def _targets(output: PathLike) -> list[str]:
    """Where writing to a file or folder ends up: there, and where links in the folder lead."""
    links = []
    if os.path.isdir(output):
        with os.scandir(output) as entries:
            links = [entry.path for entry in entries if entry.is_symlink() and entry.is_dir()]
    return [str(output), *links]


def _identity(path: PathLike) -> Identity:
    try:
        status = os.stat(path)
    except OSError:
        return os.path.realpath(path)
    return status.st_dev, status.st_ino


def _folders(folder: str) -> frozenset[Identity]:
    """A folder and all that it lies in."""
    return frozenset(_identity(one) for one in (Path(folder), *Path(folder).parents))
