"""One source to one volume on disk, with a record of what was found and done."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Optional

import nibabel as nib
import numpy as np
import torch
from monai.data import MetaTensor

from ..files import whole_file, write_text
from .dicom import MAX_TILT_DEGREES
from .intensity import to_hu
from .nifti import save_nifti
from .pictures import preview_picture
from .preparation import Preparation
from .pseudonyms import Pseudonym
from .sources import Source

HISTOGRAM_EDGES = np.linspace(-1024, 1024, 65)  # HU
_THUMBNAIL_PIXELS = 96


class VolumeJob:
    """Makes one volume and its record; runs in a worker process.

    Args:
        folder: the data set.
        preparation: what is done.
        pseudonym: names that say nothing about a patient.
    """

    def __init__(self, folder: Path, preparation: Preparation, pseudonym: Pseudonym) -> None:
        self.folder, self.preparation, self.pseudonym = folder, preparation, pseudonym

    def image_path(self, name: str) -> Path:
        return self.folder / "volumes" / f"{name}.nii.gz"

    def record_path(self, name: str) -> Path:
        return self.folder / "records" / f"{name}.json"

    def record(self, source: Source) -> Optional[dict[str, Any]]:
        """What was written about an accepted source in an earlier run, if the source is still the same."""
        name = self.pseudonym.of(source)
        try:
            record = json.loads(self.record_path(name).read_text())
        except (OSError, ValueError):
            return None
        there = self.image_path(name).is_file() and record["status"] == "accepted"
        return record if there and record["source_state"] == self._state(source) else None

    def _state(self, source: Source) -> str:
        """Changes when a file of the source does."""
        facts = [(status.st_size, status.st_mtime_ns) for status in map(os.stat, source.files)]
        return self.pseudonym.hash(json.dumps(facts), 16)

    def __call__(self, source: Source) -> dict[str, Any]:
        """Writes the volume, a picture and, last, the record; a source that cannot be used has a record alone.

        Where nothing can be written, the record that is returned has the status 'stopped'.
        """
        try:
            return self._make(source)
        except OSError as error:  # the disk is full; an exception would come out of a worker with a traceback
            return {"status": "stopped", "reason": error.strerror}

    def _make(self, source: Source) -> dict[str, Any]:
        torch.set_num_threads(1)
        name = self.pseudonym.of(source)
        record: dict[str, Any] = {
            "volume": name,
            "patient": self.pseudonym.patient(source),
            "section": source.section,
            "kind": source.kind,
            "slices": source.num_slices or None,
            "status": "rejected",
            "reason": source.reason,
        }
        if not source.reason:
            try:
                record |= self._prepare(source, name)
            except ValueError as error:
                record["reason"] = str(error)
            except MemoryError:
                record["reason"] = "too large for the memory of this machine"
        write_text(self.record_path(name), json.dumps(record, indent=1) + "\n")
        return record

    def _prepare(self, source: Source, name: str) -> dict[str, Any]:
        state = self._state(source)
        volume = source.read()
        facts = _original_facts(volume)
        if source.series is not None and source.series.tilt_degrees > MAX_TILT_DEGREES:
            facts["tilt_degrees"] = round(source.series.tilt_degrees, 1)
        values, affine, more = self.preparation(volume)
        del volume
        size_mm = [side * mm for side, mm in zip(self.preparation.size, self.preparation.spacing)]
        shown = to_hu(values, self.preparation.intensity)
        picture = preview_picture([shown], size_mm, _THUMBNAIL_PIXELS)
        save_nifti(values, affine, self.image_path(name), "CT", self.preparation.intensity)
        with whole_file(self.record_path(name).with_suffix(".jpg")) as file:
            picture.save(file, format="jpeg", quality=80)
        histogram = np.histogram(np.clip(shown, HISTOGRAM_EDGES[0], HISTOGRAM_EDGES[-1]), HISTOGRAM_EDGES)[0].tolist()
        return {"status": "accepted", **facts, **more, "histogram": histogram, "source_state": state}


def _original_facts(volume: MetaTensor) -> dict[str, Any]:
    affine = np.asarray(volume.affine, float)
    return {
        "original_shape": list(volume.shape[1:]),
        "original_spacing_mm": [round(float(value), 4) for value in volume.pixdim],
        "original_axes": "".join(nib.aff2axcodes(affine)),
        "original_min": float(volume.min()),
        "original_max": float(volume.max()),
    }
