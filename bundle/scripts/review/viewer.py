"""Pages that show volumes in any browser, opened from disk: the viewer `view.html` and the page of a reader study.

A page opened from disk may read no other file but scripts. So a volume is a script that calls a function of the page with
gzip'd int16 in base64; the page inserts it when the volume is shown, and forgets the volume when it is not.
"""

from __future__ import annotations

import base64
import gzip
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Mapping, Sequence

import numpy as np

from ..files import PathLike, remove_leftovers, require_own, whole_file, write_text
from ..pages import render

MARK = "page of CT volumes by PRDiT"  # in all files written here
_PAGE = Path(__file__).parent / "page"
_VOLUMES = "view"  # folder of the scripts beside view.html


@dataclass(frozen=True)
class Viewed:
    """A volume that `view.html` shows.

    Attributes:
        name: that the page shows.
        load: the volume, int16 (X, Y, Z) in RAS, and its spacing (3,) in mm; a ValueError says why it cannot be shown.
        group: of volumes, such as 'generated' and 'real', that the page lists together.
        unit: of the values.
        digest: of the file that it comes from: what was written of the same file is kept.
    """

    name: str
    load: Callable[[], tuple[np.ndarray, Sequence[float]]]
    group: str = "generated"
    unit: str = "HU"
    digest: str = ""


def write_volume_script(
    path: PathLike, volume: np.ndarray, spacing_mm: Sequence[float], name: str, compress: bool = True, source: str = ""
) -> None:
    """Writes one volume as a script for a page; the same bytes every time.

    Args:
        path: of the script.
        volume: int16 (X, Y, Z) in RAS.
        spacing_mm: of the voxels along x, y, z.
        name: of the volume, in the script.
        compress: False makes the sizes of scripts of one grid equal, so that they tell nothing of what is in them.
        source: kept in the first line, see `Viewed.digest`.
    """
    header = {"name": name, "shape": list(volume.shape), "spacing": [float(side) for side in spacing_mm]}
    voxels = np.ascontiguousarray(volume.T, "<i2")  # x runs fastest
    data = base64.b64encode(gzip.compress(voxels.data, 1 if compress else 0, mtime=0))
    with whole_file(path) as file:
        file.write(_first_line(source) + f"prditVolume({json.dumps(header)},".encode())
        file.write(b'"' + data + b'");\n')


def most_script_bytes(voxels: int) -> float:
    """Disk for the script of a volume that cannot be compressed."""
    return voxels * 2 * 4 / 3  # int16 in base64


def _first_line(source: str = "") -> bytes:
    return f"// {MARK} {source}".rstrip().encode() + b"\n"


def write_view(
    folder: PathLike, volumes: Sequence[Viewed], title: str, notes: Sequence[str] = (), overwrite: bool = False
) -> dict[str, str]:
    """Writes `view.html`, which shows volumes, and their scripts in the folder `view` beside it.

    Scripts of earlier pages that this one does not show are removed; files that this module did not write stay.

    Args:
        folder: of the page.
        volumes: to show, those of a group together.
        title: of the page.
        notes: sentences for the page.
        overwrite: replace files of other origin that are in the way.

    Returns:
        Why volumes are left out, by their names.

    Raises:
        ValueError: in one line, when a file is in the way, or no volume can be shown.
    """
    folder = Path(folder)
    scripts = [folder / _VOLUMES / f"{index:03d}.js" for index in range(len(volumes))]
    for path in () if overwrite else (folder / "view.html", *scripts):
        require_own(path, MARK, "output_dir")
    remove_leftovers(folder / _VOLUMES)
    shown, left_out = [], {}
    for one, script in zip(volumes, scripts):
        if not (one.digest and _starts_with(script, _first_line(one.digest))):
            try:
                volume, spacing_mm = one.load()
            except ValueError as error:
                left_out[one.name] = str(error)
                continue
            write_volume_script(script, volume, spacing_mm, one.name, source=one.digest)
        shown.append({"name": one.name, "group": one.group, "unit": one.unit, "script": f"{_VOLUMES}/{script.name}"})
    if not shown:
        raise ValueError(next(iter(left_out.values()), f"there is no volume to show in {folder}"))
    for script in (folder / _VOLUMES).glob("*.js"):
        if f"{_VOLUMES}/{script.name}" not in [one["script"] for one in shown] and _starts_with(script, _first_line()):
            script.unlink()
    page = {"title": title, "notes": [*notes, *(f"{name} is left out" for name in left_out)], "volumes": shown}
    write_text(folder / "view.html", _page("view", title, page))
    return left_out


def write_reader_page(folder: PathLike, study: Mapping[str, Any]) -> None:
    """Writes `index.html`, the page of one reader of a study.

    Args:
        folder: of the reader, with the scripts of the cases.
        study: 'study', its id; 'reader', a name; 'title'; 'window', the HU [low, high] that the cases are first shown in;
            'cases', each with 'id' and 'script', its path in the folder; 'trial', a case like these or None, and 'note',
            text for the reader.
    """
    write_text(Path(folder) / "index.html", _page("reader", str(study["title"]), study))


def _starts_with(path: Path, start: bytes) -> bool:
    """Whether a file of ours begins like this; a first line of nothing but the mark stands for any."""
    if not path.is_file():
        return False
    with open(path, "rb") as file:
        line = file.readline(1000)
    return line == start or (start == _first_line() and line.startswith(start.rstrip()))


def _page(name: str, title: str, data: Mapping[str, Any]) -> str:
    """A page with its style, code and data in it."""
    style = "".join(_read(f"{part}.css") for part in ("viewer", name))
    code = "".join(_read(f"{part}.js") for part in ("volume", "viewer", name))
    title = title.encode(errors="replace").decode()  # names of files need not be UTF-8
    return render(
        "review/page/page.html", mark=MARK, title=title, style=style, code=code, body=_read(f"{name}.html"), data=data
    )


def _read(name: str) -> str:
    return (_PAGE / name).read_text(encoding="utf-8")
