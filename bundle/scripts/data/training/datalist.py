"""Lists of what to train on: a prepared data set, a plain folder of CTs, or phantoms."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any, Union

from ..dicom import MIN_SLICES
from ..ingest.sources import find_sources
from ..intensity import HU, PAPER_COMPAT
from ..prepared import PREPARATION, split_by_name

FIRST_VALIDATION_PHANTOM = 1_000_000


def ct_datalist(
    dataset_dir: Union[str, Path, None],
    num_phantoms: int = 0,
    num_validation_phantoms: int = 0,
    setting: str = "dataset_dir",
) -> dict[str, list[dict[str, Any]]]:
    """Finds the volumes of a data set.

    Args:
        dataset_dir: a folder with `dataset.json` (a MONAI datalist with 'training' and 'validation'); or any folder
            of NIfTI, MetaImage, NRRD files and DICOM series, split 90/10 by a hash of the name; or None for phantoms.
        num_phantoms: number of training phantoms where dataset_dir is None; their seeds count from 0.
        num_validation_phantoms: number of held-out phantoms, whose seeds count from 1,000,000.
        setting: that names the folder.

    Returns:
        {'training': items, 'validation': items}; an item has 'image', the path of a file or DICOM folder or the
        seed of a phantom, 'series', the slices of a DICOM series, 'intensity' where it is not HU, and 'index', its
        number in the list.

    Raises:
        ValueError: in one line, when the folder is missing or holds no CT, or dataset.json is wrong.
    """
    if dataset_dir is None:
        lists: dict[str, list[dict[str, Any]]] = {
            "training": [{"image": seed} for seed in range(num_phantoms)],
            "validation": [{"image": FIRST_VALIDATION_PHANTOM + i} for i in range(num_validation_phantoms)],
        }
    else:
        folder = Path(dataset_dir)
        if not folder.is_dir():
            raise ValueError(f"{setting} {folder} is no folder")
        lists = _prepared(folder) if (folder / "dataset.json").is_file() else _scan(folder, setting)
    for items in lists.values():
        for index, item in enumerate(items):
            item["index"] = index
    return lists


def intensity_of(datalist: dict[str, list[dict[str, Any]]]) -> str:
    """What the values of a datalist's volumes are: 'HU', or 'paper_compat', the published per-volume scaling."""
    return str(datalist["training"][0].get("intensity", HU))


def identity(items: list[dict[str, Any]]) -> str:
    """Tells lists of volumes apart, by names and sizes of files, wherever their folder lies, or by phantoms' seeds."""
    facts = [item["image"] if isinstance(item["image"], int) else _name_and_size(Path(item["image"])) for item in items]
    return f"{len(items)} volumes ({hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:12]})"


def _name_and_size(path: Path) -> list[Any]:
    return [path.name, path.stat().st_size if path.is_file() else len(list(path.iterdir()))]


def _prepared(folder: Path) -> dict[str, list[dict[str, Any]]]:
    try:
        content = json.loads((folder / "dataset.json").read_text())
        mark = {"intensity": PAPER_COMPAT} if content.get("intensity") == PAPER_COMPAT else {}
        lists = {
            section: [{"image": str(folder / item["image"]), **mark} for item in content[section]]
            for section in ("training", "validation")
        }
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError, RecursionError):
        raise ValueError(f"{folder / 'dataset.json'} is no datalist with 'training' and 'validation'") from None
    for section, items in lists.items():
        if not items:
            raise ValueError(f"{folder / 'dataset.json'} has an empty list '{section}'")
        for item in items:
            if os.path.commonpath([os.path.abspath(folder), os.path.abspath(item["image"])]) != os.path.abspath(folder):
                raise ValueError(f"{folder / 'dataset.json'} names {item['image']}, which lies outside its folder")
            if not Path(item["image"]).is_file():
                raise ValueError(f"{folder / 'dataset.json'} names {item['image']}, which does not exist")
    return lists


def _scan(folder: Path, setting: str) -> dict[str, list[dict[str, Any]]]:
    if (folder / PREPARATION).is_file():
        raise ValueError(f"{setting} {folder} is a prepared data set without a volume: {_why_empty(folder)}")
    items: list[dict[str, Any]] = []
    for source in find_sources(folder).sources:
        reason = source.reason
        if source.kind == "DICOM series" and source.num_slices < MIN_SLICES:  # they lie beside the CT everywhere
            continue
        if reason:
            raise ValueError(
                f"{source.path} ({source.kind}): {reason}; preprocess.yaml makes a data set of what is usable"
            )
        items.append({"image": source.path, **({} if source.series is None else {"series": source.series})})
    if not items:
        raise ValueError(f"{setting} {folder} holds no NIfTI, MetaImage, NRRD file or DICOM series")
    if len(items) == 1:  # one volume can be overfitted, which is how a first try looks
        return {"training": [dict(items[0])], "validation": [dict(items[0])]}
    training, validation = split_by_name(items, lambda item: Path(item["image"]).name)
    return {"training": training, "validation": validation}


def _why_empty(folder: Path) -> str:
    rejected = sum(1 for _ in (folder / "records").glob("*.json"))
    if not (folder / "report.html").is_file():
        return "its preparation did not end; the same command of preprocess.yaml continues it"
    which = "the only source was" if rejected == 1 else f"all {rejected} sources were"
    return f"{which} rejected, and {folder / 'report.html'} says why"
