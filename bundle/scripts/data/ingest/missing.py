"""Volumes of earlier runs whose sources are gone, for instance because a patient withdrew consent."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Sequence

from ...words import count

_NAME = re.compile(r"([0-9a-f]{12}_[0-9a-f]{8})\.(nii\.gz|json|jpg)")


def tell_missing(folder: Path, records: Sequence[dict[str, Any]], remove: bool) -> list[str]:
    """Notes about the volumes in a data set that stand for no source of this run, and deletes them where asked.

    Nothing is deleted while sources cannot be opened, since theirs may only seem to be gone.

    Args:
        folder: the data set.
        records: of this run, see `VolumeJob`.
        remove: whether to delete.
    """
    names = {record["volume"] for record in records}
    files: dict[str, list[Path]] = {}
    for path in [*folder.glob("volumes/*"), *folder.glob("records/*")]:
        match = _NAME.fullmatch(path.name)
        if match and match[1] not in names:
            files.setdefault(match[1], []).append(path)
    gone = sum((folder / "volumes" / f"{name}.nii.gz").is_file() for name in files)
    told = f"the sources of {count(gone, 'volume')} of earlier runs are gone"
    if not remove:
        return [f"{told}; they are kept, but not listed; --remove_missing True deletes them"] if gone else []
    if any("cannot be opened" in record["reason"] for record in records):
        return [f"{told}; nothing was removed, since other sources cannot be opened"] if gone else []
    for path in [path for paths in files.values() for path in paths]:
        path.unlink()
    return [f"{told}; they were removed"] if gone else []
