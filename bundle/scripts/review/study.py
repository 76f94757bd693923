"""A reader study: a folder for each reader, and the key, which stays with the organiser."""

from __future__ import annotations

import base64
import hashlib
import os
import platform
import re
import shutil
from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Optional, Sequence, Union

import monai
import numpy as np
import torch
from tqdm import tqdm

from ..errors import require_writable
from ..evaluation.volume_sets import VolumeSet, check_sets, generated_sets, hash_volumes, real_set
from ..files import hold, release, remove_leftovers, write_json
from ..stops import stoppable
from ..version import VERSION
from ..words import count
from .answers import read_key
from .blinding import features_of, find_leaks, telling_features
from .cases import steps_for
from .viewer import write_reader_page, write_volume_script

TRIAL = "case_000"
_UNFINISHED = ".unfinished"
_OURS = {_UNFINISHED, ".prdit.lock"}  # at least one is there until a study is finished, and after a kill
_UNSAFE = re.compile(r'[\\/:*?"<>|\x00-\x1f]|^[.\s]|[.\s]$')  # in names of folders, on any system


def reader_names(readers: Union[int, Sequence[str]]) -> list[str]:
    """Names of so many readers, or the given ones; ValueError in one line where they cannot be folders side by side."""
    if isinstance(readers, int):
        return [f"reader_{number}" for number in range(1, readers + 1)]
    for index, name in enumerate(readers):
        if not name.isprintable() or not name or _UNSAFE.search(name) or len(name) > 60:
            raise ValueError(f"readers: {name!r} cannot be the name of a folder; take letters, digits and spaces")
        if name.casefold() in [other.casefold() for other in readers[:index]]:
            raise ValueError(f"readers: two of them are called {name}; give each a name of their own")
    return list(readers)


def chosen(
    sets: Sequence[VolumeSet], num_cases: int, trial_case: bool, seed: int
) -> tuple[list[VolumeSet], Optional[int]]:
    """Draws so many volumes of each set, and one more of either set for the trial.

    Returns:
        The sets of what was drawn, and which of them has the trial as its last volume, None without a trial.

    Raises:
        ValueError: in one line, where a set has too few volumes.
    """
    rng = np.random.default_rng([seed, num_cases])
    larger = [index for index, one in enumerate(sets) if len(one) > num_cases]
    for one in sets:
        if len(one) < num_cases:
            raise ValueError(
                f"num_cases is {num_cases}, but {one.name}_dir {one.folder} holds {count(len(one), 'volume')}; lower num_cases"
            )
    if trial_case and not larger:
        raise ValueError(
            f"the trial case needs a volume more than num_cases, {num_cases}, in generated_dir or real_dir; lower "
            "num_cases, or set trial_case False"
        )
    with_trial = int(rng.choice(larger)) if trial_case else None
    drawn = []
    for index, one in enumerate(sets):
        order = rng.permutation(len(one))[: num_cases + (index == with_trial)]
        drawn.append(VolumeSet(one.name, [one.items[int(i)] for i in order], one.folder, one.paper_compat))
    return drawn, with_trial


