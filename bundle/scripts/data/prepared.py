"""What who makes a data set and who trains on it agree on."""

from __future__ import annotations

import hashlib
from typing import Callable, Iterable, TypeVar

VALIDATION_SHARE = 0.1
PREPARATION = "preparation.json"  # of a prepared data set: its settings
Item = TypeVar("Item")


def as_bytes(text: str) -> bytes:
    """Any text as bytes, names of files that are not UTF-8 included."""
    return text.encode("utf-8", "surrogateescape")


def split_by_name(items: Iterable[Item], name: Callable[[Item], str]) -> tuple[list[Item], list[Item]]:
    """90 % for training, 10 % for validation, by a hash of their names: the same for all who have the same.

    At least one of several is for validation, none of a single one.
    """
    order = sorted(items, key=lambda item: hashlib.sha256(as_bytes(name(item))).hexdigest())
    count = max(1, round(VALIDATION_SHARE * len(order))) if len(order) > 1 else 0
    return order[count:], order[:count]
