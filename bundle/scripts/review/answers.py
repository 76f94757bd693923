"""Readers' answers as their pages export them, and the key of a study: read, and refused where they do not belong together."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Iterator, Literal, Optional, Sequence

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..files import PathLike
from .cases import Steps
from .statistics import Readings

QUESTIONS = {"realism": "realism", "consistency": "consistency between slices", "anatomy": "anatomical correctness"}
_Grade = Annotated[Optional[int], Field(ge=1, le=4)]


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, allow_inf_nan=False)


class Mark(_Strict):
    """A location that a reader marked: voxel (i, j, k) of the case, in RAS, on a plane."""

    index: tuple[int, int, int]
    plane: Literal["axial", "coronal", "sagittal"]
    note: str = ""


class CaseAnswer(_Strict):
    """What a reader said of a case; None is not answered."""

    case: str
    verdict: Optional[Literal["real", "synthetic"]] = None
    confidence: Annotated[Optional[int], Field(ge=1, le=5)] = None
    realism: _Grade = None
    consistency: _Grade = None
    anatomy: _Grade = None
    comment: Optional[str] = ""
    marks: list[Mark] = []
    seconds: Annotated[float, Field(ge=0)] = 0.0

    def unanswered(self) -> list[str]:
        """Names of the questions without an answer."""
        return [name for name in ("verdict", "confidence", *QUESTIONS) if getattr(self, name) is None]


class ReaderAnswers(_Strict):
    """What a reader's page exports."""

    format: Literal[1]
    study: str
    reader: str
    submitted: Optional[str] = None
    cases: list[CaseAnswer]


@dataclass(frozen=True)
class Key:
    """Which cases of a study are what; it stays with the organiser.

    Attributes:
        study: its id.
        volumes: 'set' (real or generated) and 'file' of each, and more facts.
        readers: for each reader, the index in `volumes` of each of his or her cases, in the order of reading.
        trial: the case for practice, None if there is none.
        facts: all that the file holds.
    """

    study: str
    volumes: list[dict[str, Any]]
    readers: dict[str, dict[str, int]]
    trial: Optional[str]
    facts: dict[str, Any]

    @property
    def synthetic(self) -> np.ndarray:
        """(volumes,)"""
        return np.array([volume["set"] == "generated" for volume in self.volumes])


def read_key(path: PathLike) -> Key:
    """Reads a key; ValueError in one line when the file is none."""
    try:
        facts = json.loads(Path(path).read_text(encoding="utf-8"))
        key = Key(facts["key_of_study"], facts["volumes"], facts["readers"], facts["trial"], facts)
        known = range(len(key.volumes))
        Steps(**facts["steps"])
        told = all(name in facts for name in ("title", "made", "real", "notes", "window"))
        whole = told and all(index in known for cases in key.readers.values() for index in cases.values())
        if not (key.readers and whole and {v["set"] for v in key.volumes} == {"real", "generated"}):
            raise ValueError
        return key
    except OSError as error:
        raise ValueError(f"key_file {path} cannot be read: {error.strerror}") from None
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        raise ValueError(f"key_file {path} is no key of a reader study, as review.yaml writes it") from None


def answer_files(places: Sequence[PathLike]) -> list[Path]:
    """The JSON files that are named or lie in named folders, each once; ValueError in one line when there is none."""
    found: dict[Path, Path] = {}
    for place in map(Path, places):
        if not place.exists():
            raise ValueError(f"answers {place} is not there")
        inside = sorted(place.glob("[!.]*.json")) if place.is_dir() else [place]
        if not inside:
            raise ValueError(f"answers {place} holds no .json file; readers' pages export them")
        found.update({path.resolve(): path for path in inside})
    return list(found.values())


def read_answers(path: Path) -> ReaderAnswers:
    """Reads a reader's file; ValueError in one line that says where it is wrong."""
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError):
        raise ValueError(f"{path} is no JSON file of answers, or damaged; the reader's page exports it again") from None
    if not isinstance(content, dict) or not {"study", "reader", "cases"} <= content.keys():
        raise ValueError(f"{path} holds no answers of a reader; take it away, or name the files")
    try:
        text = json.dumps(content, ensure_ascii=False).encode(errors="replace")  # half of an emoji is no text
        return ReaderAnswers.model_validate_json(text)  # as JSON, whose lists may be tuples
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        raise ValueError(f"{path}: {_place(content, first['loc'])} is not valid: {first['msg']}") from None


def _place(content: Any, place: Sequence[Any]) -> str:
    """Where a file is wrong, with the name of the case."""
    words = []
    for part in place:
        content = content[part] if isinstance(part, int) or part in content else None
        named = isinstance(part, int) and isinstance(content, dict) and isinstance(content.get("case"), str)
        words.append(content["case"] if named else str(part))
    return " ".join(words[1:] if words[:1] == ["cases"] and len(words) > 1 else words) or "its content"


