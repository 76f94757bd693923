"""A generated volume on disk: NIfTI in HU that is marked as synthetic, and a JSON beside it of what made it."""

from __future__ import annotations

import json
import zlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError

from ..data.dicom.writing import NO_PATIENT, Origin
from ..data.intensity import HU, from_hu, to_hu
from ..data.nifti import save_nifti
from ..files import PathLike, sha256_of
from ..version import NAME

MARK = "synthetic CT by PRDiT, no patient"  # in the header of every generated volume


def save_volume(volume: np.ndarray, affine: np.ndarray, path: PathLike, intensity: str = HU) -> None:
    """Writes generated HU (X, Y, Z), or what stands for them, as NIfTI that is marked as synthetic."""
    save_nifti(from_hu(volume, intensity), affine, path, MARK, intensity)


def is_generated(path: PathLike) -> bool:
    """Whether a file is a volume that `save_volume` wrote, by the mark in its header."""
    try:
        return bytes(nib.Nifti1Image.from_filename(path).header["descrip"]).startswith(MARK.encode())
    except (OSError, EOFError, zlib.error, ImageFileError):
        return False


@dataclass(frozen=True)
class GeneratedVolume:
    """A volume whose NIfTI and JSON lie in a folder.

    Args:
        path: of the NIfTI, .nii.gz.
    """

    path: Path

    @property
    def name(self) -> str:
        """That of the file, without its ending."""
        return self.path.name.removesuffix(".nii.gz")

    @property
    def sidecar(self) -> Path:
        """The JSON beside it."""
        return self.path.with_name(self.name + ".json")

    @cached_property
    def facts(self) -> dict[str, Any]:
        """What the JSON says made it; empty where there is none."""
        try:
            content = json.loads(self.sidecar.read_text())
        except (OSError, ValueError, RecursionError):
            return {}
        return content if isinstance(content, dict) else {}

    def is_certain(self) -> bool:
        """Whether the JSON is one of ours, and of this very file."""
        return self.facts.get("synthetic") is True and self.facts.get("volume_sha256") == sha256_of(self.path)

    def read(self) -> tuple[np.ndarray, np.ndarray]:
        """HU (X, Y, Z), or what stands for HU, and the RAS affine (4, 4) in mm."""
        image = nib.Nifti1Image.from_filename(self.path)
        return to_hu(np.asanyarray(image.dataobj), self.facts.get("intensity", HU)), np.asarray(image.affine)

    def origin(self) -> Origin:
        """What a DICOM series says of it. The JSON is there."""
        facts = {name: value for name, value in self.facts.items() if name not in ("versions", "volume_sha256")}
        versions = self.facts.get("versions", {})
        return Origin(
            identity=json.dumps(facts, sort_keys=True),
            synthetic=True,
            description=f"Synthetic CT, seed {facts['seed']}",
            derivation=f"Drawn from random noise by a generative neural network, PRDiT, with seed {facts['seed']}, the weights "
            f"of sha256 {facts['weights_sha256']}, the sampler {facts['solver']} and {facts['num_inference_steps']} network "
            f"calls. {NO_PATIENT} Made of the NIfTI file of sha256 {self.facts['volume_sha256']}.",
            body_part="CHEST",
            equipment={
                "Manufacturer": "PRDiT",
                "ManufacturerModelName": NAME,
                "SoftwareVersions": [f"{package} {version}" for package, version in versions.items()],
            },
        )
