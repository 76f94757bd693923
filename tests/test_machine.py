"""What the machine refuses is one line that names the file or what to lower."""

import errno
import io
import os
import queue
import resource
import signal

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from scripts.data import LoadCTd
from scripts.errors import root_cause, what_to_say
from scripts.files import whole_file
from scripts.machine import machine_fault, written


@pytest.fixture
def small_disk():
    """Files may have 50 kB, as on a disk that is nearly full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def said(call):
    with pytest.raises(Exception) as raised:
        call()
    line = what_to_say(root_cause(raised.value))
    assert line is not None and "\n" not in line, raised.value
    return line


class Items(Dataset):
    """Calls of a function, in the processes of a loader."""

    def __init__(self, function):
        self.function = function

    def __len__(self):
        return 2

    def __getitem__(self, index):
        return self.function(index)


def from_worker(function):
    return said(lambda: list(DataLoader(Items(function), num_workers=1)))


def write(path, save):
    with whole_file(path) as file:
        save(file)


BIG = {f"w{i}": torch.zeros(10_000) for i in range(5)}


@pytest.mark.parametrize(
    "number", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EISDIR, errno.ENAMETOOLONG, errno.EIO]
)
def test_what_the_system_says_gets_its_file_and_advice(number):
    line = machine_fault(OSError(number, os.strerror(number), "C/model.pt"))
    assert line.startswith(f"C/model.pt: {os.strerror(number)}; ")


def test_a_renaming_names_the_file_that_was_wanted(tmp_path):
    (tmp_path / "part").write_text("x")
    (tmp_path / "model.pt").mkdir()
    assert said(lambda: os.replace(tmp_path / "part", tmp_path / "model.pt")).startswith(f"{tmp_path / 'model.pt'}: ")


@pytest.mark.parametrize(
    "save",
    [
        lambda file: torch.save(BIG, file),
        lambda file: file.write(bytes(60_000)),
        lambda file: np.save(file, np.zeros(9_000)),
    ],
)
def test_a_full_disk_names_the_file_and_keeps_the_old_one(save, tmp_path, small_disk):
    (tmp_path / "model.pt").write_text("old")
    assert said(lambda: write(tmp_path / "model.pt", save)).startswith(f"{tmp_path / 'model.pt'}: ")
    assert [path.name for path in tmp_path.iterdir()] == ["model.pt"]
    assert (tmp_path / "model.pt").read_text() == "old"


@pytest.mark.parametrize("number", range(1, 10))
def test_a_stop_amid_a_checkpoint_is_no_full_disk(number, tmp_path):
    """PyTorch says of it that its file was cut off, as of a full disk."""

    class Stopped(io.BytesIO):
        writes = 0

        def write(self, data):
            self.writes += 1
            if self.writes == number:
                raise KeyboardInterrupt
            return super().write(data)

    with pytest.raises(KeyboardInterrupt), written(tmp_path / "model.pt"):
        torch.save({"a": torch.zeros(1000), "b": torch.zeros(10)}, Stopped())


def test_folders_and_files_in_each_others_place(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("")
    for name, wrong in (("folder", "folder"), ("file/new", "file"), ("n" * 300, "n" * 300)):
        line = said(lambda: write(tmp_path / name, lambda file: file.write(b"new")))
        assert line.startswith(f"{tmp_path / wrong}: ") and "; " in line


@pytest.mark.parametrize(
    "call",
    [lambda: torch.empty(10**14), lambda: torch.empty([2**31] * 3), lambda: np.empty(10**15), lambda: bytearray(2**62)],
)
def test_too_little_memory_says_what_to_lower(call):
    line = said(call)
    assert "memory" in line and "lower batch_size" in line
    assert from_worker(lambda index: call()) == line


def test_a_gpu_without_memory():
    error = torch.OutOfMemoryError(
        "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 8 GiB"
    )
    line = what_to_say(error)
    assert "GPU" in line and "batch_size" in line and "memory_gb" in line and "\n" not in line


def test_a_loader_whose_process_is_killed():
    assert "killed" in from_worker(lambda index: os.kill(os.getpid(), signal.SIGKILL))

    def found_late():  # which of the two it is depends on who looks first
        raise RuntimeError("DataLoader worker (pid(s) 17003) exited unexpectedly") from queue.Empty()

    assert "killed" in said(found_late)


def test_a_damaged_volume_is_the_same_line_in_every_process(tmp_path):
    """PyTorch hands over the traceback of a loader's process as text."""
    path = tmp_path / "half.nii.gz"
    path.write_bytes(b"\x1f\x8b half a volume")
    load = LoadCTd("image", [8, 8, 8], 320)
    here = said(lambda: load({"image": str(path)}))
    assert str(path) in here
    assert from_worker(lambda index: load({"image": str(path)})) == here


def test_a_fault_of_ours_in_a_loader_keeps_its_traceback():
    with pytest.raises(KeyError) as raised:
        list(DataLoader(Items(lambda index: {}["a"]), num_workers=1))
    assert what_to_say(raised.value) is None


def test_a_file_that_a_loader_may_not_read(tmp_path):
    line = from_worker(lambda index: open(tmp_path / "none"))
    assert line.startswith(f"{tmp_path / 'none'}: No such file")