@dataclass(frozen=True)
class Answers:
    """The answers of a study's readers.

    Attributes:
        readers: their names.
        submitted: when each submitted, None for one who did not.
        by_volume: for each reader, the answer to each volume of the key, None where there is none.
    """

    readers: list[str]
    submitted: list[Optional[str]]
    by_volume: list[list[Optional[CaseAnswer]]]

    def table(self, name: str) -> np.ndarray:
        """A number of each answer, (readers, volumes), NaN where there is none."""
        return np.array([[_number(answer, name) for answer in row] for row in self.by_volume])

    def readings(self, synthetic: np.ndarray) -> Readings:
        """Verdicts and ratings; an answer counts where it has a verdict and a confidence."""
        called, confidence = self.table("verdict"), self.table("confidence")
        called[np.isnan(confidence)] = np.nan
        return Readings(
            synthetic, called, np.where(called == 1, confidence, np.where(called == 0, -confidence, np.nan))
        )

    def each(self) -> Iterator[tuple[str, int, CaseAnswer]]:
        """Reader, index of the volume, and answer."""
        for reader, row in zip(self.readers, self.by_volume):
            yield from ((reader, index, answer) for index, answer in enumerate(row) if answer is not None)


def _number(answer: Optional[CaseAnswer], name: str) -> float:
    value = getattr(answer, name) if answer is not None else None
    if name == "verdict" and value is not None:
        value = value == "synthetic"
    if name == "seconds" and not value:  # a page that was never looked at
        value = None
    return np.nan if value is None else float(value)


def gather(files: Sequence[Path], key: Key, incomplete: str = "refuse") -> Answers:
    """The answers to a study.

    Args:
        files: of the readers.
        key: of the study.
        incomplete: 'refuse' readers without a file, files that were not submitted and questions without an answer;
            'leave_out': take what there is.

    Raises:
        ValueError: in one line, for answers to another study, of a stranger or twice of a reader, and for what is incomplete.
    """
    of_reader: dict[str, tuple[Path, ReaderAnswers]] = {}
    for path in files:
        answers = read_answers(path)
        if answers.study != key.study:
            raise ValueError(f"{path} answers study {answers.study}, the key is that of study {key.study}")
        if answers.reader not in key.readers:
            raise ValueError(f"{path} is of {answers.reader}, who is no reader of this study: {', '.join(key.readers)}")
        if answers.reader in of_reader:
            raise ValueError(
                f"{path} and {of_reader[answers.reader][0]} are both of {answers.reader}; take one of them"
            )
        of_reader[answers.reader] = path, answers
    if incomplete == "refuse":
        _require_all(of_reader, key)
    readers = [name for name in key.readers if name in of_reader]
    rows = [_by_volume(*of_reader[name], key) for name in readers]
    if incomplete == "refuse":
        _require_answered(rows, readers, of_reader, key)
    return Answers(readers, [of_reader[name][1].submitted for name in readers], rows)


_HOW = "--incomplete leave_out takes what there is"


def _require_all(of_reader: dict[str, tuple[Path, ReaderAnswers]], key: Key) -> None:
    missing = [name for name in key.readers if name not in of_reader]
    if missing:
        raise ValueError(f"there are no answers of {', '.join(missing)}; {_HOW}")
    for path, answers in of_reader.values():
        if answers.submitted is None:
            raise ValueError(f"{path}: {answers.reader} has not submitted yet; {_HOW}")


def _by_volume(path: Path, answers: ReaderAnswers, key: Key) -> list[Optional[CaseAnswer]]:
    row: list[Optional[CaseAnswer]] = [None] * len(key.volumes)
    indices, shape = key.readers[answers.reader], key.facts["steps"]["grid"]
    for answer in answers.cases:
        if answer.case == key.trial:
            continue
        if answer.case not in indices:
            raise ValueError(f"{path} answers {answer.case}, which is no case of this study")
        if row[indices[answer.case]] is not None:
            raise ValueError(f"{path} answers {answer.case} twice")
        for mark in answer.marks:
            if not all(0 <= place < side for place, side in zip(mark.index, shape)):
                raise ValueError(f"{path}: {answer.case} has a mark at {list(mark.index)}, outside of the volume")
        row[indices[answer.case]] = answer
    return row


def _require_answered(
    rows: list[list[Optional[CaseAnswer]]],
    readers: list[str],
    of_reader: dict[str, tuple[Path, ReaderAnswers]],
    key: Key,
) -> None:
    for name, row in zip(readers, rows):
        for case, index in key.readers[name].items():
            answer = row[index]
            lacking = ["all"] if answer is None else answer.unanswered()
            if lacking:
                raise ValueError(f"{of_reader[name][0]}: {case} has no answer to {', '.join(lacking)}; {_HOW}")
