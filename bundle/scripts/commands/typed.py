"""What was typed after `prdit COMMAND`: settings by position and by name, each as it was typed."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, field
from typing import Collection, Mapping, Optional, Sequence

SWITCHED_ON = "True"  # what a flag without a value is for Fire


@dataclass
class Typed:
    """Words of a command line.

    Args:
        positions: without a name.
        settings: by name; the text stays what it is, since MONAI's own parser will read it.
    """

    positions: list[str] = field(default_factory=list)
    settings: dict[str, str] = field(default_factory=dict)

    def take(self, name: str) -> Optional[str]:
        """A flag of prdit itself, which MONAI does not get; None where it was not given."""
        return self.settings.pop(name, None)


def read_words(words: Sequence[str], switches: Collection[str] = ()) -> Typed:
    """Sorts words as Fire does: `--name value`, `--name=value`, and `--name` alone for a switch.

    Args:
        words: after the command's name.
        switches: flags that take no value.
    """
    typed, rest = Typed(), list(words)
    while rest:
        word = rest.pop(0)
        if not is_flag(word):
            typed.positions.append(word)
            continue
        name, equals, value = word.lstrip("-").partition("=")
        name = name.replace("-", "_")
        if not equals:
            alone = name in switches or not rest or is_flag(rest[0])
            value = SWITCHED_ON if alone else rest.pop(0)
        if name in typed.settings:
            raise ValueError(f"{name} is given twice")
        typed.settings[name] = value
    return typed


def is_flag(word: str) -> bool:
    """Whether Fire, too, takes a word for the name of a setting: it begins with a dash and is no number."""
    return word.startswith("-") and word[1:2] != "" and not word[1:2].isdigit() and word[1:2] != "."


def named(typed: Typed, positions: Mapping[str, str], short: Mapping[str, str], what: str) -> dict[str, str]:
    """All settings by their full names, those by position first.

    Raises:
        ValueError: in one line, for too many positions, or some of them alone, or a setting given twice.
    """
    if len(typed.positions) > len(positions):
        places = " ".join(positions.values())
        raise ValueError(
            f"{what} takes {places}, and everything else as --name value; got {typed.positions[len(positions)]!r}, too"
        )
    settings = dict(zip(positions, typed.positions))
    for name, value in typed.settings.items():
        name = short.get(name, name)
        if name in settings:
            raise ValueError(f"{name} is given twice, {settings[name]} and {value}")
        settings[name] = value
    lacking = [place for setting, place in positions.items() if setting not in settings]
    if typed.positions and lacking:
        raise missing(lacking, positions, what)
    return settings


def missing(lacking: Sequence[str], positions: Mapping[str, str], what: str) -> ValueError:
    """The error about places that are not given, with all that the command takes."""
    names = " and ".join(lacking)
    return ValueError(f"{names} {'is' if len(lacking) == 1 else 'are'} missing: {what} {' '.join(positions.values())}")


def nearest(name: str, known: Collection[str]) -> str:
    """`; did you mean X?`, or nothing where no name is near."""
    near = difflib.get_close_matches(name, known, 1)
    return f"; did you mean {near[0]}?" if near else ""
