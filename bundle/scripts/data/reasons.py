"""Why a CT is not taken, in words for its owner."""

from __future__ import annotations

from ..errors import is_bad_input


def reason_of(error: Exception) -> str:
    """What to tell of an error at one source: our own words, or what kind of error a library raised.

    The words of libraries stay untold: they quote paths, UIDs and values of tags.
    """
    if is_bad_input(error):
        return str(error)
    if isinstance(error, MemoryError) or "allocate memory" in str(error):  # PyTorch raises a RuntimeError
        return "too large for the memory of this machine"
    if isinstance(error, OSError) and error.strerror:
        return f"cannot be opened: {error.strerror}"
    return f"cannot be read ({type(error).__name__}): damaged, or not what its name says; export it again"
