"""The folder of generated volumes: which are there, which are missing, and the handler that writes them."""

from __future__ import annotations

import json
import platform
from pathlib import Path
from typing import Any, Sequence, Union

import ignite.distributed as idist
import monai
import numpy as np
import torch
from ignite.engine import Engine, Events

from ..data.geometry import grid_affine, three
from ..data.intensity import HU
from ..errors import require_writable
from ..files import hold, release, remove_leftovers, require_no_folder, sha256_of, write_json
from ..stops import stoppable, stoppable_engine
from ..version import VERSION
from ..words import as_typed, count
from .generated import GeneratedVolume, is_generated, save_volume
from .writers import Writer, writers_of


class VolumeStore:
    """The output folder: `seed_000000.nii.gz`, a JSON beside it, and what the writers make of them.

    A volume is sampled when its JSON, written after it, is there and has its hash. What a writer lacks is made of the
    stored volume, so nothing is sampled again for it. One run at a time holds the folder, up to `finish`.

    Args:
        output_dir: the folder, made if need be.
        provenance: what the volumes are made with; goes into the JSON, and must agree where a volume of a seed is there.
        overwrite: make volumes again that are there.
        writers: see `writers_of`.
        dry_run: only looks; makes no folder and holds none.

    Raises:
        ValueError: in one line, when the folder is not writable, or a writer cannot write such volumes.
    """

    def __init__(
        self,
        output_dir: str,
        provenance: dict[str, Any],
        overwrite: bool = False,
        writers: Sequence[Union[str, Writer]] = ("nifti",),
        dry_run: bool = False,
    ) -> None:
        self.overwrite, self.writers = overwrite, writers_of(writers)
        for writer in self.writers:
            writer.check(provenance)
        self.folder = Path(output_dir) if dry_run else require_writable(output_dir, "output_dir")
        if idist.get_rank() == 0 and not dry_run:
            hold(self.folder, "output_dir")
            remove_leftovers(self.folder)
        versions = {"bundle": VERSION, "monai": monai.__version__, "torch": torch.__version__}
        self.provenance = json.loads(json.dumps(provenance))
        self.intensity = self.provenance.get("intensity", HU)
        self.items: Sequence[dict[str, int]] = []
        self.todo: Sequence[dict[str, int]] = []
        self.saved = 0
        self.versions = {**versions, "python": platform.python_version()}

    def volume(self, seed: int) -> GeneratedVolume:
        return GeneratedVolume(self.folder / f"seed_{seed:06d}.nii.gz")

    def path(self, seed: int) -> Path:
        return self.volume(seed).path

    def sidecar(self, seed: int) -> Path:
        return self.volume(seed).sidecar

    def missing(self, items: Sequence[dict[str, int]]) -> list[dict[str, int]]:
        """Items whose volume has still to be sampled; the same in every process, for none writes before all have looked.

        Raises:
            ValueError: when a volume is there that was made in another way, or a file that this bundle did not make.
        """
        self.items, self.todo = items, [item for item in items if self.overwrite or not self._is_sampled(item["seed"])]
        # what is in a writer's way is told before hours of sampling
        for page in [writer.page for writer in self.writers if writer.page]:
            require_no_folder(self.folder / page, "output_dir")
        for item in items:
            require_no_folder(self.path(item["seed"]), "output_dir")
            require_no_folder(self.sidecar(item["seed"]), "output_dir")
            for writer in self.writers:
                writer.is_there(self.volume(item["seed"]))
        idist.barrier()
        return self.todo

    def most_bytes(self, voxels: int) -> float:
        """Disk that all volumes, and what is made of them, take at most."""
        return sum(writer.most_bytes(voxels, len(self.items)) for writer in self.writers)

    def progress(self) -> str:
        """How far a run is that was ended."""
        made = self.saved if self.overwrite else sum(self.sidecar(item["seed"]).is_file() for item in self.todo)
        total = len(self.items)
        how = f"after {total - len(self.todo) + made} of {count(total, 'volume')}; the same command"
        return f"{how}, without overwrite, continues" if self.overwrite else f"{how} continues"

    def _is_sampled(self, seed: int) -> bool:
        path, sidecar = self.path(seed), self.sidecar(seed)
        if path.exists() and not is_generated(path):
            raise ValueError(f"{path} was not made by this bundle; choose another output_dir, or --overwrite True")
        if not sidecar.is_file():
            return False
        try:
            there = json.loads(sidecar.read_text())
        except (ValueError, RecursionError):
            there = None
        if not isinstance(there, dict):
            raise ValueError(f"{sidecar} was not made by this bundle; choose another output_dir, or --overwrite True")
        changed = [name for name, value in self.provenance.items() if there.get(name) != value]
        if changed and set(changed) <= {"schedule", "spacing", "predictor_ratio", "eta"} and "schedule" in changed:
            before, now = ("with", "without") if there.get("schedule") else ("without", "with")
            raise ValueError(
                f"{path} was made {before} fitted steps, now it is {now}: leave solver, spacing, predictor_ratio and eta out "
                "for fitted steps, and give spacing two_sided for others; or choose another output_dir, or --overwrite True"
            )
        if changed:
            name = changed[0]
            if name not in there:
                raise ValueError(
                    f"{sidecar} does not say with which {name} the volume was made: it is damaged or of an older version; "
                    "choose another output_dir, or --overwrite True"
                )
            raise ValueError(
                f"{path} was made with {name} {as_typed(there[name])}, now it is {as_typed(self.provenance[name])}; "
                "set it as before, choose another output_dir, or --overwrite True"
            )
        # older volumes have no hash
        if path.is_file() and there.get("volume_sha256", digest := sha256_of(path)) != digest:
            raise ValueError(
                f"{path} is truncated or not the volume that {sidecar.name} describes; remove both, and run again"
            )
        return path.is_file()

    def finish(self) -> None:
        """Ends the writers' work, the last of it in the first process, which then leaves the folder to other runs."""
        self._complete()
        idist.barrier()
        if idist.get_rank() == 0:
            for writer in self.writers:
                writer.finish([self.volume(item["seed"]) for item in self.items], self.overwrite)
            release(self.folder)

    def _complete(self) -> None:
        """Makes what a writer lacks of the volumes that were there already; each process its share."""
        sampled = {item["seed"] for item in self.todo}
        there = [self.volume(item["seed"]) for item in self.items if item["seed"] not in sampled]
        lacking = [(one, writer) for one in there for writer in self.writers if not writer.is_there(one)]
        idist.barrier()  # all shares are of one list
        with stoppable(self.progress):
            for volume, writer in lacking[idist.get_rank() :: idist.get_world_size()]:
                writer.write(volume)
        if lacking and idist.get_rank() == 0:
            print(f"what was asked for now was made of {len({one.path for one, _ in lacking})} volumes that were there")

    def save(self, seed: int, volume: np.ndarray, affine: np.ndarray) -> None:
        """Writes one volume in HU (X, Y, Z), its JSON, and what the writers make of it."""
        self.sidecar(seed).unlink(missing_ok=True)
        save_volume(volume, affine, self.path(seed), self.intensity)
        content = {"seed": seed, **self.provenance, "volume_sha256": sha256_of(self.path(seed))}
        content |= {"synthetic": True, "versions": self.versions}
        write_json(self.sidecar(seed), content)
        for writer in self.writers:
            writer.write(self.volume(seed))
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
        for item, volume in zip(engine.state.output["image"], engine.state.output["pred"]):
            affine = grid_affine(volume.shape[1:], self.field_of_view_mm)
            if len(volume) > 1:
                raise ValueError(f"the network draws {len(volume)} channels; a CT has one, and only one can be written")
            self.store.save(item.seed, volume[0].cpu().numpy(), affine)
