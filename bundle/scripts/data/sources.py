"""What CT there is in a folder, a list of files or a datalist, and who of it is one patient."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Callable, Iterable, Optional, Sequence, Union

from monai.data import MetaTensor

from ..files import PathLike
from .dicom import MIN_SLICES, BadSeries, LeftOut, Refused, Series, Slice, assemble, is_dicom, read_slices
from .readers import RAD_CHEST_SUFFIX, VOLUME_SUFFIXES, read_dicom, read_file

FILE_SUFFIXES = (*VOLUME_SUFFIXES, RAD_CHEST_SUFFIX)
Mapper = Callable[[Callable[[str], "Inspected"], Sequence[str]], Iterable["Inspected"]]


@dataclass(frozen=True)
class Inspected:
    """What one file is: a volume, CT slices, or `reason`, why it is neither; `left_out` where that is no worry.

    `patient` and `series` say what a DICOM file with a reason belongs to.
    """

    path: str
    is_volume: bool = False
    slices: tuple[Slice, ...] = ()
    reason: str = ""
    left_out: bool = False
    patient: str = ""
    series: str = ""


@dataclass(frozen=True)
class Source:
    """One CT to take, or why not. Everything here may identify a patient."""

    key: str  # the same in every run
    patient: str
    path: str
    kind: str  # 'DICOM series', 'NIfTI', 'MetaImage', 'NRRD', 'RAD-ChestCT', 'file'
    series: Optional[Series] = None
    files: tuple[str, ...] = ()
    num_slices: int = 0
    reason: str = ""
    section: str = ""  # of the datalist that names it

    def read(self) -> MetaTensor:
        """The CT as (1, ...), any affine; ValueError with the reason when it cannot be read."""
        return read_file(self.path) if self.series is None else read_dicom(self.series)


@dataclass
class Findings:
    """Sources, good and bad, and counts of files that are beside the point."""

    sources: list[Source] = field(default_factory=list)
    left_out: Counter = field(default_factory=Counter)


def inspect_file(path: str) -> Inspected:
    """Says what a file is, from its name and its first bytes; a DICOM file's header is read."""
    file = Path(path)
    try:
        if file.name.lower().endswith(FILE_SUFFIXES):
            if os.path.getsize(path) == 0:
                return Inspected(path, reason="the file is empty")
            open(path, "rb").close()
            return Inspected(path, is_volume=True)
        if os.path.getsize(path) == 0:
            return Inspected(path, reason="the file is empty")
        if not is_dicom(file):
            return Inspected(path, reason="no CT format", left_out=True)
        return Inspected(path, slices=tuple(read_slices(file)))
    except LeftOut as error:
        return Inspected(path, reason=str(error), left_out=True)
    except Refused as error:
        return Inspected(path, reason=str(error), patient=error.patient, series=f"{error.study}/{error.series}")
    except OSError as error:
        return Inspected(path, reason=f"cannot be opened: {error.strerror}")


def find_sources(
    places: Union[PathLike, Sequence[PathLike]],
    patient_from: Optional[str] = None,
    min_slices: int = MIN_SLICES,
    mapper: Mapper = map,
) -> Findings:
    """Finds all CT in folders, lists of files (.txt, a path per line) or datalists (.json).

    Args:
        places: one or several of them.
        patient_from: regular expression that finds the patient in a file's path below its place, by its first group
            or the whole match; without it DICOM says who it is, and every other file is a patient of its own.
        min_slices: of a DICOM series.
        mapper: applies `inspect_file` to many paths; `map` of any kind of pool.

    Raises:
        ValueError: in one line, when a place is missing, or patient_from does not fit.
    """
    findings = Findings()
    for place in [places] if isinstance(places, (str, Path)) else places:
        _add_place(findings, Path(place), _patient_pattern(patient_from), min_slices, mapper)
    findings.sources.sort(key=lambda source: source.key)
    return findings


def _patient_pattern(text: Optional[str]) -> Optional[re.Pattern]:
    try:
        return None if text is None else re.compile(text)
    except re.error as error:
        raise ValueError(f"patient_from '{text}' is no regular expression: {error}") from None


