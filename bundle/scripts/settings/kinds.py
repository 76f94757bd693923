"""Kinds of settings: what a value may be, checked and converted by pydantic, with the words for an error message."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Callable, Literal, Optional, Union

import yaml
from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError

from .values import usable_device

LARGEST = 1e30  # of a number without another bound: PyTorch refuses what single precision cannot hold


@dataclass(frozen=True)
class Kind:
    """What a setting may be.

    Args:
        annotation: the type for pydantic.
        words: what is right, as an error message says it after "must be".
        verbatim: the text is taken as it was typed: a folder called `2025` is no number.
        many: a list or table may be typed, too.
    """

    annotation: Any
    words: str
    verbatim: bool = False
    many: bool = False

    @cached_property
    def _adapter(self) -> TypeAdapter:
        return TypeAdapter(self.annotation, config=ConfigDict(arbitrary_types_allowed=True, allow_inf_nan=False))

    def convert(self, value: Any) -> Any:
        """The value in its type; pydantic's ValidationError, a ValueError, where it is of another kind."""
        return self._adapter.validate_python(value)

    def allows(self, value: Any) -> bool:
        """Whether a value is of this kind."""
        try:
            self.convert(value)
        except ValidationError:
            return False
        return True

    def checked(self, name: str, value: Any) -> Any:
        """The value of a setting in its type; ValueError in one line that names it where it is of another kind."""
        try:
            return self.convert(value)
        except ValidationError:
            if value is None:
                raise ValueError(f"{name} is needed: give --{name}, {self.words}") from None
            given = repr(value) if len(repr(value)) <= 100 else repr(value)[:97] + "..."
            why = " (MONAI makes :: of #)" if isinstance(value, str) and "::" in value else ""
            raise ValueError(f"{name} must be {self.words}, got {given}{why}") from None


def maybe(kind: Kind) -> Kind:
    """The same, or null, which Fire leaves a word."""
    values: Any = kind.annotation
    annotation = Annotated[Optional[values], BeforeValidator(lambda value: None if value == "null" else value)]
    return replace(kind, annotation=annotation, words=f"{kind.words}, or null")


def whole(least: int, most: int) -> Kind:
    """A whole number."""
    return Kind(_whole(least, most), f"a whole number from {least} to {most}")


def number(
    least: Optional[float] = None,
    most: Optional[float] = None,
    above: Optional[float] = None,
    below: Optional[float] = None,
) -> Kind:
    """A finite number of single precision; `least` and `most` are allowed, `above` and `below` are not."""
    most = LARGEST if most is None and below is None else most
    bounds = ((least, "at least"), (above, "more than"), (most, "at most"), (below, "less than"))
    words = " and ".join(f"{word} {bound:g}" for bound, word in bounds if bound is not None)
    return Kind(_number(ge=least, le=most, gt=above, lt=below), f"a number {words}")


def sides(least: int, most: int) -> Kind:
    """Voxels along x, y, z as a list; one number is a cube."""
    return Kind(
        _list(_whole(least, most), 3, 3, _cube),
        f"one or three whole numbers from {least} to {most}, such as 64 or [64,64,64]",
    )


def lengths(least: float, most: float) -> Kind:
    """A length in each direction, or three along x, y, z."""
    length = _number(ge=least, le=most)
    return Kind(Union[length, _list(length, 3, 3)], f"one or three numbers from {least:g} to {most:g}")


def choice(*names: Union[str, int]) -> Kind:
    """One of a few words or numbers."""
    return Kind(Literal[names], "one of " + ", ".join(map(str, names)))


def only(value: int, words: str) -> Kind:
    """A whole number that the stack leaves no choice of."""
    return Kind(_whole(value, value), words)


def several(kind: Kind, least: int = 1, most: Optional[int] = None, words: str = "") -> Kind:
    """A list; one value is a list of one."""
    return Kind(_list(kind.annotation, least, most, _listed), words or f"a list, each {kind.words}")


def components(*names: str) -> Kind:
    """A list of names of what is known, or of what a config builds."""
    return Kind(
        _list(Union[Literal[names], Annotated[Any, AfterValidator(_component)]], 1, None, _listed),
        f"a list, each one of {', '.join(names)}, or a component",
    )


def named(kind: Kind, example: str) -> Kind:
    """Values by name."""
    values: Any = kind.annotation
    table = Annotated[dict[_TEXT, values], BeforeValidator(_collection), Field(min_length=1)]
    return Kind(table, f"names with values, such as {example}", kind.verbatim, many=True)


def _whole(least: int, most: int) -> Any:
    return Annotated[int, BeforeValidator(_no_switch), Field(ge=least, le=most)]


def _number(**bounds: Optional[float]) -> Any:
    return Annotated[float, BeforeValidator(_no_switch), Field(**bounds)]  # type: ignore[call-overload]


def _list(annotation: Any, least: int, most: Optional[int], before: Callable[[Any], Any] = lambda value: value) -> Any:
    return Annotated[list[annotation], BeforeValidator(before), Field(min_length=least, max_length=most)]


def _no_switch(value: Any) -> Any:
    """pydantic would count True as 1."""
    if isinstance(value, bool):
        raise ValueError("a switch is no number")
    return value


