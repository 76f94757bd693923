"""The files that folders, lists and datalists name, each once."""

from __future__ import annotations

import codecs
import json
import os
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Sequence

from ...files import PathLike
from ..dicom.writing import is_written_series
from ..readers import DATA_SUFFIXES, HEADER_SUFFIXES, VOLUME_SUFFIXES


@dataclass(frozen=True)
class Listed:
    """One file, or one folder that cannot be opened. Everything here may identify a patient."""

    key: str  # the same in every run
    relative: str  # path below its place
    section: str = ""  # of the datalist that names it
    reason: str = ""  # why it cannot be opened
    is_folder: bool = False


def list_files(places: Sequence[PathLike], left_out: Counter) -> dict[str, Listed]:
    """All files of some places by their paths; hidden ones and data beside a header are none.

    Links are followed. What was met before, in another place or by another link, is not met again.

    Args:
        places: folders, lists (.txt, a path per line) or datalists (.json).
        left_out: counts what is not listed, by kind.

    Raises:
        ValueError: in one line, when a place is missing or is none of these.
    """
    unique = {os.path.realpath(place): Path(os.path.abspath(place)) for place in places}
    walker = _Walker(left_out)
    # a folder before what lies in it and before lists, in whatever order they were given
    for place in sorted(unique.values(), key=lambda place: (not place.is_dir(), str(place))):
        walker.add(place, _label(place, list(unique.values())))
    return walker.files


def _label(place: Path, places: Sequence[Path]) -> str:
    """What tells a place from the others in keys: the shortest end of its path that they do not share."""
    if len(places) == 1:
        return ""
    others = [other for other in places if other != place]
    for count in range(1, len(place.parts)):
        end = place.parts[-count:]
        if all(other.parts[-count:] != end for other in others):
            return os.path.join(*end)
    return str(place)


class _Walker:
    """Collects files below places, and what was met already."""

    def __init__(self, left_out: Counter) -> None:
        self.files: dict[str, Listed] = {}
        self.left_out, self.met = left_out, set[str]()

    def add(self, place: Path, label: str) -> None:
        if place.is_dir():
            self._walk(str(place), place, label, "")
        elif place.name.lower().endswith(VOLUME_SUFFIXES):
            self._file(str(place), place.parent, label, "")
        else:
            for path, section in _entries(place, self.left_out):
                if os.path.isdir(path):
                    self._walk(path, place.parent, label, section)
                else:
                    self._file(path, place.parent, label, section)

    def _file(self, path: str, root: Path, label: str, section: str, reason: str = "", is_folder: bool = False) -> None:
        if self._is_new(path):
            relative = os.path.relpath(path, root)
            self.files[path] = Listed(os.path.join(label, relative), relative, section, reason, is_folder)
        elif not is_folder:
            self.left_out["file met before"] += 1

    def _is_new(self, path: str) -> bool:
        real = os.path.realpath(path) if os.path.exists(path) else path  # broken links are told one by one
        new = real not in self.met
        self.met.add(real)
        return new

    def _walk(self, top: str, root: Path, label: str, section: str) -> None:
        def refuse(error: OSError) -> None:
            self.met.discard(os.path.realpath(error.filename))
            self._file(error.filename, root, label, section, f"the folder cannot be opened: {error.strerror}", True)

        if not self._is_new(top):
            return
        for parent, folders, files in os.walk(top, onerror=refuse, followlinks=True):
            folders[:] = [
                name
                for name in sorted(folders)
                if not self._is_copy(parent, name, files) and self._enters(os.path.join(parent, name), root)
            ]
            headers = {name.lower() for name in files if name.lower().endswith(HEADER_SUFFIXES)}
            for name in sorted(files):
                if not name.startswith(".") and not _is_data_of(headers, name.lower()):
                    self._file(os.path.join(parent, name), root, label, section)

    def _is_copy(self, parent: str, name: str, files: Sequence[str]) -> bool:
        """Whether a folder is the DICOM series that this bundle wrote of a NIfTI file beside it."""
        copy = f"{name.removesuffix('_dicom')}.nii.gz" in files and is_written_series(os.path.join(parent, name))
        self.left_out["DICOM of a volume that lies beside it"] += copy
        return copy

    def _enters(self, folder: str, root: Path) -> bool:
        """Whether a folder is walked: it is not hidden, was not met before, and is no link to one above the place."""
        if os.path.basename(folder).startswith("."):
            return False
        if os.path.islink(folder) and os.path.realpath(root).startswith(os.path.join(os.path.realpath(folder), "")):
            self.left_out["link to a folder above source_dir"] += 1
            return False
        return self._is_new(folder)


def _is_data_of(headers: set[str], name: str) -> bool:
    """Whether a header of the same name lies beside a file of raw data; all in small letters."""
    suffix = next((suffix for suffix in DATA_SUFFIXES if name.endswith(suffix)), None)
    return suffix is not None and any(name[: -len(suffix)] + header in headers for header in HEADER_SUFFIXES)


def _entries(file: Path, left_out: Counter) -> list[tuple[str, str]]:
    """Paths in a list or datalist, each with the section of the datalist; ValueError when the file is neither."""
    if not file.is_file():
        raise ValueError(f"source_dir {file} is no folder, list or datalist")
    try:
        is_datalist = file.suffix.lower() == ".json"
        entries = _datalist(file, left_out) if is_datalist else [(line, "") for line in _lines(file.read_bytes())]
        paths = [(_existing(os.path.join(file.parent, entry)), section) for entry, section in entries]
        there = [os.path.exists(path) for path, _ in paths]
    except OSError as error:
        raise ValueError(f"source_dir {file} cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise ValueError(f"source_dir {file} is neither a datalist nor a list of one path per line") from None
    if paths and not any(there):  # single ones are rejected like files that cannot be opened
        raise ValueError(f"source_dir {file} names {str(entries[0][0])[:200]}, which does not exist, nor do the others")
    return paths


def _lines(content: bytes) -> list[str]:
    """Paths of a list as any editor saves it; what starts with # is a comment."""
    wide = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    text = content.decode("utf-16") if wide else os.fsdecode(content.removeprefix(codecs.BOM_UTF8))
    if "\0" in text:
        raise ValueError("binary")
    lines = [line.strip().strip('"') for line in re.split(r"[\r\n]+", text)]
    return [line for line in lines if line and not line.startswith("#")]


def _datalist(file: Path, left_out: Counter) -> list[tuple[str, str]]:
    """Entries of a datalist of MONAI, the Medical Segmentation Decathlon or nnU-Net; its split where it has one."""
    content = json.loads(file.read_bytes())
    if "training" not in content and (file.parent / "imagesTr").is_dir():  # nnU-Net 2 lists no files
        return [("imagesTr", "")]
    lists = {"training": content["training"], "validation": content.get("validation", [])}
    left_out["test image of a datalist"] += len(content.get("test", []))
    is_split = bool(lists["validation"])
    return [
        (item["image"] if isinstance(item, dict) else item, section if is_split else "")
        for section, items in lists.items()
        for item in items
    ]


def _existing(path: str) -> str:
    """The path, or that of the first channel, which nnU-Net numbers in file names but not in its datalist."""
    for suffix in (".nii.gz", ".nii"):
        channel = f"{path.removesuffix(suffix)}_0000{suffix}"
        if path.endswith(suffix) and not os.path.exists(path) and os.path.exists(channel):
            return channel
    return path
