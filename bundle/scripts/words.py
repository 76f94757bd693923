"""Words for numbers, in what users read."""

from __future__ import annotations


def count(number: int, thing: str) -> str:
    """'1 volume', '4 volumes', '1,500 steps': a number and what it counts, in the singular given."""
    return f"{number:,} {thing}{'' if number == 1 else 's'}"


def bytes_in_words(number: float) -> str:
    """'3 MB', '1.4 GB'."""
    return f"{number / 1e6:.0f} MB" if number < 1e8 else f"{number / 1e9:.2g} GB"
