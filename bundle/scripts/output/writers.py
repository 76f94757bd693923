"""What is made of generated volumes besides NIfTI and JSON; a run names what it wants in its list of writers."""

from __future__ import annotations

from typing import Any, Mapping, Sequence, Union

import nibabel as nib
import numpy as np
from PIL.PngImagePlugin import PngInfo

from ..data.dicom.writing import series_folder, write_series, written_series
from ..data.intensity import HU, to_hu
from ..data.pictures import labelled_picture
from ..data.readers import read_file
from ..files import sha256_of, whole_file
from ..review.viewer import Viewed, most_script_bytes, write_view
from .generated import MARK, GeneratedVolume, is_generated

_BYTES = 2  # of a voxel, before compression
_PICTURE_BYTES, _PAGE_BYTES, _HEADER_BYTES = 2e6, 2e5, 1e6  # of preview.png, view.html, a series: more than was seen
_PICTURED = 4  # volumes in a preview
_VIEWED = 24  # volumes in view.html, each of which is stored once more for it


class Writer:
    """Makes something of each volume, or of all volumes of a run; a subclass overrides what it does.

    Its outputs lie in the folder of the volumes and are made of what is stored there, never of the sampler: so they can be
    asked for later.
    """

    page = ""  # name of the file that `finish` writes

    def check(self, provenance: Mapping[str, Any]) -> None:
        """Before anything is sampled: ValueError in one line where volumes made in this way cannot be written."""

    def most_bytes(self, voxels: int, num_volumes: int) -> float:
        """Disk that it takes at most for so many volumes of so many voxels."""
        return 0.0

    def is_there(self, volume: GeneratedVolume) -> bool:
        """Whether all that `write` makes of a stored volume is there; ValueError where other files are in its way."""
        return True

    def write(self, volume: GeneratedVolume) -> None:
        """Makes it, in the place of an earlier one."""

    def finish(self, volumes: Sequence[GeneratedVolume], overwrite: bool) -> None:
        """At the end, in the first process: all volumes that the run was asked for are there."""


class Preview(Writer):
    """preview.png: the first four volumes, see `labelled_picture`."""

    page = "preview.png"

    def most_bytes(self, voxels: int, num_volumes: int) -> float:
        return _PICTURE_BYTES

    def finish(self, volumes: Sequence[GeneratedVolume], overwrite: bool) -> None:
        read = [volume.read() for volume in volumes[:_PICTURED]]
        size_mm = nib.affines.voxel_sizes(read[0][1]) * read[0][0].shape
        names, mark = [f"seed {volume.facts['seed']}" for volume in volumes[:_PICTURED]], PngInfo()
        picture = labelled_picture([hu for hu, _ in read], size_mm, names, "Synthetic CT, drawn by PRDiT: no patient")
        mark.add_text("Description", MARK)
        path = volumes[0].path.with_name(self.page)
        if path.exists() and not overwrite and MARK.encode() not in path.read_bytes():
            print(f"{path} was not made by this bundle and stays as it is")
        else:
            with whole_file(path) as file:
                picture.save(file, format="png", pnginfo=mark)


class View(Writer):
    """view.html: all generated volumes of the folder, the first by name where there are many."""

    page = "view.html"

    def most_bytes(self, voxels: int, num_volumes: int) -> float:
        return _PAGE_BYTES + min(num_volumes, _VIEWED) * most_script_bytes(voxels)

    def finish(self, volumes: Sequence[GeneratedVolume], overwrite: bool) -> None:
        folder = volumes[0].path.parent
        there = [GeneratedVolume(path) for path in sorted(folder.glob("seed_*.nii.gz")) if is_generated(path)]
        notes = [MARK, "for research only, not for diagnosis"]
        if len(there) > _VIEWED:
            notes.append(f"the first {_VIEWED} of {len(there)} volumes are shown")
        shown = [_viewed(volume) for volume in there[:_VIEWED]]
        try:
            left_out = write_view(folder, shown, f"Volumes in {folder.resolve().name}", notes, overwrite)
        except ValueError as error:
            print(f"there is no new view.html: {error}")
        else:
            for name, reason in left_out.items():
                print(f"view.html leaves out {name}: {reason}")


def _viewed(volume: GeneratedVolume) -> Viewed:
    intensity = volume.facts.get("intensity", HU)

    def load() -> tuple[np.ndarray, list[float]]:
        stored = read_file(volume.path)
        return np.rint(to_hu(stored[0].numpy(), intensity)).astype(np.int16), stored.pixdim.tolist()

    unit = "HU" if intensity == HU else "(not HU)"
    return Viewed(volume.name, load, unit=unit, digest=sha256_of(volume.path))


class Dicom(Writer):
    """seed_000000_dicom: a CT series per volume, see `write_series`."""

    def check(self, provenance: Mapping[str, Any]) -> None:
        if provenance.get("intensity", HU) != HU:
            raise ValueError("dicom needs volumes in HU; these weights make scaled ones (paper_compat)")

    def most_bytes(self, voxels: int, num_volumes: int) -> float:
        return num_volumes * (voxels * _BYTES + _HEADER_BYTES)

    def is_there(self, volume: GeneratedVolume) -> bool:
        header = written_series(series_folder(volume.path))
        return header is not None and volume.facts.get("volume_sha256", "?") in header.DerivationDescription

    def write(self, volume: GeneratedVolume) -> None:
        write_series(*volume.read(), series_folder(volume.path), volume.origin())


class Nifti(Writer):
    """seed_000000.nii.gz, which the store itself writes before all others."""

    def most_bytes(self, voxels: int, num_volumes: int) -> float:
        return num_volumes * voxels * _BYTES


WRITERS: dict[str, type[Writer]] = {"nifti": Nifti, "preview": Preview, "view": View, "dicom": Dicom}


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
