"""One source to one volume on disk, with a record of what was found and done."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, NamedTuple, Optional

import nibabel as nib
import numpy as np
import torch
from monai.data import MetaTensor
from PIL import Image

from ...files import whole_file, write_json
from ..dicom import MAX_TILT_DEGREES, LeftOut
from ..intensity import to_hu
from ..nifti import save_nifti
from ..pictures import LUNG_WINDOW, MEDIASTINAL_WINDOW, preview_picture
from ..reasons import reason_of
from .parallel import died
from .preparation import Preparation
from .pseudonyms import Pseudonym
from .sources import Source

HISTOGRAM_EDGES = np.linspace(-1024, 1024, 65)  # HU
_WINDOWS = (LUNG_WINDOW, MEDIASTINAL_WINDOW)  # a row of the picture each
_PLANE_PIXELS = 256
PICTURE_SIZE = (3 * (_PLANE_PIXELS + 2), len(_WINDOWS) * (_PLANE_PIXELS + 2))  # width, height


class _Volume(NamedTuple):
    """A prepared volume (X, Y, Z) that is not written yet."""

    values: np.ndarray
    affine: np.ndarray
    picture: Image.Image
    facts: dict[str, Any]


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

    def picture_path(self, name: str) -> Path:
        return self.folder / "records" / f"{name}.jpg"

    def record_path(self, name: str) -> Path:
        return self.folder / "records" / f"{name}.json"

    def record(self, source: Source) -> Optional[dict[str, Any]]:
        """What was written about an accepted source in an earlier run, if the source is still the same."""
        name = self.pseudonym.of(source)
        try:
            record = json.loads(self.record_path(name).read_text())
            same = record["status"] == "accepted" and record["source_state"] == self._state(source)
        except (OSError, ValueError, KeyError, TypeError, RecursionError):  # none, damaged, or the source is gone
            return None
        return record if same and self.image_path(name).is_file() and self.picture_path(name).is_file() else None

    def _state(self, source: Source) -> str:
        """Changes when a file of the source does."""
        facts = [(status.st_size, status.st_mtime_ns) for status in map(os.stat, source.files)]
        return self.pseudonym.hash(json.dumps(facts), 16)

    def __call__(self, source: Source) -> dict[str, Any]:
        """Writes the volume, a picture and, last, the record; a source that cannot be used has a record alone.

        Whatever a library raises rejects the source with a reason. Where nothing can be written, the record that is
        returned has the status 'stopped'; one of something that is no CT is 'left out' and not written.
        """
        torch.set_num_threads(1)
        record, volume = self._begun(source), None
        if not source.reason:
            try:
                volume = self._prepared(source)
                record |= {"status": "accepted", **volume.facts}
            except LeftOut as error:
                return record | {"status": "left out", "reason": str(error)}
            except Exception as error:
                record["reason"] = reason_of(error)
        return self._written(record, volume)

    def reject(self, source: Source, cause: str) -> dict[str, Any]:
        """The record of a source at which the process of a worker ended."""
        return self._written(self._begun(source) | {"reason": died(cause)}, None)

    def _begun(self, source: Source) -> dict[str, Any]:
        return {
            "volume": self.pseudonym.of(source),
            "patient": self.pseudonym.patient(source),
            "section": source.section,
            "kind": source.kind,
            "slices": source.num_slices or None,
            "status": "rejected",
            "reason": source.reason,
        }

    def _prepared(self, source: Source) -> _Volume:
        state = self._state(source)
        volume = source.read()
        facts = _original_facts(volume)
        if source.series is not None and source.series.tilt_degrees > MAX_TILT_DEGREES:
            facts["tilt_degrees"] = round(source.series.tilt_degrees, 1)
        warnings = list(volume.meta.get("warnings", []))
        values, affine, more = self.preparation(volume)
        del volume
        size_mm = [side * mm for side, mm in zip(self.preparation.size, self.preparation.spacing)]
        shown = to_hu(values, self.preparation.intensity)
        rows = [np.asarray(preview_picture([shown], size_mm, _PLANE_PIXELS, [window])) for window in _WINDOWS]
        histogram = np.histogram(np.clip(shown, HISTOGRAM_EDGES[0], HISTOGRAM_EDGES[-1]), HISTOGRAM_EDGES)[0].tolist()
        more |= {"warnings": warnings + more["warnings"], "histogram": histogram, "source_state": state}
        return _Volume(values, affine, Image.fromarray(np.vstack(rows)), {**facts, **more})

    def _written(self, record: dict[str, Any], volume: Optional[_Volume]) -> dict[str, Any]:
        name = record["volume"]
        try:
            if volume is not None:
                save_nifti(volume.values, volume.affine, self.image_path(name), "CT", self.preparation.intensity)
                with whole_file(self.picture_path(name)) as file:
                    volume.picture.save(file, format="jpeg", quality=80)
            write_json(self.record_path(name), record)
        except OSError as error:  # the disk is full; an exception would come out of a worker with a traceback
            return {"status": "stopped", "reason": error.strerror}
        return record


def _original_facts(volume: MetaTensor) -> dict[str, Any]:
    affine = np.asarray(volume.affine, float)
    return {
        "original_shape": list(volume.shape[1:]),
        "original_spacing_mm": [round(float(value), 4) for value in volume.pixdim],
        "original_axes": "".join(nib.aff2axcodes(affine)),
        "original_min": float(volume.min()),
        "original_max": float(volume.max()),
    }
