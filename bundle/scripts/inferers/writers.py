"""What is made of generated volumes besides NIfTI and JSON; a run names what it wants in its list of writers."""

from __future__ import annotations

from typing import Any, Mapping, Sequence, Union

import nibabel as nib
from PIL.PngImagePlugin import PngInfo

from ..data.generated import MARK, GeneratedVolume
from ..data.pictures import preview_picture
from ..files import whole_file

_PICTURED = 4  # volumes in a preview


class Writer:
    """Makes something of each volume, or of all volumes of a run; a subclass overrides what it does.

    Its outputs lie in the folder of the volumes and are made of what is stored there, never of the sampler: so they can be
    asked for later.
    """

    def check(self, provenance: Mapping[str, Any]) -> None:
        """Before anything is sampled: ValueError in one line where volumes made in this way cannot be written."""

    def is_there(self, volume: GeneratedVolume) -> bool:
        """Whether all that `write` makes of a stored volume is there; ValueError where other files are in its way."""
        return True

    def write(self, volume: GeneratedVolume) -> None:
        """Makes it, in the place of an earlier one."""

    def finish(self, volumes: Sequence[GeneratedVolume], overwrite: bool) -> None:
        """At the end, in the first process: all volumes that the run was asked for are there."""


class Preview(Writer):
    """preview.png: the first four volumes."""

    def finish(self, volumes: Sequence[GeneratedVolume], overwrite: bool) -> None:
        read = [volume.read() for volume in volumes[:_PICTURED]]
        size_mm = nib.affines.voxel_sizes(read[0][1]) * read[0][0].shape
        picture, mark = preview_picture([hu for hu, _ in read], size_mm), PngInfo()
        mark.add_text("Description", MARK)
        path = volumes[0].path.with_name("preview.png")
        if path.exists() and not overwrite and MARK.encode() not in path.read_bytes():
            print(f"{path} was not made by this bundle and stays as it is")
        else:
            with whole_file(path) as file:
                picture.save(file, format="png", pnginfo=mark)


WRITERS: dict[str, type[Writer]] = {"nifti": Writer, "preview": Preview}  # the store itself writes NIfTI


def writers_of(names: Sequence[Union[str, Writer]]) -> list[Writer]:
    """The writers of a run.

    Args:
        names: names in `WRITERS`, or writers; each once, whatever the number.

    Raises:
        ValueError: in one line, for an unknown name, or where NIfTI is missing, of which all else is made.
    """
    for name in names:
        if not isinstance(name, Writer) and name not in WRITERS:
            raise ValueError(f"writers must be of {', '.join(WRITERS)}, or components, got {name!r}")
    if "nifti" not in names:
        raise ValueError("writers must hold nifti: everything else is made of it")
    return [name if isinstance(name, Writer) else WRITERS[name]() for name in dict.fromkeys(names)]
