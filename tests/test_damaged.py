"""Files of ours that are damaged are named, or set aside and made again; leftovers and hidden files are no data."""

import shutil

import numpy as np
import pytest
import torch
from bundle_runs import assert_refused

from scripts.evaluation import RecordStore, WScore, load_sets
from scripts.evaluation.records import save_record
from scripts.evaluation.volume_sets import VolumeSet
from scripts.files import release
from scripts.output import VolumeStore, save_volume

RECORD = {"histogram": torch.arange(4.0), "size_mm": torch.tensor([320.0] * 3)}


@pytest.fixture
def chest_file(tmp_path, chest):
    path = tmp_path / "chest.nii.gz"
    save_volume(chest, np.diag([10.0, 10.0, 10.0, 1.0]), path)
    return path


# evaluation cache


@pytest.fixture
def cache(tmp_path):
    """A cache with the records of two of three volumes, and what it lists as missing."""
    store = RecordStore(str(tmp_path), {"grid": [8, 8, 8]})
    volumes = VolumeSet("real", [{"image": seed} for seed in range(3)], hashes=["a", "b", "c"])
    for content_hash in "ab":
        save_record(RECORD, store.path(content_hash))
    yield store, lambda: [item["image"] for item in store.missing([volumes])]
    store.release()


def test_whole_records_are_not_made_again(cache):
    store, missing = cache
    assert missing() == [2]
    loaded = store.load(VolumeSet("real", [{"image": 0}, {"image": 1}], hashes=["a", "b"]))
    assert torch.equal(loaded["histogram"], torch.stack([RECORD["histogram"]] * 2))


@pytest.mark.parametrize(
    "damage",
    [
        lambda path, other: path.write_bytes(b""),
        lambda path, other: path.write_bytes(path.read_bytes()[:100]),
        lambda path, other: path.write_bytes(b"foreign"),
        lambda path, other: torch.save([1, 2], path),
        lambda path, other: torch.save(RECORD, path),  # as the first version stored it
        lambda path, other: torch.save({"record": {"histogram": 3}, "sha256": "0"}, path),
        lambda path, other: torch.save(
            {**torch.load(path), "record": {**RECORD, "histogram": torch.full((4,), torch.nan)}}, path
        ),
        lambda path, other: torch.save({**torch.load(path), "record": {**RECORD, "histogram": torch.zeros(5)}}, path),
        lambda path, other: shutil.copy(other, path),  # of another volume
    ],
)
def test_a_damaged_record_is_set_aside_and_made_again(cache, damage, capsys):
    store, missing = cache
    path = store.path("b")
    damage(path, store.path("a"))
    content = path.read_bytes()
    assert missing() == [1, 2]
    aside = path.with_name(f"{path.name}.damaged")
    assert aside.read_bytes() == content and f"{path} is damaged and set aside" in capsys.readouterr().out
    save_record(RECORD, path)
    assert missing() == [2]


# critics


def test_a_damaged_critic_is_set_aside_and_trained_anew(tmp_path, capsys):
    sets = {name: VolumeSet(name, [{"image": 0}] * 4, hashes=list(f"{name}123")) for name in ("real", "a")}
    made_with = {
        "batch_size": 1,
        "lr": 1e-3,
        "channels": [2, 4],
        "num_seeds": 1,
        "held_out_share": 0.5,
        "critics": "anchor",
    }
    more = {"anchor": None, "num_steps": 2, "checkpoint_interval": 1, "num_workers": 0, "device": torch.device("cpu")}
    score = WScore(sets, None, {"grid": [8, 8, 8]}, str(tmp_path), **made_with, **more)
    critic, optimizer, _ = score._resume("a", 0)
    path = score.checkpoint_path("a", 0)
    score._save(critic, optimizer, path, 1)
    whole, state = path.read_bytes(), torch.load(path)
    assert score._resume("a", 0)[2] == 1
    no_step = {name: value for name, value in state.items() if name != "step"}
    for other in (no_step, {**state, "critic": {}}, {**state, "critic": None}, {**state, "optimizer": {}}, [], None):
        torch.save(other, path) if other is not None else path.write_bytes(whole[:50])
        capsys.readouterr()
        assert score._resume("a", 0)[2] == 0 and not path.exists()
        assert f"{path} is damaged and set aside" in capsys.readouterr().out
    score._save(critic, optimizer, path, 1)
    assert path.read_bytes() == whole  # the same state gives the same bytes
    release(tmp_path)
    (tmp_path / "wscore.json").write_text("{}")
    with assert_refused("wscore.json was not made by this command"):
        WScore(sets, None, {"grid": [8, 8, 8]}, str(tmp_path), **made_with, **more)


# generated volumes


@pytest.mark.parametrize("share", [0.5, 0.99])
def test_a_generated_volume_that_a_copy_truncated_is_named(tmp_path, chest, share):
    store = VolumeStore(str(tmp_path), {"solver": "euler"})
    for seed in (0, 1):
        store.save(seed, chest, np.diag([10.0, 10.0, 10.0, 1.0]))
    assert store.missing([{"seed": seed} for seed in range(3)]) == [{"seed": 2}]
    path = store.path(1)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with assert_refused(path, "truncated", "run again"):
        store.missing([{"seed": seed} for seed in range(3)])
    release(tmp_path)


def test_hidden_files_are_no_data_and_linked_folders_are(tmp_path, chest_file):
    folder = tmp_path / "made"
    (folder / ".git").mkdir(parents=True)
    for name in ("a.nii.gz", "._a.nii.gz", ".seed_000001.nii.gz.26176.part.nii.gz", ".git/b.nii.gz"):
        shutil.copy(chest_file, folder / name)
    (folder / ".c.nii.gz").write_bytes(b"half")
    (tmp_path / "case").mkdir()
    shutil.copy(chest_file, tmp_path / "case" / "d.nii.gz")
    (folder / "case").symlink_to(tmp_path / "case")
    (folder / "case" / "back").symlink_to(folder)
    found = load_sets(None, str(folder), num_phantoms=1)["generated"]
    assert [found.label(index) for index in range(len(found))] == ["a.nii.gz", "case/d.nii.gz"]
