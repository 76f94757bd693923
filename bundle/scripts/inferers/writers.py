"""Generated volumes on disk: NIfTI in HU, what made them beside it, and a picture."""

from __future__ import annotations

import json
import platform
import zlib
from pathlib import Path
from typing import Any, Sequence, Union

import ignite.distributed as idist
import monai
import nibabel as nib
import numpy as np
import torch
from ignite.engine import Engine, Events
from nibabel.filebasedimages import ImageFileError
from PIL.PngImagePlugin import PngInfo

from ..data.intensity import HU, from_hu, to_hu
from ..data.nifti import save_nifti
from ..data.pictures import preview_picture
from ..data.transforms import grid_affine, three
from ..errors import bundle_root, require_writable
from ..files import PathLike, hold, release, remove_leftovers, whole_file, write_text
from ..networks.checkpoint import sha256_of
from ..stops import stoppable_engine

VERSION = json.loads(Path(bundle_root(), "configs", "metadata.json").read_text())["version"]
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


class VolumeStore:
    """The output folder: `seed_000000.nii.gz`, a JSON beside it, and `preview.png`.

    A volume counts as done when its JSON, written last, is there and has its hash. One run at a time holds the folder,
    up to `release`.

    Args:
        output_dir: the folder, made if need be.
        provenance: what the volumes are made with; goes into the JSON, and must agree where a volume of a seed is there.
        overwrite: make volumes again that are there.

    Raises:
        ValueError: in one line, when the folder is not writable.
    """

    def __init__(self, output_dir: str, provenance: dict[str, Any], overwrite: bool = False) -> None:
        self.overwrite = overwrite
        self.folder = require_writable(output_dir, "output_dir")
        if idist.get_rank() == 0:
            hold(self.folder, "output_dir")
            remove_leftovers(self.folder)
        versions = {"bundle": VERSION, "monai": monai.__version__, "torch": torch.__version__}
        self.provenance = json.loads(json.dumps(provenance))
        self.intensity = self.provenance.get("intensity", HU)
        self.items: Sequence[dict[str, int]] = []
        self.todo: Sequence[dict[str, int]] = []
        self.saved = 0
        self.versions = {**versions, "python": platform.python_version()}

    def path(self, seed: int) -> Path:
        return self.folder / f"seed_{seed:06d}.nii.gz"

    def sidecar(self, seed: int) -> Path:
        return self.folder / f"seed_{seed:06d}.json"

    def missing(self, items: Sequence[dict[str, int]]) -> list[dict[str, int]]:
        """Items whose volume has still to be made; the same in every process, for none writes before all have looked.

        Raises:
            ValueError: when a volume is there that was made in another way, or a file that this bundle did not make.
        """
        self.items, self.todo = items, [item for item in items if self.overwrite or not self._is_done(item["seed"])]
        idist.barrier()
        return self.todo

    def progress(self) -> str:
        """How far a run is that was ended."""
        made = self.saved if self.overwrite else sum(self.sidecar(item["seed"]).is_file() for item in self.todo)
        how = f"after {len(self.items) - len(self.todo) + made} of {len(self.items)} volumes; the same command"
        return f"{how}, without overwrite, continues" if self.overwrite else f"{how} continues"

    def _is_done(self, seed: int) -> bool:
        path, sidecar = self.path(seed), self.sidecar(seed)
        if path.exists() and not is_generated(path):
            raise ValueError(f"{path} was not made by this bundle; choose another output_dir, or --overwrite True")
        if not sidecar.is_file():
            return False
        try:
            there = json.loads(sidecar.read_text())
        except ValueError:
            there = None
        if not isinstance(there, dict):
            raise ValueError(f"{sidecar} was not made by this bundle; choose another output_dir, or --overwrite True")
        changed = [name for name, value in self.provenance.items() if there.get(name) != value]
        if changed:
            name = changed[0]
            if name not in there:
                raise ValueError(
                    f"{sidecar} does not say with which {name} the volume was made: it is damaged or of an older version; "
                    "choose another output_dir, or --overwrite True"
                )
            raise ValueError(
                f"{path} was made with {name} {there.get(name)}, now it is {self.provenance[name]}; "
                "set it as before, choose another output_dir, or --overwrite True"
            )
        # older volumes have no hash
        if path.is_file() and there.get("volume_sha256", digest := sha256_of(path)) != digest:
            raise ValueError(
                f"{path} is truncated or not the volume that {sidecar.name} describes; remove both, and run again"
            )
        return path.is_file()

    def release(self) -> None:
        """Leaves the folder to other runs."""
        release(self.folder)

    def save(self, seed: int, volume: np.ndarray, affine: np.ndarray) -> None:
        """Writes one volume in HU (X, Y, Z) and its JSON."""
        self.sidecar(seed).unlink(missing_ok=True)
        save_volume(volume, affine, self.path(seed), self.intensity)
        content = {"seed": seed, **self.provenance, "volume_sha256": sha256_of(self.path(seed))}
        content |= {"synthetic": True, "versions": self.versions}
        text = json.dumps(content, indent=4) + "\n"
        write_text(self.sidecar(seed), text)
        self.saved += 1


class VolumeWriter:
    """Writes what an evaluator sampled.

    Args:
        store: the output folder.
        field_of_view_mm: size of a volume along each axis, or of all axes.
    """

    def __init__(self, store: VolumeStore, field_of_view_mm: Union[float, Sequence[float]]) -> None:
        self.store, self.field_of_view_mm = store, three(field_of_view_mm)

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.write)
        stoppable_engine(engine, self.store.progress)

    def write(self, engine: Engine) -> None:
        for seed, volume in zip(engine.state.output["image"].tolist(), engine.state.output["pred"]):
            affine = grid_affine(volume.shape[1:], self.field_of_view_mm)
            if len(volume) > 1:
                raise ValueError(f"the network draws {len(volume)} channels; a CT has one, and only one can be written")
            self.store.save(seed, volume[0].cpu().numpy(), affine)


def write_preview(store: VolumeStore, seeds: Sequence[int], field_of_view_mm: Union[float, Sequence[float]]) -> None:
    """Waits for all processes, and then pictures the volumes of these seeds, in the first of them.

    Args:
        store: the output folder.
        seeds: whose volumes are there.
        field_of_view_mm: size of a volume along each axis, or of all axes.
    """
    idist.barrier()
    if idist.get_rank() == 0:
        volumes = [
            to_hu(np.asanyarray(nib.Nifti1Image.from_filename(store.path(seed)).dataobj), store.intensity)
            for seed in seeds
        ]
        picture, path, mark = preview_picture(volumes, three(field_of_view_mm)), store.folder / "preview.png", PngInfo()
        mark.add_text("Description", MARK)
        if path.exists() and not store.overwrite and MARK.encode() not in path.read_bytes():
            print(f"{path} was not made by this bundle and stays as it is")
        else:
            with whole_file(path) as file:
                picture.save(file, format="png", pnginfo=mark)
        store.release()
