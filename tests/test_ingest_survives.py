"""One source never stops the others: whatever a library raises, or however it dies."""

import faulthandler
import json
import os
import signal
import time

import numpy as np
import pytest
from dicom_series import as_dicom
from ingest import write_chest
from test_readers import AFFINE, VOLUME
from volume_files import header_mha, header_nrrd, nifti_bytes, raw

from scripts.data import grid_affine
from scripts.data.ingest.parallel import work, worker_count
from scripts.data.readers import read_file
from scripts.data.reasons import reason_of
from scripts.hardware import machine_memory


def moody(item):
    faulthandler.disable()  # pytest's, which tells of the death at length
    if item == "abort":
        os.kill(os.getpid(), signal.SIGABRT)
    if item == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if item == "exit":
        os._exit(3)
    if item == "disk":
        raise OSError(28, "No space left on device")
    return f"did {item}"


@pytest.mark.parametrize(("num_workers", "batch_size"), [(0, 1), (1, 3), (2, 1), (3, 4)])
def test_death_of_a_worker_costs_one_item(num_workers, batch_size):
    items = ["abort", *range(5), "kill", "exit", *range(5, 9), "disk"]
    found = list(work(moody, items, num_workers, lambda item, cause: f"{item}: {cause}", batch_size))
    assert sorted(found) == sorted(
        [f"did {number}" for number in range(9)]
        + ["abort: ended by SIGABRT", "kill: killed by the system, likely for want of memory"]
        + ["exit: ended with status 3", "disk: ended with status 1"]
    )


def test_item_that_died_beside_others_is_tried_alone(tmp_path):
    """As when many processes together took all memory."""

    def once(item):
        if not (tmp_path / str(item)).exists():
            (tmp_path / str(item)).touch()
            os._exit(9)
        return item

    assert sorted(work(once, range(4), 2, lambda item, cause: cause)) == [0, 1, 2, 3]


def test_no_items_need_no_worker():
    assert list(work(moody, [], 4, lambda item, cause: cause)) == []


def test_worker_that_nobody_listens_to_ends():
    results = work(lambda item: os.getpid(), range(100), 2, lambda item, cause: cause)
    process = next(results)
    results.close()
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)


def test_memory_that_the_system_does_not_tell(monkeypatch):
    assert machine_memory() > 2**28
    monkeypatch.delattr(os, "sysconf")  # Windows
    assert worker_count(None) >= 1


def test_reasons_are_ours_or_name_the_kind():
    secret = "/data/Doe^Jane"
    for error, words in (
        (KeyError(secret), "cannot be read (KeyError)"),
        (FileNotFoundError(2, "No such file or directory", secret), "cannot be opened: No such file or directory"),
        (MemoryError(), "too large for the memory"),
        (RuntimeError(f"{secret} DefaultCPUAllocator: can't allocate memory: you tried"), "too large for the memory"),
        (RecursionError(secret), "cannot be read (RecursionError)"),
    ):
        assert words in reason_of(error) and secret not in reason_of(error)
    try:
        int(secret)
    except ValueError as error:
        assert "cannot be read" in reason_of(error) and secret not in reason_of(error)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_source_that_kills_its_process_is_rejected(prepare, tmp_path, chest, write_nifti, monkeypatch, num_workers):
    from scripts.data.ingest import sources

    for number in range(3):
        write_nifti(chest, grid_affine([32] * 3, [320] * 3), f"in/{number}.nii.gz", np.int16)
    reader = sources.read_file

    def fatal(path):
        faulthandler.disable()
        if path.endswith("1.nii.gz"):
            os.abort()
        if path.endswith("2.nii.gz"):
            raise KeyError("unknown")
        return reader(path)

    monkeypatch.setattr(sources, "read_file", fatal)
    status, folder, records = prepare(tmp_path / "in", num_workers=num_workers)
    reasons = sorted(record["reason"] for record in records)
    assert status == 2 and reasons[0] == "" and "cannot be read (KeyError)" in reasons[1]
    assert reasons[2] == "the process that read it was ended by SIGABRT"
    monkeypatch.setattr(sources, "read_file", reader)
    status, _, records = prepare(tmp_path / "in")
    assert status == 0 and [record["status"] for record in records] == ["accepted"] * 3