def _add_place(findings: Findings, place: Path, pattern: Optional[re.Pattern], min_slices: int, mapper: Mapper) -> None:
    root = place if place.is_dir() else place.parent
    sections = _listed(place, findings) if place.is_file() else dict.fromkeys(_walk(place, findings), "")

    def patient_of(path: str, fallback: str) -> str:
        if pattern is None:
            return fallback
        relative = os.path.relpath(path, root)
        match = pattern.search(relative)
        if match is None:
            raise ValueError(f"patient_from '{pattern.pattern}' finds no patient in {relative}")
        return match.group(1) if pattern.groups else match.group(0)

    slices: list[Slice] = []
    refused: dict[tuple[str, ...], list[Inspected]] = {}
    for found in mapper(inspect_file, list(sections)):
        relative = os.path.relpath(found.path, root)
        if found.left_out:
            findings.left_out[found.reason] += 1
        elif found.slices:
            slices += found.slices
        elif found.series:
            refused.setdefault((found.patient, found.series, found.reason), []).append(found)
        else:
            findings.sources.append(
                Source(
                    key=relative,
                    patient=patient_of(found.path, relative),
                    path=found.path,
                    kind=_kind(found.path),
                    files=(found.path,),
                    reason=found.reason,
                    section=sections[found.path],
                )
            )
    for files in refused.values():
        findings.sources.append(_refused_source(files, sections, root, patient_of))
    series = [_series_source(result, sections, patient_of) for result in assemble(slices, min_slices)]
    counts = Counter(source.key for source in series)
    for source in series:  # of patients who got the same UIDs
        key = f"{source.key}/{os.path.relpath(source.files[0], root)}" if counts[source.key] > 1 else source.key
        findings.sources.append(replace(source, key=key))


def _refused_source(
    found: Sequence[Inspected], sections: dict[str, str], root: Path, patient_of: Callable[[str, str], str]
) -> Source:
    """One source for all files of a series that are refused for one reason."""
    files = sorted(item.path for item in found)
    relative = os.path.relpath(files[0], root)
    return Source(
        key=relative,
        patient=patient_of(files[0], found[0].patient or relative),
        path=files[0] if len(files) == 1 else str(Path(files[0]).parent),
        kind="DICOM series",
        files=tuple(files),
        num_slices=len(files),
        reason=found[0].reason + (f" ({len(files)} files)" if len(files) > 1 else ""),
        section=sections[files[0]],
    )


def _series_source(
    result: Union[Series, BadSeries], sections: dict[str, str], patient_of: Callable[[str, str], str]
) -> Source:
    first = min(result.slices, key=lambda item: (item.path, item.frame))
    stack = f"{first.shape}/{first.orientation}/{first.instance}/{first.frame}"
    return Source(
        key=f"{first.patient}/{first.study}/{first.series}/{stack}",
        patient=patient_of(first.path, first.patient),
        path=str(Path(first.path).parent),
        kind="DICOM series",
        series=result if isinstance(result, Series) else None,
        files=tuple(sorted({item.path for item in result.slices})),
        num_slices=len(result.slices),
        reason=result.reason if isinstance(result, BadSeries) else "",
        section=sections[first.path],
    )


def _walk(folder: Path, findings: Findings) -> list[str]:
    """All files below a folder but hidden ones, sorted; folders that cannot be read become bad sources."""
    if not folder.is_dir():
        raise ValueError(f"source_dir {folder} is no folder, list or datalist")

    def refuse(error: OSError) -> None:
        path = str(error.filename)
        reason = f"the folder cannot be opened: {error.strerror}"
        findings.sources.append(Source(path, path, path, "folder", reason=reason))

    paths = []
    for parent, folders, files in os.walk(folder, onerror=refuse):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        paths += [os.path.join(parent, name) for name in sorted(files) if not name.startswith(".")]
    return [path for path in paths if not _is_raw_data_of_another(path)]


def _is_raw_data_of_another(path: str) -> bool:
    return path.lower().endswith((".raw", ".zraw"))  # of .mhd


def _listed(file: Path, findings: Findings) -> dict[str, str]:
    """Paths in a list or datalist, with the section of the datalist; a folder stands for its files."""
    try:
        if file.suffix.lower() == ".json":
            content = json.loads(file.read_text())
            entries = [(item["image"], section) for section in ("training", "validation") for item in content[section]]
        else:
            entries = [(line.strip(), "") for line in file.read_text().splitlines() if line.strip()]
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"source_dir {file} is neither a datalist nor a list of one path per line") from None
    paths = {}
    for entry, section in entries:
        path = file.parent / entry
        if not path.exists():
            raise ValueError(f"source_dir {file} names {entry}, which does not exist")
        paths.update(dict.fromkeys(_walk(path, findings) if path.is_dir() else [str(path)], section))
    return paths


def _kind(path: str) -> str:
    name = path.lower()
    for kind, suffixes in (
        ("NIfTI", (".nii", ".nii.gz")),
        ("MetaImage", (".mha", ".mhd")),
        ("NRRD", (".nrrd",)),
        ("RAD-ChestCT", (RAD_CHEST_SUFFIX,)),
    ):
        if name.endswith(suffixes):
            return kind
    return "file"