class ReaderStudy:
    """Makes a study.

    Args:
        generated_dir: folder of generated NIfTI in HU.
        real_dir: prepared data set or folder of CT; None for phantoms that no training set has.
        real_section: 'training', 'validation' or 'all' of a prepared data set.
        readers: how many, or their names.
        num_cases: of each kind, real and generated.
        trial_case: whether each reader starts with one more case, for practice.
        title: of the readers' pages.
        seed: of the draw and of all orders. Nobody can work out an order from it who has not all the volumes.
        spacing: of the cases, mm; None: as coarse as the coarsest volume.
        field_of_view_mm: of the cases; None: what all volumes cover.
        remove_table: what is outside the body becomes air.
        hu_window: HU are clipped to it.
        blur: standard deviation of the Gaussian that smooths all cases, voxels.
        window: HU that the pages show at first.
        output_dir: of the readers' folders; empty or not there.
        key_file: that stays with the organiser; None: OUTPUT_DIR.key.json.

    Raises:
        ValueError: in one line, for folders and settings that make no study.
    """

    def __init__(
        self,
        generated_dir: Optional[str],
        real_dir: Optional[str],
        real_section: str,
        readers: Union[int, Sequence[str]],
        num_cases: int,
        trial_case: bool,
        title: str,
        seed: int,
        spacing: Union[None, float, Sequence[float]],
        field_of_view_mm: Union[None, float, Sequence[float]],
        remove_table: bool,
        hu_window: Sequence[float],
        blur: float,
        window: Sequence[float],
        output_dir: str,
        key_file: Optional[str],
    ) -> None:
        self.folder, self.key_path = Path(os.path.abspath(output_dir)), key_path(output_dir, key_file)
        self.readers, self.title, self.window, self.seed = reader_names(readers), title, list(window), seed
        self.was_killed = any((self.folder / name).exists() for name in _OURS)
        self._require_new()
        sets = [real_set(real_dir, real_section, num_cases + int(trial_case)), *generated_sets(generated_dir, None)]
        check_sets(sets)
        self.sets, with_trial = chosen(sets, num_cases, trial_case, seed)
        hash_volumes(self.sets)
        volumes: list[dict[str, Any]] = [
            {"set": one.name, "file": _encodable(one.label(index)), "sha256": digest, "item": item}
            for one in self.sets
            for index, (item, digest) in enumerate(zip(one.items, one.hashes))
        ]
        _require_different(volumes)
        self.secret = hashlib.sha256(" ".join([str(seed), *(one["sha256"] for one in volumes)]).encode()).hexdigest()
        self.trial = trial = None if with_trial is None else volumes.pop((with_trial + 1) * num_cases)
        self.volumes = self._shuffled(volumes, "volumes")  # files are written in this order
        self.study = hashlib.sha256(f"study {self.secret}".encode()).hexdigest()[:12]
        listed = self.volumes + ([trial] if trial else [])
        self.steps, self.crop_notes = steps_for(
            [one["item"] for one in listed],
            [f"{one['set']} volume {one['file']}" for one in listed],
            spacing,
            field_of_view_mm,
            hu_window,
            remove_table,
            blur,
        )
        self.orders = {reader: self._shuffled(range(len(self.volumes)), f"reader {reader}") for reader in self.readers}

    def _require_new(self, study: Optional[str] = None) -> None:
        """Refuses to replace anything but the same study, None where it is not known yet, that a kill left unfinished."""
        if self.key_path.exists() and not (self.was_killed and study in (None, self._study_of_key())):
            raise ValueError(f"key_file {self.key_path} is there already; choose another output_dir or key_file")
        ours = _OURS | set(self.readers if self.was_killed and self.key_path.exists() else [])
        if self.folder.exists() and not (self.folder.is_dir() and {one.name for one in self.folder.iterdir()} <= ours):
            raise ValueError(f"output_dir {self.folder} is not empty; choose another one: readers may work in this one")
        if self.folder == self.key_path or self.folder in self.key_path.parents:
            raise ValueError(f"key_file {self.key_path} lies among the readers' folders; keep it elsewhere")
        require_writable(self.folder.parent, "output_dir")
        require_writable(self.key_path.parent, "key_file")

    def _study_of_key(self) -> str:
        """The id of the study whose key is there; nothing where it is another file."""
        with suppress(ValueError):
            return read_key(self.key_path).study
        return ""

    def _rng(self, purpose: str) -> np.random.Generator:
        return np.random.default_rng(list(hashlib.sha256(f"{purpose} {self.secret}".encode()).digest()))

    def _shuffled(self, values: Sequence[Any], purpose: str) -> list[Any]:
        return [values[int(i)] for i in self._rng(purpose).permutation(len(values))]

    def case_names(self, reader: str) -> dict[str, int]:
        """Names of a reader's cases, in the order of reading, and the index of the volume that each shows."""
        digits = max(3, len(str(len(self.volumes))))
        return {f"case_{number:0{digits}d}": index for number, index in enumerate(self.orders[reader], 1)}

    def page(self, reader: str) -> dict[str, Any]:
        """All that a reader's page knows; nothing of it depends on what the cases are."""
        note = f"{self.steps.words} So sharpness, size and field of view do not tell which are real."
        return {
            "study": self.study,
            "reader": reader,
            "title": self.title,
            "window": self.window,
            "trial": _entry(TRIAL) if self.trial else None,
            "cases": [_entry(name) for name in self.case_names(reader)],
            "note": note + (" The first case is for practice and does not count." if self.trial else ""),
        }

    def make(self) -> None:
        """Writes the key and the folders; checks that they are blind; says what the organiser has to know."""
        self.folder.mkdir(exist_ok=True)
        hold(self.folder, "output_dir")
        remove_leftovers(self.key_path.parent)
        self._require_new(self.study)  # while nobody else can write there
        staging = self.folder / _UNFINISHED
        shutil.rmtree(staging, ignore_errors=True)
        try:
            with stoppable(
                lambda: "before the study was finished; nothing of it is kept, the same command starts anew"
            ):
                features = self._write_cases(staging)
                for reader in self.readers:
                    write_reader_page(staging / reader, self.page(reader))
                _equalise(staging, self._rng("filling"))
                self._require_blind(staging)
            notes = self._notes(features)
            write_json(self.key_path, self.key(notes), private=True)
            for reader in self.readers:
                shutil.rmtree(self.folder / reader, ignore_errors=True)  # the same, of a run that was killed
                (staging / reader).replace(self.folder / reader)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
            release(self.folder)
            with suppress(OSError):
                self.folder.rmdir()  # where it is empty
        self._tell(notes)

    def _write_cases(self, staging: Path) -> list[dict[str, float]]:
        """Writes every case for every reader; returns the features of each volume."""
        features = []
        places = {reader: {index: name for name, index in self.case_names(reader).items()} for reader in self.readers}
        for index, volume in enumerate(tqdm([*self.volumes, *([self.trial] if self.trial else [])], desc="cases")):
            hu = self.steps(volume["item"])
            if index < len(self.volumes):
                features.append(features_of(hu))
            for reader in self.readers:
                name = places[reader].get(index, TRIAL)
                write_volume_script(staging / reader / _entry(name)["script"], hu, self.steps.spacing_mm, name)
        return features

    def _require_blind(self, staging: Path) -> None:
        for reader in self.readers:
            leaks = find_leaks(staging / reader, self.page(reader))
            if leaks:
                raise ValueError(
                    f"the cases of {reader} could be told apart, nothing is handed out: {'; '.join(leaks)}"
                )

    def _notes(self, features: list[dict[str, float]]) -> list[str]:
        synthetic = [volume["set"] == "generated" for volume in self.volumes]
        notes = [
            f"{found['feature']} alone tells real from generated (AUC {found['auc']:.2f}, p = {found['p_value']:.1g}): a "
            f"reader who notices it needs no anatomy. It may be a fault of the generator; if it is none, {found['remedy']} "
            "may help"
            for found in telling_features(features, synthetic)
        ]
        notes = self.crop_notes + notes
        if self.sets[0].folder is None:
            notes.insert(0, "the real cases are computer phantoms, not patients, as real_dir was not given")
        return notes

    def key(self, notes: Sequence[str]) -> dict[str, Any]:
        """What only the organiser may know."""
        return {
            "key_of_study": self.study,
            "title": _encodable(self.title),
            "made": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "real": "phantoms" if self.sets[0].folder is None else "volumes of real_dir",
            "folders": {one.name: _encodable(str(one.folder)) if one.folder else None for one in self.sets},
            "steps": self.steps.as_dict(),
            "window": self.window,
            "seed": self.seed,
            "notes": list(notes),
            "trial": TRIAL if self.trial else None,
            "trial_volume": _facts(self.trial) if self.trial else None,
            "volumes": [_facts(volume) for volume in self.volumes],
            "readers": {reader: self.case_names(reader) for reader in self.readers},
            "versions": {
                "bundle": VERSION,
                "monai": monai.__version__,
                "torch": torch.__version__,
                "python": platform.python_version(),
            },
        }

    def _tell(self, notes: Sequence[str]) -> None:
        grid, spacing = self.steps.grid, self.steps.spacing_mm
        print(
            f"{len(self.volumes)} cases of {' x '.join(map(str, grid))} voxels of {' x '.join(f'{s:g}' for s in spacing)} mm "
            f"for {', '.join(self.readers)} are in {self.folder}: give each reader his or her folder alone"
        )
        print(f"the key is {self.key_path}: keep it from the readers")
        for note in notes:
            print(f"note: {note}")