def test_label_maps_are_counted_not_rejected(prepare, tmp_path, chest, write_nifti, capsys):
    affine = grid_affine([32] * 3, [320] * 3)
    write_nifti(chest, affine, "in/ct.nii.gz", np.int16)
    write_nifti(chest > -500, affine, "in/mask.nii.gz", np.uint8)
    organs = np.digitize(np.indices(chest.shape)[0], [8, 16, 24])
    write_nifti(organs, affine, "in/organs.nii.gz", np.int16)
    grey = np.random.default_rng(0).integers(0, 256, chest.shape)
    write_nifti(grey, affine, "in/grey.nii.gz", np.uint8)
    write_nifti(0 * grey, affine, "in/zero.nii.gz", np.uint8)
    status, _, records = prepare(tmp_path / "in")
    assert status == 2 and sorted(record["status"] for record in records) == ["accepted", "rejected", "rejected"]
    assert "2 other files left out (2 label map)" in capsys.readouterr().out


# noise


def noisy(content, rng, header):
    """Up to four bytes of a header changed."""
    changed = bytearray(content)
    for place in rng.integers(0, header, rng.integers(1, 5)):
        changed[place] = rng.integers(0, 256)
    return bytes(changed)


def npz_bytes(path):
    np.savez_compressed(path, ct=as_dicom(VOLUME))
    return path.read_bytes()


@pytest.mark.parametrize("count", [150, pytest.param(10_000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", ["a.nii", "a.nrrd", "a.mha", "a.npz"])
def test_noise_in_headers_gives_volumes_or_reasons(tmp_path, name, count):
    content, header = {
        "a.nii": (nifti_bytes(VOLUME, AFFINE), 352),
        "a.nrrd": (header_nrrd(VOLUME.shape, AFFINE) + raw(VOLUME), len(header_nrrd(VOLUME.shape, AFFINE))),
        "a.mha": (header_mha(VOLUME.shape, AFFINE) + raw(VOLUME), len(header_mha(VOLUME.shape, AFFINE))),
        "a.npz": (npz_bytes(tmp_path / "a.npz"), 400),
    }[name]
    rng, path = np.random.default_rng(0), tmp_path / name
    results = list(
        work(lambda _: read_noise(path, noisy(content, rng, header)), range(count), 1, lambda _, cause: cause)
    )
    assert len(results) == count and {type(result) for result in results} == {str}
    assert "read" in results and [result for result in results if "\n" in result or str(tmp_path) in result] == []
    assert not [result for result in results if "ended" in result or "killed" in result]


def read_noise(path, content):
    path.write_bytes(content)
    try:
        volume = read_file(path)
    except ValueError as error:
        return str(error)
    assert volume.shape[0] == 1 and volume.ndim == 4 and min(volume.shape) > 0
    return "read"


def test_noise_among_good_neighbours(prepare, tmp_path, chest, write_nifti):
    rng, source = np.random.default_rng(1), tmp_path / "in"
    write_chest(source / "good", chest)
    damaged = {"nii": nifti_bytes(VOLUME, AFFINE), "nrrd": header_nrrd(VOLUME.shape, AFFINE) + raw(VOLUME)}
    for suffix, content in damaged.items():
        for number in range(5):
            (source / f"{number}.{suffix}").write_bytes(noisy(content, rng, 300))
    _, folder, records = prepare(source)
    assert len(records) == 11 and len(json.loads((folder / "dataset.json").read_text())["training"]) == 1


def seconds(duration):
    time.sleep(duration)
    return duration


def test_a_worker_that_has_nothing_left_to_do_waits_for_no_other():
    """Workers that are started later hold the pipes of earlier ones, so that closing those ends nothing."""
    signal.alarm(60)  # ends the tests where they would hang
    try:
        assert sorted(work(seconds, [0.0, 0.5, 0.2], 3, died=None)) == [0.0, 0.2, 0.5]
    finally:
        signal.alarm(0)
