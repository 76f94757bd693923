"""What is kept of a volume: a small record on disk, so that sets are measured once and compared many times."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Hashable, Mapping, Optional, Sequence

import ignite.distributed as idist
import torch
import torch.nn.functional as F
from ignite.engine import Engine, Events
from monai.transforms import MapTransform
from torch import Tensor

from ..errors import require_writable
from ..files import hold, release, remove_leftovers, set_aside
from ..metrics import (
    ASTRA,
    FEATURES,
    OrganSegmenter,
    anatomy_sizes,
    gradient_profile,
    hu_histogram,
    radial_power_spectrum,
    soft_tissue_grain,
)
from ..networks.checkpoint import load_tensors, save_tensors
from .volume_sets import VolumeSet

Records = dict[str, Tensor]  # of a set: each entry stacked, (N, ...)
RECORD_VERSION = 5  # another one where a record's content changes, so that old files are not read
COARSE_SIDE = 32  # voxels per axis of the volume that is compared with others


class KeepSized(MapTransform):
    """Adds 'size_mm' of a volume (1, X, Y, Z) as it was scanned, before it is cropped or padded."""

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        out = dict(data)
        for key in self.key_iterator(out):
            out["size_mm"] = torch.as_tensor(out[key].shape[1:]) * out[key].pixdim
        return out


class MeasureVolumed(MapTransform):
    """Adds 'measures' of a volume (1, X, Y, Z) in HU, all but its features; runs in the loader's processes.

    Args:
        keys: of the volume.
        field_of_view_mm: size of its grid along each axis.
        hu_window: HU that are compared; what is outside is clipped.
    """

    def __init__(self, keys: Hashable, field_of_view_mm: Sequence[float], hu_window: Sequence[float]) -> None:
        super().__init__(keys)
        self.field_of_view_mm, self.hu_window = field_of_view_mm, hu_window

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        out = dict(data)
        for key in self.key_iterator(out):
            out[key] = out[key].as_tensor().clamp(*self.hu_window)
            out["measures"] = {**self.measure(out[key][0]), "size_mm": out.pop("size_mm")}
        return out

    def measure(self, volume: Tensor) -> dict[str, Tensor]:
        """Record of a volume (X, Y, Z) in HU, clipped to the window."""
        spacing = [size / n for size, n in zip(self.field_of_view_mm, volume.shape)]
        low, high = self.hu_window
        x, y, z = (min(COARSE_SIDE, n) for n in volume.shape)
        return {
            "histogram": hu_histogram(volume, self.hu_window),
            "spectrum": radial_power_spectrum(volume, self.field_of_view_mm),
            "grain": soft_tissue_grain(volume),
            "profile": gradient_profile(volume),
            "anatomy": torch.from_numpy(anatomy_sizes(volume.numpy(), spacing)),
            "coarse": (F.adaptive_avg_pool3d(volume[None], (x, y, z))[0] - low) / (high - low),
        }


def save_record(record: dict[str, Tensor], path: Path) -> None:
    """Writes a record with a hash of its content and name, so that a damaged or foreign one is not taken for it."""
    save_tensors({"record": record, "sha256": _content_hash(record, path)}, path)


def load_record(path: Path) -> Optional[dict[str, Tensor]]:
    """What `save_record` wrote; None where there is no such file, or it was changed since."""
    try:
        content = load_tensors(path)
        record = content["record"]
        return record if content["sha256"] == _content_hash(record, path) else None
    except (ValueError, LookupError, TypeError, AttributeError):
        return None


def _content_hash(record: dict[str, Tensor], path: Path) -> str:
    content = hashlib.sha256(path.stem.encode())
    for name, value in sorted(record.items()):
        content.update(f"{name} {value.dtype} {list(value.shape)}".encode())
        content.update(value.contiguous().numpy().tobytes())
    return content.hexdigest()


class RecordStore:
    """Records of volumes in a folder, under the hash of the file and of all that a record depends on.

    What Astra sees of a volume has a record of its own, so that it is measured, or not, without the rest. One evaluation at
    a time holds the folder, from the first listing on to `release`.

    Args:
        cache_dir: the folder, made if need be.
        settings: what all records depend on besides the file: grid, window.
        features: what each kind of features depends on, see `FeatureExtractor.settings`.
        segmenter: settings of the segmenter of organs, if any.

    Raises:
        ValueError: in one line, when the folder is not writable.
    """

    def __init__(
        self,
        cache_dir: str,
        settings: dict[str, Any],
        features: Optional[Mapping[str, Any]] = None,
        segmenter: Optional[dict[str, Any]] = None,
    ) -> None:
        self.folder = require_writable(cache_dir, "cache_dir")
        shared = {"record": RECORD_VERSION, **settings}
        parts: dict[str, Any] = {FEATURES: None, **(features or {})}
        names = {part: part if one and one["sha256"] else "measures" for part, one in parts.items()}
        parts[FEATURES] = {"features": parts[FEATURES], "segmenter": segmenter}
        self.parts = {part: f"{names[part]}_{_hash({**shared, part: one})[:12]}" for part, one in parts.items()}

    def path(self, content_hash: str, part: str = FEATURES) -> Path:
        return self.folder / self.parts[part] / f"{content_hash}.pt"

    def missing(self, sets: Sequence[VolumeSet]) -> list[dict[str, Any]]:
        """Items that lack a record, each content once, with the path of each record that is to be made as 'record_PART'.

        Damaged records are set aside and made again.
        """
        if idist.get_rank() == 0:
            hold(self.folder, "cache_dir")
            remove_leftovers(*self.folder.glob("*_*"))
            self._tell_others()
        items: dict[str, dict[str, Any]] = {}
        for item, content_hash in ((i, h) for one in sets for i, h in zip(one.inputs, one.hashes)):
            paths = [self.path(content_hash, part) for part in self.parts]
            lacking = [path if load_record(path) is None else None for path in paths]
            if any(lacking) and content_hash not in items:
                names = {f"record_{part}": str(path or "") for part, path in zip(self.parts, lacking)}
                items[content_hash] = {**item, **names}
                for path in lacking if idist.get_rank() == 0 else ():
                    if path is not None and path.is_file():
                        print(
                            f"{path} is damaged and set aside as {set_aside(path).name}; its volume is measured again"
                        )
        return list(items.values())

    def _tell_others(self) -> None:
        found = [one for part in (FEATURES, ASTRA) for one in self.folder.glob(f"{part}_*") if one.is_dir()]
        others = [one.name for one in found if one.name not in self.parts.values()]
        if others:
            print(f"{self.folder} holds other features or grids, too ({', '.join(others)}): they are kept apart")

    def release(self) -> None:
        """Leaves the folder to other runs."""
        release(self.folder)

    def load(self, volumes: VolumeSet) -> Records:
        """Records of a set, each entry stacked: (N, ...)."""
        records: list[dict[str, Tensor]] = []
        for content_hash in volumes.hashes:
            parts = [load_record(self.path(content_hash, part)) for part in self.parts]
            if None in parts:
                raise ValueError(f"cache_dir {self.folder} was changed by another program during this run; run again")
            records.append({name: value for part in parts if part is not None for name, value in part.items()})
        return {name: torch.stack([record[name] for record in records]) for name in records[0]}


def _hash(settings: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


class RecordWriter:
    """Writes the record of each volume that an evaluator has made features of.

    Args:
        segmenter: that adds the sizes of organs, if any. It is no transform, as it needs the device itself.
        field_of_view_mm: size of the grid along each axis.
    """

    def __init__(self, segmenter: Optional[OrganSegmenter], field_of_view_mm: Sequence[float]) -> None:
        self.segmenter, self.field_of_view_mm = segmenter, field_of_view_mm

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.write)

    def write(self, engine: Engine) -> None:
        batch = engine.state.batch
        for part, features in engine.state.output["pred"].items():
            for index, path in enumerate(batch[f"record_{part}"]):
                if path:
                    record = {part: features[index].cpu().clone()}
                    save_record(record if part != FEATURES else record | self._measured(batch, index), Path(path))

    def _measured(self, batch: Mapping[str, Any], index: int) -> dict[str, Tensor]:
        record = {name: values[index].clone() for name, values in batch["measures"].items()}
        if self.segmenter is not None:
            volume = batch["image"][index, 0]
            spacing = [size / n for size, n in zip(self.field_of_view_mm, volume.shape)]
            record["organs"] = self.segmenter(volume, spacing)
        return record