def _cube(value: Any) -> Any:
    return value if isinstance(value, (list, tuple)) else [value] * 3


def _component(value: Any) -> Any:
    """What MONAI has built, or will build."""
    if isinstance(value, (str, int, float, type(None))) or isinstance(value, dict) and "_target_" not in value:
        raise ValueError("no component")
    return value


def _listed(value: Any) -> Any:
    value = _collection(value, "[")
    return value if isinstance(value, (list, tuple)) else [value]


def _names(value: Any) -> Any:
    if not isinstance(value, (str, list, tuple)) or (isinstance(value, str) and value.isdecimal()):
        raise ValueError("a number alone is no name")
    return _listed(value)


def _collection(value: Any, start: str = "{") -> Any:
    """A list or table whose words Fire could not read, such as `{'ours': out/A}`, is YAML."""
    if not isinstance(value, str) or not value.startswith(start):
        return value
    try:
        return yaml.safe_load(value)
    except yaml.YAMLError:
        return value


def _text(value: Any) -> str:
    """Text; a whole number is what Fire or YAML makes of a name such as 2025."""
    if isinstance(value, bool) or not isinstance(value, (str, int, os.PathLike)):
        raise ValueError("no text")
    text = os.fspath(value) if isinstance(value, os.PathLike) else str(value)
    if not text.strip() or not text.isprintable() and any(ord(letter) < 32 for letter in text):
        raise ValueError("empty, or with control characters")
    return text


def _path(text: str) -> str:
    if "::" in text:
        raise ValueError("MONAI's separator")  # what it makes of '#', see check.py
    try:
        return str(Path(text).expanduser()) if text.startswith("~") else text
    except RuntimeError:
        raise ValueError("the home folder of nobody here") from None


def _name(text: str) -> str:
    if "/" in text or "\\" in text or text.startswith(".") or len(text) > 100:
        raise ValueError("no part of a file name")
    return text


def _weights(path: str) -> str:
    if not path.endswith(".pt"):
        raise ValueError("their JSON would not be found")
    return path


def _file_there(path: str) -> str:
    if not os.path.exists(path):  # of a folder, the weights that lie in it are told later
        raise ValueError("not there")
    return path


def _weights_there(path: str) -> str:
    return _file_there(path) if os.path.isdir(path) else _file_there(_weights(path))


def _folder_there(path: str) -> str:
    if not os.path.isdir(path):
        raise ValueError("not there")
    return path


def _ordered(window: list[float]) -> list[float]:
    if window[1] - window[0] < _NARROWEST:
        raise ValueError("reversed, or too narrow")
    return window


_NARROWEST = 10.0  # HU; the noise of a CT is wider, so that a narrower window is a slip of the pen
_TWO: Any = _list(_number(ge=-100_000, le=100_000), 2, 2)
_TEXT = Annotated[str, BeforeValidator(_text)]
_PATH = Annotated[str, BeforeValidator(_text), AfterValidator(_path)]

COMPONENT = Kind(None, "null, or what an overlay builds")
SWITCH = Kind(bool, "True or False")
TEXT = Kind(_TEXT, "text", verbatim=True)
NAME = Kind(
    Annotated[str, BeforeValidator(_text), AfterValidator(_name)],
    "a part of a file's name, without slashes and with at most 100 letters",
    verbatim=True,
)
FILE = Kind(_PATH, "the name of a file", verbatim=True)
FOLDER = Kind(_PATH, "the name of a folder", verbatim=True)
NEW_WEIGHTS = Kind(Annotated[_PATH, AfterValidator(_weights)], "the name of a file that ends in .pt", verbatim=True)
INPUT_FILE = Kind(Annotated[_PATH, AfterValidator(_file_there)], "a file that exists", verbatim=True)
INPUT_WEIGHTS = Kind(
    Annotated[_PATH, AfterValidator(_weights_there)], "a file that exists and ends in .pt", verbatim=True
)
INPUT_FOLDER = Kind(Annotated[_PATH, AfterValidator(_folder_there)], "a folder that exists", verbatim=True)
FILE_OR_HUB = Kind(
    Annotated[_PATH, AfterValidator(lambda path: path if path == "hub" else _file_there(path))],
    "a file that exists, or hub",
    verbatim=True,
)
INPUT = Kind(Annotated[_PATH, AfterValidator(_file_there)], "a file or folder that exists", verbatim=True)
INPUTS = Kind(
    _list(Annotated[_PATH, AfterValidator(_file_there)], 1, None, _listed),
    "a folder or file that exists, or several, such as \"['a','b']\"",
    verbatim=True,
    many=True,
)
READERS = Kind(
    Union[_whole(1, 100), _list(_TEXT, 1, 100, _names)], "a whole number from 1 to 100, or names such as ['Ana','Ben']"
)
WINDOW = Kind(
    Annotated[_TWO, AfterValidator(_ordered)],
    f"two numbers, the lower one first and {_NARROWEST:g} apart or more, such as [-1000,1000]",
)
DEVICE = Kind(Annotated[Any, BeforeValidator(usable_device)], "a device that PyTorch has here, such as cpu or cuda:0")
