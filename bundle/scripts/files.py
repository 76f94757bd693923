"""Files that appear whole or not at all, and folders that one run at a time writes to."""

from __future__ import annotations

import atexit
import hashlib
import json
import math
import os
import secrets
import shutil
import socket
from contextlib import contextmanager, suppress
from io import BufferedRandom
from pathlib import Path
from typing import Any, Iterator, Optional, Union

try:
    import fcntl
except ImportError:  # Windows has no such locks
    fcntl = None  # type: ignore[assignment]

from .machine import written

PathLike = Union[str, Path]


@contextmanager
def whole_file(path: PathLike, private: bool = False) -> Iterator[BufferedRandom]:
    """A new file to write to, which takes its name, and the place of an older file, when the block ends without error.

    Until then it has a name in the same folder that nobody can foretell. What a killed process leaves behind is
    removed by `remove_leftovers`.

    Args:
        path: of the file; its folder is made if need be.
        private: readable by the user alone.
    """
    path = Path(path)
    with written(path):
        make_folder(path.parent)
        part, file = _new_part(path.parent, 0o600 if private else 0o666)
        try:
            with file:
                yield file
                file.flush()
                os.fsync(file.fileno())  # or a power cut could leave the name of a file whose content was never stored
                if fcntl is None:
                    file.close()  # Windows renames no open file
                os.replace(part, path)
        except BaseException:
            part.unlink(missing_ok=True)
            raise


@contextmanager
def whole_folder(path: PathLike) -> Iterator[Path]:
    """A new folder to write files to, which takes its name, and the place of an older one, like a `whole_file`.

    Args:
        path: of the folder; the one that it lies in is made if need be.
    """
    path = Path(path)
    with written(path):
        make_folder(path.parent)
        part, lock = _new_part_folder(path.parent)
        try:
            yield part
            for file in part.iterdir():
                _store(file)
            older = path.replace(_part_name(path.parent)) if path.is_dir() else None
            part.replace(path)
        except BaseException:
            shutil.rmtree(part, ignore_errors=True)
            raise
        finally:
            if lock is not None:
                os.close(lock)
        if older is not None:
            shutil.rmtree(older)


def write_text(path: PathLike, text: str, private: bool = False) -> None:
    """Writes text in UTF-8 as a `whole_file`."""
    with whole_file(path, private) as file:
        file.write(text.encode())


def write_json(path: PathLike, content: Any, private: bool = False) -> None:
    """Writes what JSON can hold as a `whole_file`; numbers that are not finite, which it cannot, become null."""
    write_text(path, json.dumps(_finite(content), indent=4, ensure_ascii=False, allow_nan=False) + "\n", private)


