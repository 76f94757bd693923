"""A preparation writes to no source, keeps its key and its table to itself, and replaces nothing of others."""

import os

import pytest
from ingest import write_chest

from scripts.data import prepare_dataset

SETTINGS = {"spacing": 10.0, "size": 32, "center": "volume", "dry_run": False}


def state(folder):
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in paths}


@pytest.fixture
def source(tmp_path, chest):
    write_chest(tmp_path / "in", chest)
    (tmp_path / "list.txt").write_text("".join(f"{path}\n" for path in sorted((tmp_path / "in").iterdir())))
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "case").symlink_to(tmp_path / "in")
    (tmp_path / "set" / "records").mkdir(parents=True)
    (tmp_path / "set" / "volumes").symlink_to(tmp_path / "in")
    (tmp_path / "msd").mkdir()
    (tmp_path / "msd" / "dataset.json").write_text('{"name": "Lung"}')
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "preparation.json").write_text("null")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x80")
    return tmp_path


@pytest.mark.parametrize(
    ("settings", "facts"),
    [
        ({"mapping_file": "in/{0}"}, ["mapping_file", "source_dir"]),
        ({"mapping_file": "/proc/1/x/map.csv"}, ["mapping_file", "is not writable"]),
        ({"mapping_file": "in/map.csv"}, ["mapping_file", "lies in source_dir"]),
        ({"salt_file": "in/salt"}, ["salt_file", "lies in source_dir"]),
        ({"salt_file": "x", "mapping_file": "x"}, ["salt_file", "mapping_file"]),
        ({"salt_file": "out/salt"}, ["salt_file", "must not lie in dataset_dir"]),
        ({"mapping_file": "out/map.csv"}, ["mapping_file", "must not lie in dataset_dir"]),
        ({"source_dir": "list.txt", "dataset_dir": "in"}, ["source_dir lies in dataset_dir"]),
        ({"source_dir": "list.txt", "mapping_file": "in/{0}"}, ["mapping_file", "is also source_dir"]),
        ({"source_dir": "linked", "dataset_dir": "in/set"}, ["dataset_dir", "lies in source_dir"]),
        ({"dataset_dir": "set"}, ["dataset_dir", "source_dir"]),
        ({"dataset_dir": "."}, ["source_dir lies in dataset_dir"]),
        ({"dataset_dir": "msd"}, ["msd holds another's dataset.json"]),
        ({"dataset_dir": "begun"}, ["preparation.json is damaged"]),
        ({"mapping_file": "list.txt"}, ["list.txt was not made by this command"]),
        ({"salt_file": "binary"}, ["salt_file", "is no text"]),
    ],
)
def test_places_are_checked_before_anything_is_written(source, monkeypatch, one_line, settings, facts):
    monkeypatch.chdir(source)
    first = sorted(os.listdir("in"))[0]
    given = {name: value.format(first) for name, value in settings.items()}
    before = state(source)
    with pytest.raises(ValueError) as raised:
        prepare_dataset(**{"source_dir": "in", "dataset_dir": "out", **given}, **SETTINGS)
    one_line(raised, *facts)
    kept = {path: found for path, found in state(source).items() if path.suffix != ".salt" and path.name[0] != "."}
    assert kept == before
