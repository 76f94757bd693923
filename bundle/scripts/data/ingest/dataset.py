"""Any CT to a prepared data set: find, check, resample, write, report. The source is only read."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import sys
from collections import Counter
from datetime import timedelta
from pathlib import Path
from typing import Any, Optional, Sequence, Union

import ignite.distributed as idist
from tqdm import tqdm

from ...errors import require_writable
from ...files import PathLike, hold, release, remove_leftovers, require_own, write_json
from ...overlap import check_places
from ...processes import join_processes
from ...stops import stoppable
from ...words import count
from ..dicom import MIN_SLICES
from ..geometry import three
from ..prepared import PREPARATION, split_by_name
from ..readers import RAD_CHEST_SPACING
from .missing import tell_missing
from .parallel import died, work, worker_count
from .preparation import Preparation
from .pseudonyms import MAPPING_COLUMNS, Pseudonym, read_salt, write_mapping
from .report import write_reports
from .sources import Findings, Inspected, Source, find_sources, inspect_file
from .volume_job import VolumeJob

REJECTED_STATUS = 2


def prepare_dataset(
    source_dir: Union[PathLike, Sequence[PathLike], None],
    dataset_dir: Optional[PathLike],
    spacing: Union[float, Sequence[float], None] = None,
    size: Union[int, Sequence[int], None] = None,
    center: str = "lungs",
    remove_table: bool = False,
    min_coverage: float = 0.75,
    min_lung_ml: float = 500.0,
    min_slices: int = MIN_SLICES,
    paper_compat: bool = False,
    patient_from: Optional[str] = None,
    salt_file: Optional[PathLike] = None,
    mapping_file: Optional[PathLike] = None,
    remove_missing: bool = False,
    num_workers: Optional[int] = None,
    dry_run: bool = False,
) -> None:
    """Makes or continues a prepared data set; under torchrun, with all its processes.

    Args:
        source_dir: folders, lists of files or datalists, see `find_sources`.
        dataset_dir: the data set, made if need be; never inside a source.
        spacing: of the new voxels in mm, one or three; None is 1, or 0.8 where all sources are RAD-ChestCT.
        size: of the new volumes in voxels, one or three; None: as many as hold 320 mm, an adult chest.
        center: see `Preparation`.
        remove_table: see `Preparation`.
        min_coverage: see `Preparation`.
        min_lung_ml: see `Preparation`.
        min_slices: of a DICOM series.
        paper_compat: see `Preparation`.
        patient_from: see `find_sources`.
        salt_file: the secret of the pseudonyms; None is beside dataset_dir. It is made where missing.
        mapping_file: CSV of which volume is which source, outside the data set; None: not written.
        remove_missing: delete the volumes of sources that are gone from source_dir, as after a withdrawn consent.
        num_workers: processes, at least one; None is one for each core that has 2 GiB of memory.
        dry_run: tell what would be done and write nothing.

    Raises:
        ValueError: in one line, when a setting is wrong.
        SystemExit: with status 2 at the end, when a source was rejected.
    """
    if os.environ.get("WORLD_SIZE", "1") != "1" and idist.get_world_size() == 1:
        join_processes("gloo", timeout=timedelta(days=7))  # ranks wait for the slowest
    places, folder = _existing_places(source_dir, dataset_dir)
    salt_path = Path(salt_file) if salt_file else folder.with_name(folder.name + ".salt")
    written = {"dataset_dir": folder, "salt_file": salt_path, "mapping_file": mapping_file}
    _require_apart(places, written)
    workers = worker_count(num_workers)
    findings = find_sources(places, patient_from, min_slices, lambda _, paths: _inspected(paths, workers))
    rad_chest = all(source.kind == "RAD-ChestCT" for source in findings.sources)
    spacing = spacing if spacing is not None else RAD_CHEST_SPACING if rad_chest else 1.0
    sides = None if size is None else [int(side) for side in three(size)]
    preparation = Preparation(three(spacing), sides, center, remove_table, min_coverage, min_lung_ml, paper_compat)
    if not findings.sources:
        raise ValueError(f"source_dir {', '.join(map(str, places))} holds no CT: {_left_out(findings)}")
    if dry_run:
        if idist.get_rank() == 0:
            _tell(findings)
        return
    _require_apart(_folders_met(findings, places), written)
    if mapping_file is not None:
        require_own(mapping_file, ",".join(MAPPING_COLUMNS), "mapping_file")
        require_writable(Path(mapping_file).absolute().parent, "the folder of mapping_file,")
    require_writable(folder, "dataset_dir")
    if idist.get_rank() == 0:
        hold(folder, "dataset_dir")
        beside = [Path(path).parent for path in (salt_path, mapping_file) if path is not None]
        remove_leftovers(folder, folder / "volumes", folder / "records", *beside)
    pseudonym = Pseudonym(_shared_salt(salt_path))
    _check_settings(folder, preparation)
    job = VolumeJob(folder, preparation, pseudonym)
    records = _make_volumes(job, findings.sources, workers)
    findings.left_out.update(record["reason"] for record in records if record["status"] == "left out")
    records = [record for record in records if record["status"] != "left out"]
    if idist.get_rank() == 0:
        notes = _finish(folder, records, findings, preparation, pseudonym)
        if mapping_file is not None:
            write_mapping(Path(mapping_file), records, {pseudonym.of(source): source for source in findings.sources})
        notes += tell_missing(folder, records, remove_missing)
        release(folder)
        _summarize(folder, records, findings, notes, mapping_file)
    if any(record["status"] == "rejected" for record in records):
        sys.exit(REJECTED_STATUS)


def _existing_places(source_dir: Any, dataset_dir: Optional[PathLike]) -> tuple[list[Path], Path]:
    """Absolute source places and data set folder; ValueError when one is not given or a source is missing."""
    for name, value in (("source_dir", source_dir), ("dataset_dir", dataset_dir)):
        if not value:
            raise ValueError(f"{name} is needed: --{name} FOLDER")
    listed = source_dir if isinstance(source_dir, (list, tuple)) else [source_dir]
    places = [Path(os.path.abspath(str(place))) for place in listed]
    for place in places:
        if not place.exists():
            raise ValueError(f"source_dir {place} does not exist")
    return places, Path(os.path.abspath(str(dataset_dir)))


def _require_apart(read: Sequence[PathLike], written: dict[str, Optional[PathLike]]) -> None:
    """Refuses to write into sources, and keys and tables of who is who where others find them: see `check_places`."""
    check_places({"source_dir": read}, written, apart=list(written))


def _folders_met(findings: Findings, places: Sequence[Path]) -> list[str]:
    """All folders below the places that sources lie in, wherever links to them lead, and the files that lists name."""
    files = [file for source in findings.sources for file in source.files]
    roots = [str(place) + os.sep for place in places if place.is_dir()]
    walked = {folder for folder in map(os.path.dirname, files) if f"{folder}{os.sep}".startswith(tuple(roots))}
    return [*walked, *(file for file in files if os.path.dirname(file) not in walked)]


def _inspected(paths: Sequence[str], workers: int) -> list[Inspected]:
    """What all paths are: each is looked into on one rank, and every rank gets all results."""
    mine = paths[idist.get_rank() :: idist.get_world_size()]
    batch = 64  # opening a file is quick next to sending it to a worker
    bar = tqdm(total=len(mine), desc="reading headers", unit="file", disable=len(mine) <= batch or idist.get_rank() > 0)
    results = []
    for result in work(inspect_file, mine, workers, lambda path, cause: Inspected(path, reason=died(cause)), batch):
        results.append(result)
        bar.update()
    bar.close()
    if idist.get_world_size() > 1:
        results = [result for part in idist.all_gather(results) for result in part]
    return sorted(results, key=lambda result: result.path)


def _shared_salt(path: Path) -> str:
    salt = read_salt(path) if idist.get_rank() == 0 else ""
    return idist.broadcast(salt, safe_mode=True) if idist.get_world_size() > 1 else salt


def _check_settings(folder: Path, preparation: Preparation) -> None:
    """Keeps the settings with the data set; ValueError when it was begun with others."""
    path = folder / PREPARATION
    if path.is_file():
        try:
            before = json.loads(path.read_text())
        except (ValueError, RecursionError):
            before = None
        if not isinstance(before, dict):
            raise ValueError(f"{path} is damaged; copy it again, or choose another dataset_dir")
        for name, value in vars(preparation).items():
            if before.get(name) != value:
                raise ValueError(
                    f"dataset_dir {folder} was made with {name} {before.get(name)}, now it is {value}; "
                    "choose another dataset_dir"
                )
    else:
        for name in ("dataset.json", "report.html", "report.csv", "volumes", "records"):
            if (folder / name).exists():
                raise ValueError(f"dataset_dir {folder} holds another's {name}, not to be replaced; choose another one")
    write_json(path, vars(preparation))


def _make_volumes(job: VolumeJob, sources: Sequence[Source], workers: int) -> list[dict[str, Any]]:
    """Records of all sources, sorted; what an earlier run has made is kept."""
    mine = sources[idist.get_rank() :: idist.get_world_size()]
    records = [record for source in mine if (record := job.record(source)) is not None]
    made = {record["volume"] for record in records}
    assert len({job.pseudonym.of(source) for source in sources}) == len(sources), "two sources share a name"
    todo = [source for source in mine if job.pseudonym.of(source) not in made]
    bar = tqdm(total=len(mine), initial=len(records), desc="preparing", unit="volume", disable=idist.get_rank() > 0)
    with stoppable(lambda: f"after {len(records)} of {len(mine)} volumes; the same command continues"):
        for record in work(job, todo, workers, job.reject):
            if record["status"] == "stopped":
                raise ValueError(
                    f"dataset_dir {job.folder} cannot be written: {record['reason']}; what is made is kept"
                )
            records.append(record)
            bar.update()
            if record["status"] == "rejected":
                bar.write(f"rejected {record['volume']} ({record['kind']}): {record['reason']}", file=sys.stderr)
    bar.close()
    if idist.get_world_size() > 1:
        records = [record for part in idist.all_gather(records) for record in part]
    return sorted(records, key=lambda record: record["volume"])


def split_by_patient(records: Sequence[dict[str, Any]], patient_ids: dict[str, str]) -> dict[str, list[str]]:
    """Names of the accepted volumes, 90 % of the patients for training, 10 % for validation.

    Patients are ordered by the sha256 of their id, without the salt, so that all who have the same patients get the
    same split. A datalist's own split is kept. A single patient is trained and validated on, which is how a first
    try looks.

    Args:
        records: of all sources.
        patient_ids: patient id of each pseudonym.
    """
    accepted = [record for record in records if record["status"] == "accepted"]
    patients = {record["patient"] for record in accepted if not record["section"]}
    held_out = split_by_name(patients, lambda patient: patient_ids[patient])[1]
    lists: dict[str, list[str]] = {"training": [], "validation": []}
    for record in accepted:
        section = record["section"] or ("validation" if record["patient"] in held_out else "training")
        lists[section].append(record["volume"])
    for section, other in (("training", "validation"), ("validation", "training")):
        lists[section] = lists[section] or list(lists[other])
    return lists


def _finish(
    folder: Path, records: list[dict[str, Any]], findings: Findings, preparation: Preparation, pseudonym: Pseudonym
) -> list[str]:
    """Writes dataset.json, report.csv and report.html; gives what is to be known about the whole."""
    lists = split_by_patient(records, {pseudonym.patient(source): source.patient for source in findings.sources})
    patients = {record["volume"]: record["patient"] for record in records}
    notes = _patient_notes(lists, patients) + _copy_notes(records)
    content = {
        "description": "CT volumes prepared for PRDiT",
        "modality": {"0": "CT"},
        "tensorImageSize": "3D",
        "intensity": preparation.intensity,
        "spacing_mm": preparation.spacing,
        "size": preparation.size,
        "split_sha256": hashlib.sha256(json.dumps(lists).encode()).hexdigest(),
        "numTraining": len(lists["training"]),
        "numValidation": len(lists["validation"]),
    }
    for section, names in lists.items():
        content[section] = [{"image": f"volumes/{name}.nii.gz", "patient": patients[name]} for name in names]
    if any(lists.values()):
        write_json(folder / "dataset.json", content)
    else:
        (folder / "dataset.json").unlink(missing_ok=True)  # of an earlier run whose sources are bad now
    write_reports(folder, records, findings.left_out, content, notes)
    return notes


def _patient_notes(lists: dict[str, list[str]], patients: dict[str, str]) -> list[str]:
    """Warnings about patient ids that an anonymizer made alike, and about a split that is none."""
    counts = Counter(patients[name] for name in {*lists["training"], *lists["validation"]})
    total, largest = sum(counts.values()), max(counts.values(), default=0)
    advice = "if their ids were made alike, --patient_from finds the patient in a path"
    if lists["training"] and lists["training"] == lists["validation"]:
        alone = "the only volume" if total == 1 else f"all {total} volumes, which have one patient id; {advice}"
        return [f"training and validation are both {alone}"]
    if largest > max(2, total / 2):
        return [f"{largest} of {total} volumes have one patient id; {advice}"]
    return []


def _copy_notes(records: Sequence[dict[str, Any]]) -> list[str]:
    """A warning about scans that are there twice under other names, and may so be in both lists."""
    alike: dict[str, list[str]] = {}
    for record in records:
        if record["status"] == "accepted":
            alike.setdefault(json.dumps([record["histogram"], record["original_shape"]]), []).append(record["volume"])
    copies = [name for names in alike.values() for name in names[1:]]
    listed = ", ".join(copies[:3]) + (" and more" if len(copies) > 3 else "")
    have = "has" if len(copies) == 1 else "have"
    return (
        [f"{count(len(copies), 'volume')} {have} the values of another, a copy of one scan? {listed}"] if copies else []
    )


def _tell(findings: Findings) -> None:
    """Prints what would be done; no names, the order is that of the sources."""
    for number, source in enumerate(findings.sources, start=1):
        facts = f"{source.num_slices} slices" if source.num_slices else "looked into when it is read"
        if source.series is not None:
            rows, columns = source.series.slices[0].shape
            step = source.series.step_mm
            facts = f"{source.num_slices} slices of {rows} x {columns}, {step:.2f} mm apart"
        print(
            f"{number}. {source.kind}: {facts}: " + (f"would be rejected: {source.reason}" if source.reason else "take")
        )
    rejected = sum(bool(source.reason) for source in findings.sources)
    print(
        f"{len(findings.sources) - rejected} to take, {rejected} to reject, {_left_out(findings)}; nothing was written"
    )


def _left_out(findings: Findings) -> str:
    kinds = {kind: number for kind, number in sorted(findings.left_out.items()) if number}
    told = ", ".join(f"{number} {kind}" for kind, number in kinds.items())
    return f"{sum(kinds.values())} other files left out" + (f" ({told})" if told else "")


def _summarize(
    folder: Path,
    records: Sequence[dict[str, Any]],
    findings: Findings,
    notes: Sequence[str],
    mapping_file: Optional[PathLike],
) -> None:
    accepted = [record for record in records if record["status"] == "accepted"]
    warned, rejected = sum(bool(record["warnings"]) for record in accepted), len(records) - len(accepted)
    print(
        f"{count(len(accepted), 'volume')} of {count(len({record['patient'] for record in accepted}), 'patient')} accepted, "
        f"{warned} of them with warnings, {rejected} rejected, {_left_out(findings)}"
    )
    for note in notes:
        print(f"warning: {note}")
    if rejected and mapping_file is None:
        name = folder.with_name(f"{folder.name}.mapping.csv")
        told = f"--mapping_file {shlex.quote(str(name))}"
        print(f"to see which files were rejected, repeat the command with {told}, for you alone")
    print(f"see {folder / 'report.html'}")