def _finite(content: Any) -> Any:
    if isinstance(content, dict):
        return {name: _finite(value) for name, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [_finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def sha256_of(path: PathLike) -> str:
    """Hash of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _new_part(folder: Path, mode: int) -> tuple[Path, BufferedRandom]:
    """A new file that is locked until it is closed: one that is not was left by a process that died."""
    while True:
        part = _part_name(folder)
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
        file = os.fdopen(os.open(part, flags, mode), "w+b")
        if _lock(file) is not False and os.fstat(file.fileno()).st_nlink:
            return part, file
        file.close()  # another process took it for a leftover, in the moment before it was locked


def _new_part_folder(folder: Path) -> tuple[Path, Optional[int]]:
    """A new folder, and what is to be closed at its end: until then it is locked, where the file system can."""
    part = _part_name(folder)
    part.mkdir()
    return part, _locked_folder(part)


def _locked_folder(folder: Path) -> Optional[int]:
    if fcntl is None:  # Windows opens no folders
        return None
    lock = os.open(folder, os.O_RDONLY)
    if _lock(lock):
        return lock
    os.close(lock)
    return None


def _part_name(folder: Path) -> Path:
    return folder / f".prdit-{secrets.token_hex(8)}.part"


def _store(file: Path) -> None:
    """Waits until the content of a file is on the disk."""
    descriptor = os.open(file, os.O_RDWR)
    os.fsync(descriptor)
    os.close(descriptor)


def _lock(file: Union[int, BufferedRandom]) -> Optional[bool]:
    """Whether this process got the lock; None where the file system has none."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except BlockingIOError:
        return False
    except OSError:
        return None


_made: list[Path] = []  # folders that this process made, those within before those around them


def make_folder(folder: PathLike) -> Path:
    """Makes a folder and all that it lies in, where missing; what is still empty when this process ends is removed.

    Raises:
        OSError: when that is not possible.
    """
    folder = Path(os.path.abspath(folder))
    missing = [one for one in (folder, *folder.parents) if not one.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    _made[:0] = missing
    return folder


def remove_leftovers(*folders: PathLike) -> None:
    """Removes what `whole_file` and `whole_folder` had begun in these folders when their process died."""
    for folder in folders:
        for part in Path(folder).glob(".prdit-*.part"):
            with suppress(OSError):
                if part.is_dir():
                    lock = _locked_folder(part)
                    if lock is not None:
                        shutil.rmtree(part)
                        os.close(lock)
                    continue
                with open(part, "r+b") as file:
                    if _lock(file):
                        part.unlink()


def require_no_folder(path: PathLike, setting: str) -> None:
    """Refuses a folder where a file is to be written; ValueError in one line."""
    if Path(path).is_dir():
        raise ValueError(f"{path} is a folder, where a file is needed; move it away or choose another {setting}")


def require_own(path: PathLike, mark: str, setting: str) -> None:
    """Refuses what is in the way and lacks the mark of the file that this command writes; ValueError in one line."""
    path = Path(path)
    require_no_folder(path, setting)
    if path.is_file() and mark.encode() not in path.read_bytes():
        raise ValueError(f"{path} was not made by this command and would be replaced; choose another {setting}")


def set_aside(path: Path) -> Path:
    """Renames a damaged file, so that it is neither read again nor lost; returns its new path."""
    return path.replace(path.with_name(f"{path.name}.damaged"))


_held: dict[Path, BufferedRandom] = {}  # locks by their paths


def hold(folder: PathLike, setting: str, name: str = "prdit") -> None:
    """Lets no other run write to a folder until `release` or the end of this process, however it comes.

    Where the file system has no locks, two runs are not noticed. Children of this process do not hold the folder.

    Args:
        folder: that is there.
        setting: that names the folder.
        name: runs with different names may share the folder.

    Raises:
        ValueError: in one line, when another run holds it.
    """
    path = _lock_path(folder, name)
    if path in _held:
        return
    while True:
        file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666), "r+b")
        if _lock(file) is False:
            with file:
                holder = file.read(200).decode(errors="replace")
            raise ValueError(
                f"{setting} {folder} is in use by another run ({holder}); wait for its end, or choose another {setting}"
            )
        if os.fstat(file.fileno()).st_nlink:
            break
        file.close()  # its holder released it just now, and removed it
    file.truncate()
    file.write(f"process {os.getpid()} on {socket.gethostname()}".encode())
    file.flush()
    _held[path] = file


def release(folder: PathLike, name: str = "prdit") -> None:
    """Ends `hold` after a run that came to its end."""
    path = _lock_path(folder, name)
    if path in _held:
        with _held.pop(path):
            path.unlink(missing_ok=True)


def _lock_path(folder: PathLike, name: str) -> Path:
    return Path(folder).resolve() / f".{name}.lock"


def _leave() -> None:
    """At the end of this process, however it came but by a kill: a run that failed leaves nothing behind."""
    for path, file in _held.items():
        with file, suppress(OSError):
            path.unlink(missing_ok=True)
    _held.clear()
    for folder in _made:
        with suppress(OSError):  # it holds something
            folder.rmdir()


atexit.register(_leave)


def _forget() -> None:
    """In a child of this process: the lock and the folders are the parent's."""
    for file in _held.values():
        file.close()
    _held.clear()
    _made.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
