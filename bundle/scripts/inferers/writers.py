"""Generated volumes on disk: NIfTI in HU, what made them beside it, and a picture."""

from __future__ import annotations

import json
import platform
from pathlib import Path
from typing import Any, Sequence, Union

import monai
import nibabel as nib
import numpy as np
import torch
from ignite.engine import Engine, Events
from PIL import Image

from ..data.transforms import grid_affine, three
from ..errors import require_writable
from ..networks.checkpoint import write_atomically

LUNG_WINDOW = (-1350.0, 150.0)  # HU
MEDIASTINAL_WINDOW = (-160.0, 240.0)  # HU
BONE_WINDOW = (-450.0, 1050.0)  # HU
DISPLAY_WINDOW = (-1000.0, 400.0)  # HU; what viewers open the file with
VERSION = "0.1.0"


def save_volume(volume: np.ndarray, affine: np.ndarray, path: Union[str, Path]) -> None:
    """Writes HU (X, Y, Z) as int16 NIfTI with RAS affine in mm, in sform and qform, and a display window."""
    image = nib.Nifti1Image(np.rint(volume).astype(np.int16), affine)
    image.set_sform(affine, code="scanner")
    image.set_qform(affine, code="scanner")
    image.header.set_xyzt_units("mm")
    image.header["cal_min"], image.header["cal_max"] = DISPLAY_WINDOW
    image.header["descrip"] = b"synthetic CT in HU, PRDiT; not a patient"
    image.header.set_slope_inter(1, 0)
    # the temporary name must end in .nii.gz for nibabel to compress
    write_atomically(path, lambda part: _save_as(image, part))


def _save_as(image: nib.Nifti1Image, part: Path) -> None:
    named = part.with_name(part.name + ".nii.gz")
    nib.save(image, named)
    named.replace(part)


class VolumeStore:
    """The output folder: `seed_000000.nii.gz`, a JSON beside it, and `preview.png`.

    A volume counts as done when its JSON, written last, is there.

    Args:
        output_dir: the folder, made if need be.
        provenance: what the volumes are made with; goes into the JSON, and must agree with what is in the folder.
        overwrite: make volumes again that are there.

    Raises:
        ValueError: in one line, when the folder is not writable.
    """

    def __init__(self, output_dir: str, provenance: dict[str, Any], overwrite: bool = False) -> None:
        self.folder, self.overwrite = require_writable(output_dir, "output_dir"), overwrite
        versions = {"bundle": VERSION, "monai": monai.__version__, "torch": torch.__version__}
        self.provenance = json.loads(json.dumps(provenance))
        self.versions = {**versions, "python": platform.python_version()}

    def path(self, seed: int) -> Path:
        return self.folder / f"seed_{seed:06d}.nii.gz"

    def sidecar(self, seed: int) -> Path:
        return self.folder / f"seed_{seed:06d}.json"

    def missing(self, items: Sequence[dict[str, int]]) -> list[dict[str, int]]:
        """Items whose volume has still to be made.

        Raises:
            ValueError: when a volume is there that was made in another way.
        """
        if self.overwrite:
            return list(items)
        return [item for item in items if not self._is_done(item["seed"])]

    def _is_done(self, seed: int) -> bool:
        if not self.sidecar(seed).is_file():
            return False
        try:
            there = json.loads(self.sidecar(seed).read_text())
        except ValueError:
            raise ValueError(f"{self.sidecar(seed)} is no JSON of this bundle; choose another output_dir") from None
        changed = [name for name, value in self.provenance.items() if there.get(name) != value]
        if changed:
            name = changed[0]
            raise ValueError(
                f"{self.path(seed)} was made with {name} {there.get(name)}, now it is {self.provenance[name]}; "
                "choose another output_dir, or --overwrite True"
            )
        return self.path(seed).is_file()

    def save(self, seed: int, volume: np.ndarray, affine: np.ndarray) -> None:
        """Writes one volume in HU (X, Y, Z) and its JSON."""
        self.sidecar(seed).unlink(missing_ok=True)
        save_volume(volume, affine, self.path(seed))
        content = {"seed": seed, **self.provenance, "unit": "HU", "synthetic": True, "versions": self.versions}
        text = json.dumps(content, indent=4) + "\n"
        write_atomically(self.sidecar(seed), lambda part: part.write_text(text))


class VolumeWriter:
    """Writes what an evaluator sampled, and the preview at the end.

    Args:
        store: the output folder.
        field_of_view_mm: size of a volume along each axis, or of all axes.
        preview: seeds to show in the preview; none where empty.
    """

    def __init__(
        self, store: VolumeStore, field_of_view_mm: Union[float, Sequence[float]], preview: Sequence[int] = ()
    ) -> None:
        self.store, self.field_of_view_mm, self.preview = store, three(field_of_view_mm), list(preview)

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.write)
        if self.preview:
            engine.add_event_handler(Events.COMPLETED, self.write_preview)

    def write(self, engine: Engine) -> None:
        for seed, volume in zip(engine.state.output["image"].tolist(), engine.state.output["pred"]):
            affine = grid_affine(volume.shape[1:], self.field_of_view_mm)
            self.store.save(seed, volume[0].cpu().numpy(), affine)

    def write_preview(self) -> None:
        volumes = [
            nib.Nifti1Image.from_filename(self.store.path(seed))
            for seed in self.preview
            if self.store.path(seed).is_file()
        ]
        picture = preview_picture([np.asanyarray(image.dataobj) for image in volumes], self.field_of_view_mm)
        write_atomically(self.store.folder / "preview.png", lambda part: picture.save(part, format="png"))


def preview_picture(
    volumes: Sequence[np.ndarray],
    size_mm: Sequence[float],
    pixels: int = 224,
    windows: Sequence[tuple[float, float]] = (LUNG_WINDOW, MEDIASTINAL_WINDOW),
) -> Image.Image:
    """One row per volume (X, Y, Z) in HU, RAS: axial, coronal, sagittal in each window, lung and mediastinal ones first.

    As radiologists look at them: the patient's right on the left, anterior on top (axial) or left (sagittal).
    """
    scale = pixels / max(size_mm)
    rows = []
    for volume in volumes:
        x, y, z = (side // 2 for side in volume.shape)
        flipped = volume[::-1, ::-1, ::-1]
        planes = [(flipped[:, :, -1 - z].T, 0, 1), (flipped[:, -1 - y].T, 0, 2), (flipped[-1 - x].T, 1, 2)]
        row = []
        for window in windows:
            for plane, across, down in planes:
                shape = (round(size_mm[across] * scale), round(size_mm[down] * scale))
                row.append(_framed(_windowed(plane, window).resize(shape, Image.Resampling.BICUBIC), pixels))
        rows.append(np.hstack(row))
    return Image.fromarray(np.vstack(rows))


def _windowed(plane: np.ndarray, window: tuple[float, float]) -> Image.Image:
    low, high = window
    return Image.fromarray((255 * np.clip((plane.astype(np.float32) - low) / (high - low), 0, 1)).astype(np.uint8))


def _framed(picture: Image.Image, pixels: int) -> np.ndarray:
    frame = Image.new("L", (pixels + 2, pixels + 2), 0)
    frame.paste(picture, ((pixels - picture.width) // 2, (pixels - picture.height) // 2))
    return np.asarray(frame)
