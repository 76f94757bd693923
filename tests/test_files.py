"""Files appear whole or not at all, one run at a time writes to a folder, and what dead runs left is removed."""

import json
import os
import signal
import subprocess
import sys

import pytest

from scripts import files
from scripts.errors import require_writable
from scripts.files import hold, release, remove_leftovers, whole_file, write_json, write_text

HOLDER = """
import sys, time
sys.path.insert(0, sys.argv[1])
from scripts.files import hold, whole_file
hold(sys.argv[2], "ckpt_dir")
with whole_file(sys.argv[2] + "/model.pt") as file:
    file.write(b"half")
    print("writing", flush=True)
    time.sleep(100)
"""


@pytest.fixture
def another_run(tmp_path):
    """A process that holds tmp_path and is writing model.pt there."""
    arguments = [sys.executable, "-c", HOLDER, os.path.dirname(os.path.dirname(files.__file__)), str(tmp_path)]
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "writing\n"
    yield process
    process.kill()
    process.communicate()


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_failed_writing_leaves_nothing_behind(tmp_path):
    (tmp_path / "model.pt").write_bytes(b"old")
    for path in (tmp_path / "new" / "model.pt", tmp_path / "model.pt"):
        with pytest.raises(OSError, match="disk full"), whole_file(path) as file:
            file.write(b"half")
            raise OSError("disk full")
    assert (tmp_path / "model.pt").read_bytes() == b"old"
    assert names(tmp_path) == ["model.pt", "new"] and names(tmp_path / "new") == []


def test_a_file_is_hidden_until_it_is_whole(tmp_path):
    with whole_file(tmp_path / ("n" * 245)) as file:  # a file system takes 255 letters
        file.write(b"half")
        (part,) = names(tmp_path)
        assert part.startswith(".")
    assert names(tmp_path) == ["n" * 245] and (tmp_path / ("n" * 245)).read_bytes() == b"half"


def test_temporary_names_cannot_be_foretold_and_links_are_not_followed(tmp_path, monkeypatch):
    victim = tmp_path / "victim"
    victim.write_text("whole")
    guesses = iter(["a" * 16, "b" * 16])
    monkeypatch.setattr(files.secrets, "token_hex", lambda size: next(guesses))
    (tmp_path / f".prdit-{'a' * 16}.part").symlink_to(victim)  # as if the first guess were right
    with pytest.raises(FileExistsError):
        write_text(tmp_path / "out.json", "payload")
    (tmp_path / "out.json").symlink_to(victim)
    write_text(tmp_path / "out.json", "payload")
    assert victim.read_text() == "whole" and not (tmp_path / "out.json").is_symlink()


def test_private_files_are_for_the_user_alone(tmp_path):
    old = os.umask(0o022)
    try:
        write_text(tmp_path / "open", "")
        (tmp_path / "key").touch(0o644)
        write_text(tmp_path / "key", "", private=True)
    finally:
        os.umask(old)
    assert (tmp_path / "open").stat().st_mode & 0o777 == 0o644
    assert (tmp_path / "key").stat().st_mode & 0o777 == 0o600


def test_what_a_run_made_in_vain_goes_when_it_ends(tmp_path, monkeypatch):
    """Empty folders and locks, of a run that was refused; never what was there before, or holds something."""
    monkeypatch.setattr(files, "_made", [])
    for name in ("there", "kept", "new/deep"):
        if name == "there":
            (tmp_path / name).mkdir()
        hold(require_writable(tmp_path / name, "ckpt_dir"), "ckpt_dir")
    require_writable(tmp_path / "new" / "deep" / "logs", "log_dir")
    (tmp_path / "kept" / "model.pt").touch()
    files._leave()
    assert names(tmp_path) == ["kept", "there"] and names(tmp_path / "there") == []
    assert names(tmp_path / "kept") == ["model.pt"]


def test_a_file_where_a_folder_is_needed_is_named(tmp_path, one_line):
    (tmp_path / "file").touch()
    for name in ("file", "file/below"):
        with pytest.raises(ValueError) as raised:
            require_writable(tmp_path / name, "output_dir")
        one_line(raised, f"output_dir {tmp_path / name} is not writable", f"{tmp_path / 'file'} is a file")


def test_leftovers_go_when_their_process_is_dead_and_not_before(tmp_path, another_run):
    (tmp_path / ".prdit.part").write_text("a user's own")
    (part,) = (name for name in names(tmp_path) if name.startswith(".prdit-"))
    remove_leftovers(tmp_path)
    assert part in names(tmp_path)
    another_run.kill()
    another_run.wait()
    remove_leftovers(tmp_path, tmp_path / "not there")
    assert part not in names(tmp_path) and ".prdit.part" in names(tmp_path)


def test_a_second_run_in_a_folder_says_so_until_the_first_is_dead(tmp_path, another_run, one_line):
    with pytest.raises(ValueError) as raised:
        hold(tmp_path, "ckpt_dir")
    one_line(raised, f"ckpt_dir {tmp_path}", f"process {another_run.pid}", "choose another ckpt_dir")
    hold(tmp_path, "ckpt_dir", "another-stage")
    release(tmp_path, "another-stage")
    another_run.send_signal(signal.SIGKILL)
    another_run.wait()
    hold(tmp_path, "ckpt_dir")
    hold(tmp_path, "ckpt_dir")  # the same run
    release(tmp_path)
    assert not list(tmp_path.glob(".*.lock"))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_child_does_not_hold_the_folder_of_its_dead_parent(tmp_path):
    """Workers of a loader outlive a killed trainer by seconds."""
    code = HOLDER.replace("with whole_file", "import os\nif os.fork() == 0:\n    time.sleep(100)\nwith whole_file")
    arguments = [sys.executable, "-c", code, os.path.dirname(os.path.dirname(files.__file__)), str(tmp_path)]
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True, start_new_session=True)
    try:
        assert process.stdout.readline() == "writing\n"
        process.kill()
        process.wait()
        hold(tmp_path, "ckpt_dir")
        release(tmp_path)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.stdout.close()


def test_file_systems_without_locks_are_written_to(tmp_path, monkeypatch):
    def no_locks(*arguments):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(files.fcntl, "flock", no_locks)
    (tmp_path / ".prdit-0123.part").touch()
    hold(tmp_path, "ckpt_dir")
    write_text(tmp_path / "a", "text")
    remove_leftovers(tmp_path)  # whose they are cannot be told
    release(tmp_path)
    assert names(tmp_path) == [".prdit-0123.part", "a"]


def test_json_is_json_whatever_was_measured(tmp_path):
    """Python would write NaN and Infinity, which no other reader knows."""
    content = {"a": [1.5, float("nan"), {"b": (float("inf"), 2, "x", None, True)}], "ü": -0.0}
    write_json(tmp_path / "x.json", content)
    found = json.loads((tmp_path / "x.json").read_text(encoding="utf-8"), parse_constant=pytest.fail)
    assert found == {"a": [1.5, None, {"b": [None, 2, "x", None, True]}], "ü": 0.0}
