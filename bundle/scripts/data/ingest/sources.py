"""What CT there is in a folder, a list of files or a datalist, and who of it is one patient."""

from __future__ import annotations

import os
import re
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Callable, Iterable, Optional, Sequence, Union

from monai.data import MetaTensor

from ...files import PathLike
from ..dicom import MIN_SLICES, BadSeries, LeftOut, Refused, Series, Slice, assemble, is_dicom, read_slices
from ..readers import DATA_SUFFIXES, VOLUME_SUFFIXES, kind_of, parts_of, read_dicom, read_file
from ..reasons import reason_of
from .places import Listed, list_files

_ARCHIVES = (".zip", ".tar", ".tgz", ".gz", ".bz2", ".xz", ".7z", ".rar", ".zst")
_LABEL_FOLDERS = {"labelstr", "labelsts", "labelsval", "segmentations"}  # of nnU-Net and TotalSegmentator
_LFS = b"version https://git-lfs"
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
    name = path.lower()
    try:
        if os.path.getsize(path) == 0:
            return Inspected(path, reason="the file is empty")
        with open(path, "rb") as file:
            start = file.read(len(_LFS))
        if start == _LFS:
            return Inspected(path, reason="a pointer of Git LFS instead of the file: fetch it with git lfs pull")
        if name.endswith(DATA_SUFFIXES):
            return Inspected(path, reason="raw data without a header", left_out=True)
        if name.endswith(".hdr") and 348 not in (int.from_bytes(start[:4], "little"), int.from_bytes(start[:4], "big")):
            return Inspected(path, reason="no CT format", left_out=True)  # other programs call their files so too
        if name.endswith(VOLUME_SUFFIXES):
            return Inspected(path, is_volume=True)
        if name.endswith(_ARCHIVES):
            return Inspected(path, reason="archive, to be unpacked first", left_out=True)
        if not is_dicom(Path(path)):
            return Inspected(path, reason="no CT format", left_out=True)
        return Inspected(path, slices=tuple(read_slices(path)))
    except LeftOut as error:
        return Inspected(path, reason=str(error), left_out=True)
    except Refused as error:
        return Inspected(path, reason=str(error), patient=error.patient, series=f"{error.study}/{error.series}")
    except Exception as error:  # one file never stops the others
        return Inspected(path, reason=reason_of(error))


def find_sources(
    places: Union[PathLike, Sequence[PathLike]],
    patient_from: Optional[str] = None,
    min_slices: int = MIN_SLICES,
    mapper: Mapper = map,
) -> Findings:
    """Finds all CT in folders, lists of files (.txt, a path per line) or datalists (.json).

    A file is one source, whatever number of places and links lead to it; files of one name in two places are two.

    Args:
        places: one or several of them.
        patient_from: regular expression that finds the patient in a file's path below its place, by its first group
            or the whole match; without it DICOM says who it is, and every other file is a patient of its own.
        min_slices: of a DICOM series.
        mapper: applies `inspect_file` to many paths; `map` of any kind of pool.

    Raises:
        ValueError: in one line, when a place is missing, or patient_from fits no path at all.
    """
    pattern = _patient_pattern(patient_from)
    findings = Findings()
    files = list_files([places] if isinstance(places, (str, Path)) else places, findings.left_out)
    slices: list[Slice] = []
    refused: dict[tuple[str, ...], list[Inspected]] = {}
    wanted = [path for path, file in files.items() if not _is_label_map(file)]
    findings.left_out["label map"] += len(files) - len(wanted)
    to_open = [path for path in wanted if not files[path].reason]
    for found in mapper(inspect_file, to_open):
        if found.left_out:
            findings.left_out[found.reason] += 1
        elif found.slices:
            slices += found.slices
        elif found.series:
            refused.setdefault((found.patient, found.series, found.reason), []).append(found)
        else:
            findings.sources.append(_file_source(found.path, files[found.path], found.reason))
    findings.sources += [_file_source(path, files[path], files[path].reason) for path in wanted if files[path].reason]
    findings.sources += [_refused_source(same, files) for same in refused.values()]
    findings.sources += [_series_source(result, files) for result in assemble(slices, min_slices)]
    sources = findings.sources if pattern is None else _renamed(findings.sources, files, pattern)
    findings.sources = _unlike(sources, files)
    return findings


def _is_label_map(file: Listed) -> bool:
    folders = {part.lower() for part in Path(file.relative).parts[:-1]}
    return bool(folders & _LABEL_FOLDERS) and file.relative.lower().endswith(VOLUME_SUFFIXES)


def _file_source(path: str, file: Listed, reason: str) -> Source:
    kind = "folder" if file.is_folder else kind_of(path)
    return Source(
        file.key, patient=file.key, path=path, kind=kind, files=parts_of(path), reason=reason, section=file.section
    )


def _patient_pattern(text: Optional[str]) -> Optional[re.Pattern]:
    try:
        return None if text is None else re.compile(text)
    except re.error as error:
        raise ValueError(f"patient_from '{text}' is no regular expression: {error}") from None


def _renamed(sources: Sequence[Source], files: dict[str, Listed], pattern: re.Pattern) -> list[Source]:
    """Sources with the patient that a pattern finds in their paths; those where it finds none are bad ones."""
    renamed, found_in = [], 0
    for source in sources:
        match = pattern.search(files[source.files[0]].relative)
        patient = match and (match.group(1) if pattern.groups else match.group(0))
        found_in += bool(patient)
        reason = source.reason or ("" if patient else "patient_from finds no patient in its path")
        renamed.append(replace(source, patient=patient or source.patient, reason=reason))
    if sources and not found_in:
        raise ValueError(f"patient_from '{pattern.pattern}' finds no patient in any path of {len(sources)} sources")
    return renamed


def _unlike(sources: Sequence[Source], files: dict[str, Listed]) -> list[Source]:
    """Sources in the order of their keys, no two of which are equal, as those of patients with the same UIDs are."""
    keys = Counter(source.key for source in sources)
    unlike = [
        replace(source, key=f"{source.key}/{files[source.files[0]].key}") if keys[source.key] > 1 else source
        for source in sources
    ]
    return sorted(unlike, key=lambda source: source.key)


def _refused_source(found: Sequence[Inspected], files: dict[str, Listed]) -> Source:
    """One source for all files of a series that are refused for one reason."""
    paths = sorted(item.path for item in found)
    first = files[paths[0]]
    return Source(
        key=first.key,
        patient=found[0].patient or first.key,
        path=paths[0] if len(paths) == 1 else str(Path(paths[0]).parent),
        kind="DICOM series",
        files=tuple(paths),
        num_slices=len(paths),
        reason=found[0].reason + (f" ({len(paths)} files)" if len(paths) > 1 else ""),
        section=first.section,
    )


def _series_source(result: Union[Series, BadSeries], files: dict[str, Listed]) -> Source:
    first = min(result.slices, key=lambda item: (item.path, item.frame))
    stack = f"{first.shape}/{first.orientation}/{first.instance}/{first.frame}"
    return Source(
        key=f"{first.patient}/{first.study}/{first.series}/{stack}",
        patient=first.patient,
        path=str(Path(first.path).parent),
        kind="DICOM series",
        series=result if isinstance(result, Series) else None,
        files=tuple(sorted({item.path for item in result.slices})),
        num_slices=len(result.slices),
        reason=result.reason if isinstance(result, BadSeries) else "",
        section=files[first.path].section,
    )
