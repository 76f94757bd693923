"""Words for numbers, in what users read."""

from __future__ import annotations

from datetime import timedelta
from typing import Any, Sequence, Union


def count(number: int, thing: str) -> str:
    """'1 volume', '4 volumes', '1,500 steps': a number and what it counts, in the singular given."""
    return f"{number:,} {thing}{'' if number == 1 else 's'}"


def as_typed(value: Any) -> str:
    """A setting as users type it: null, true."""
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def bytes_in_words(number: float) -> str:
    """'3 MB', '1.4 GB'."""
    return f"{number / 1e6:.0f} MB" if number < 1e8 else f"{number / 1e9:.2g} GB"


def voxels_in_words(grid: Sequence[int], size_mm: Union[float, Sequence[float]]) -> str:
    """A grid and the size of its voxels, such as `64³ voxels of 5 mm`."""
    sides = f"{grid[0]}³" if len(set(grid)) == 1 else " x ".join(map(str, grid))
    sizes = [size_mm] * 3 if isinstance(size_mm, (int, float)) else size_mm
    spacing = list(dict.fromkeys(f"{length / side:.3g}" for length, side in zip(sizes, grid)))
    return f"{sides} voxels of {' x '.join(spacing)} mm"


def duration(seconds: float) -> str:
    """A time as people say it: `9 s`, `12 min`, `3 h 20 min`, `4 days`."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    if seconds < 90 * 60:
        return f"{round(seconds / 60)} min"
    if seconds < 48 * 3600:
        hours, minutes = divmod(round(timedelta(seconds=seconds) / timedelta(minutes=1)), 60)
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    return f"{seconds / 86400:.1f} days"