def key_path(output_dir: str, key_file: Optional[str]) -> Path:
    """Where the key is: beside the folder of the readers unless another file is given."""
    return Path(os.path.abspath(key_file if key_file is not None else f"{os.path.abspath(output_dir)}.key.json"))


def _encodable(text: str) -> str:
    """Names of files need not be UTF-8."""
    return text.encode(errors="backslashreplace").decode()


def _entry(name: str) -> dict[str, str]:
    return {"id": name, "script": f"cases/{name}.js"}


def _facts(volume: dict[str, Any]) -> dict[str, Any]:
    return {name: volume[name] for name in ("set", "file", "sha256")}


def _require_different(volumes: Sequence[dict[str, Any]]) -> None:
    seen: dict[str, dict[str, Any]] = {}
    for volume in volumes:
        other = seen.setdefault(volume["sha256"], volume)
        if other is not volume:
            raise ValueError(
                f"{other['set']} volume {other['file']} and {volume['set']} volume {volume['file']} are the same file; take "
                "one of them away"
            )


def _equalise(staging: Path, rng: np.random.Generator) -> None:
    """Brings all scripts to one size, with a filling that no compression removes, and all files to one time."""
    scripts = sorted(staging.glob("*/cases/*.js"))
    largest = max(path.stat().st_size for path in scripts)
    for path in scripts:
        missing = largest + len("//\n") - path.stat().st_size
        filling = base64.b64encode(rng.bytes(missing))[: missing - len("//\n")]
        with open(path, "ab") as file:
            file.write(b"//" + filling + b"\n")
    now = int(datetime.now().timestamp())
    for path in staging.rglob("*"):
        os.utime(path, (now, now))
