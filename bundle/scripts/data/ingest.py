"""Any CT to a prepared data set: find, check, resample, write, report. The source is only read."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any, Callable, Optional, Sequence, Union

import ignite.distributed as idist
from tqdm import tqdm

from ..errors import require_writable
from ..files import PathLike, write_text
from .dicom import MIN_SLICES
from .ingest_report import write_reports
from .parallel import work, worker_count
from .preparation import Preparation
from .pseudonyms import Pseudonym, read_salt
from .readers import RAD_CHEST_SPACING
from .sources import Findings, Inspected, Source, find_sources
from .transforms import three
from .volume_job import VolumeJob

VALIDATION_SHARE = 0.1
REJECTED_STATUS = 2
MAPPING_COLUMNS = ["volume", "patient", "status", "reason", "patient_id", "path"]


def prepare_dataset(
    source_dir: Union[PathLike, Sequence[PathLike], None],
    dataset_dir: Optional[PathLike],
    spacing: Union[float, Sequence[float], None] = None,
    size: Union[int, Sequence[int]] = 256,
    center: str = "lungs",
    remove_table: bool = False,
    min_coverage: float = 0.75,
    min_slices: int = MIN_SLICES,
    paper_compat: bool = False,
    patient_from: Optional[str] = None,
    salt_file: Optional[PathLike] = None,
    mapping_file: Optional[PathLike] = None,
    num_workers: Optional[int] = None,
    dry_run: bool = False,
) -> None:
    """Makes or continues a prepared data set; under torchrun, with all its processes.

    Args:
        source_dir: folders, lists of files or datalists, see `find_sources`.
        dataset_dir: the data set, made if need be; never inside a source.
        spacing: of the new voxels in mm, one or three; None is 1, or 0.8 where all sources are RAD-ChestCT.
        size: of the new volumes in voxels, one or three.
        center: see `Preparation`.
        remove_table: see `Preparation`.
        min_coverage: see `Preparation`.
        min_slices: of a DICOM series.
        paper_compat: see `Preparation`.
        patient_from: see `find_sources`.
        salt_file: the secret of the pseudonyms; None is beside dataset_dir. It is made where missing.
        mapping_file: CSV of which volume is which source, outside the data set; None: not written.
        num_workers: processes; None is one for each core that has 2 GiB of memory.
        dry_run: tell what would be done and write nothing.

    Raises:
        ValueError: in one line, when a setting is wrong.
        SystemExit: with status 2 at the end, when a source was rejected.
    """
    if "WORLD_SIZE" in os.environ and idist.get_world_size() == 1 and int(os.environ["WORLD_SIZE"]) > 1:
        idist.initialize("gloo", timeout=timedelta(days=7))  # ranks wait for the slowest
    places, folder = _check_places(source_dir, dataset_dir, mapping_file)
    workers = worker_count(num_workers)
    findings = find_sources(
        places, patient_from, min_slices, lambda function, paths: _everywhere(function, paths, workers)
    )
    rad_chest = all(source.kind == "RAD-ChestCT" for source in findings.sources)
    spacing = spacing if spacing is not None else RAD_CHEST_SPACING if rad_chest else 1.0
    preparation = Preparation(
        three(spacing), [int(side) for side in three(size)], center, remove_table, min_coverage, paper_compat
    )
    if not findings.sources:
        raise ValueError(f"source_dir {source_dir} holds no CT")
    if dry_run:
        if idist.get_rank() == 0:
            _tell(findings)
        return
    pseudonym = Pseudonym(_shared_salt(Path(salt_file) if salt_file else folder.with_name(folder.name + ".salt")))
    _check_settings(folder, preparation)
    job = VolumeJob(folder, preparation, pseudonym)
    records = _make_volumes(job, findings.sources, workers)
    if idist.get_rank() == 0:
        _finish(folder, records, findings, preparation, pseudonym)
        if mapping_file is not None:
            _write_mapping(Path(mapping_file), records, findings.sources, pseudonym)
        _summarize(folder, records, findings)
    if any(record["status"] == "rejected" for record in records):
        sys.exit(REJECTED_STATUS)


def _check_places(
    source_dir: Any, dataset_dir: Optional[PathLike], mapping_file: Optional[PathLike]
) -> tuple[list[Path], Path]:
    """Absolute source places and data set folder; ValueError when one lies in another or is missing."""
    for name, value in (("source_dir", source_dir), ("dataset_dir", dataset_dir)):
        if not value:
            raise ValueError(f"{name} is needed: --{name} FOLDER")
    places = [Path(place).absolute() for place in ([source_dir] if isinstance(source_dir, (str, Path)) else source_dir)]
    folder = Path(str(dataset_dir)).absolute()
    for place in places:
        if not place.exists():
            raise ValueError(f"source_dir {place} does not exist")
        if place.is_dir() and (folder.resolve() == place.resolve() or place.resolve() in folder.resolve().parents):
            raise ValueError(f"dataset_dir {folder} lies in source_dir {place}; choose a folder outside")
    if mapping_file is not None and folder.resolve() in Path(mapping_file).absolute().resolve().parents:
        raise ValueError(f"mapping_file {mapping_file} says who is who and must not lie in dataset_dir")
    return places, folder


def _everywhere(function: Callable[[str], Inspected], paths: Sequence[str], workers: int) -> list[Inspected]:
    """Maps over all paths, each on one rank, and gives every rank all results."""
    mine = paths[idist.get_rank() :: idist.get_world_size()]
    batch = 64  # opening a file is quick next to sending it to a worker
    few = len(mine) <= batch
    bar = tqdm(total=len(mine), desc="reading headers", unit="file", disable=few or idist.get_rank() > 0)
    results = []
    for result in work(function, mine, 0 if few else workers, batch):
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
    require_writable(folder, "dataset_dir")
    path = folder / "preparation.json"
    if path.is_file():
        try:
            before = json.loads(path.read_text())
        except ValueError:
            raise ValueError(f"{path} is damaged; choose another dataset_dir") from None
        for name, value in vars(preparation).items():
            if before.get(name) != value:
                raise ValueError(
                    f"dataset_dir {folder} was made with {name} {before.get(name)}, now it is {value}; "
                    "choose another dataset_dir"
                )
    text = json.dumps(vars(preparation), indent=4) + "\n"
    write_text(path, text)


def _make_volumes(job: VolumeJob, sources: Sequence[Source], workers: int) -> list[dict[str, Any]]:
    """Records of all sources, sorted; what an earlier run has made is kept."""
    mine = sources[idist.get_rank() :: idist.get_world_size()]
    records = [record for source in mine if (record := job.record(source)) is not None]
    made = {record["volume"] for record in records}
    todo = [source for source in mine if job.pseudonym.of(source) not in made]
    bar = tqdm(total=len(mine), initial=len(records), desc="preparing", unit="volume", disable=idist.get_rank() > 0)
    for record in work(job, todo, min(workers, len(todo))):
        if record["status"] == "stopped":
            raise ValueError(f"dataset_dir {job.folder} cannot be written: {record['reason']}; what is made is kept")
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
    order = sorted(
        {record["patient"] for record in accepted if not record["section"]},
        key=lambda patient: hashlib.sha256(patient_ids[patient].encode()).hexdigest(),
    )
    held_out = set(order[: max(1, round(VALIDATION_SHARE * len(order)))] if len(order) > 1 else [])
    lists: dict[str, list[str]] = {"training": [], "validation": []}
    for record in accepted:
        section = record["section"] or ("validation" if record["patient"] in held_out else "training")
        lists[section].append(record["volume"])
    for section, other in (("training", "validation"), ("validation", "training")):
        lists[section] = lists[section] or list(lists[other])
    return lists


def _finish(
    folder: Path, records: list[dict[str, Any]], findings: Findings, preparation: Preparation, pseudonym: Pseudonym
) -> None:
    """Writes dataset.json, report.csv and report.html."""
    lists = split_by_patient(records, {pseudonym.patient(source): source.patient for source in findings.sources})
    patients = {record["volume"]: record["patient"] for record in records}
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
        write_text(folder / "dataset.json", json.dumps(content, indent=4) + "\n")
    write_reports(folder, records, findings.left_out, content)


def _write_mapping(path: Path, records: list[dict[str, Any]], sources: Sequence[Source], pseudonym: Pseudonym) -> None:
    by_name = {pseudonym.of(source): source for source in sources}

    table = io.StringIO(newline="")
    writer = csv.writer(table)
    writer.writerow(MAPPING_COLUMNS)
    for record in records:
        source = by_name[record["volume"]]
        row = [record[name] for name in ("volume", "patient", "status", "reason")]
        writer.writerow([*row, source.patient, source.path])
    write_text(path, table.getvalue(), private=True)


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
    total = sum(findings.left_out.values())
    kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(findings.left_out.items()))
    return f"{total} other files left out" + (f" ({kinds})" if kinds else "")


def _summarize(folder: Path, records: Sequence[dict[str, Any]], findings: Findings) -> None:
    accepted = [record for record in records if record["status"] == "accepted"]
    warned = sum(bool(record["warnings"]) for record in accepted)
    print(
        f"{len(accepted)} volumes of {len({record['patient'] for record in accepted})} patients accepted, "
        f"{warned} of them with warnings, {len(records) - len(accepted)} rejected, {_left_out(findings)}"
    )
    print(f"see {folder / 'report.html'}")
