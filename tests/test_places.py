"""Which files folders, lists and datalists name, and who of them is who."""

import json
import os
from pathlib import Path

import pytest
from dicom_series import write_series
from ingest import linear

from scripts.data.ingest.pseudonyms import Pseudonym
from scripts.data.ingest.sources import find_sources


def touch(folder, *names, content=b"x"):
    for name in names:
        path = Path(folder, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return Path(folder)


def keys(places, **settings):
    return [source.key for source in find_sources(places, **settings).sources]


def left_out(places):
    return {kind: count for kind, count in find_sources(places).left_out.items() if count}


def test_equal_names_in_two_places_are_two_patients(tmp_path):
    touch(tmp_path, "h1/a.nii.gz", "h2/a.nii.gz", "h2/b.nii.gz")
    sources = find_sources([tmp_path / "h1", tmp_path / "h2"]).sources
    assert [source.key for source in sources] == ["h1/a.nii.gz", "h2/a.nii.gz", "h2/b.nii.gz"]
    assert len({source.patient for source in sources}) == len({Pseudonym("x").of(source) for source in sources}) == 3
    touch(tmp_path, "x/h1/a.nii.gz")
    more = [tmp_path / "h1", tmp_path / "h2", tmp_path / "x" / "h1"]
    assert len(set(keys(more))) == 4 and keys(more) == keys(more[::-1])
    assert keys(tmp_path / "h1") == ["a.nii.gz"]  # wherever the only place lies


def test_a_file_is_one_source_however_it_is_reached(tmp_path):
    touch(tmp_path, "d/a.nii.gz", "d/sub/b.nii.gz")
    (tmp_path / "d" / "link.nii.gz").symlink_to(tmp_path / "d" / "a.nii.gz")
    (tmp_path / "d" / "zlink").symlink_to(tmp_path / "d" / "sub")
    (tmp_path / "list.txt").write_text("d/a.nii.gz\nd\nd/sub/../a.nii.gz\n")
    for places in ([tmp_path / "d"], [tmp_path / "d"] * 2, [tmp_path / "d" / "sub", tmp_path / "d"]):
        assert keys(places) == keys(places[::-1]) and len(keys(places)) == 2, places
    assert keys([tmp_path / "list.txt"]) == ["d/a.nii.gz", "d/sub/b.nii.gz"]
    assert left_out(tmp_path / "list.txt") == {"file met before": 3}


def test_a_series_in_two_places_is_one(tmp_path):
    volume = linear(__import__("numpy").zeros((9, 4, 5, 3)))
    for name in ("one", "two"):
        write_series(tmp_path / name, volume, "a")
    assert len(keys([tmp_path / "one", tmp_path / "two"])) == 1


def test_links_to_folders_are_followed_and_loops_end(tmp_path):
    touch(tmp_path, "store/p1/a.nii.gz", "in/b.nii.gz")
    source = tmp_path / "in"
    (source / "p1").symlink_to(tmp_path / "store" / "p1")
    (source / "self").symlink_to(source / "self")
    for name in ("gone", "gone.nii.gz"):
        (source / name).symlink_to(source / "nowhere")
    (tmp_path / "store" / "p1" / "back").symlink_to(source)
    (source / "up").symlink_to(tmp_path)
    sources = {source.key: source.reason for source in find_sources(source).sources}
    assert sources.pop("p1/a.nii.gz") == sources.pop("b.nii.gz") == ""
    assert set(sources) == {"self", "gone", "gone.nii.gz"} and all(
        "cannot be opened" in reason for reason in sources.values()
    )
    assert left_out(source) == {"link to a folder above source_dir": 1}


def test_what_is_not_read_is_counted_by_kind(tmp_path):
    touch(tmp_path, "a.zip", "b.tar.gz", "c.7z", "d.txt", "e.raw", "f.hdr", ".hidden", ".h/a.nii.gz")
    touch(
        tmp_path,
        "labelsTr/a.nii.gz",
        "s1/segmentations/lung.nii.gz",
        "s1/ct.nii.gz",
        "x.mhd",
        "x.RAW",
        "y.nhdr",
        "y.raw.gz",
    )
    assert keys(tmp_path) == ["s1/ct.nii.gz", "x.mhd", "y.nhdr"]
    archive, raw = "archive, to be unpacked first", "raw data without a header"
    assert left_out(tmp_path) == {archive: 3, "no CT format": 2, raw: 1, "label map": 2}


def test_pointers_of_git_lfs_are_called_so(tmp_path):
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
    touch(tmp_path, "a.nii.gz", "b.dcm", "c.mha", content=pointer)
    sources = find_sources(tmp_path).sources
    assert len(sources) == 3 and all("git lfs pull" in source.reason for source in sources)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_lists_as_editors_save_them(tmp_path, encoding):
    touch(tmp_path, "dcm 1/a.nii.gz", "ü.nii.gz", "c.nii.gz")
    text = '# my scans\r\ndcm 1\r\n"ü.nii.gz"\r\n\r\n  c.nii.gz'
    (tmp_path / "list.txt").write_bytes(text.encode(encoding))
    assert keys(tmp_path / "list.txt") == ["c.nii.gz", "dcm 1/a.nii.gz", "ü.nii.gz"]


def test_names_that_are_no_utf8(tmp_path):
    name = os.fsdecode(b"M\xfcller.nii.gz")
    touch(tmp_path, name)
    (tmp_path / "list.txt").write_bytes(os.fsencode(name) + b"\n")
    for place in (tmp_path, tmp_path / "list.txt"):
        (source,) = [source for source in find_sources(place).sources if not source.reason]
        assert len(Pseudonym("x").of(source)) == 21


def test_one_file_is_a_place(tmp_path):
    assert keys(touch(tmp_path, "a.nii.gz", "b.nii.gz") / "a.nii.gz") == ["a.nii.gz"]


def test_datalists_of_others(tmp_path):
    touch(tmp_path, "imagesTr/a.nii.gz", "imagesTr/b_0000.nii.gz", "imagesTs/c.nii.gz", "labelsTr/a.nii.gz")
    pairs = [{"image": f"./imagesTr/{name}.nii.gz", "label": f"./labelsTr/{name}.nii.gz"} for name in "ab"]
    path = tmp_path / "dataset.json"
    path.write_text(json.dumps({"training": pairs, "test": ["./imagesTs/c.nii.gz"]}))  # Decathlon, nnU-Net 1
    found = find_sources(path)
    assert [source.key for source in found.sources] == ["imagesTr/a.nii.gz", "imagesTr/b_0000.nii.gz"]
    assert {source.section for source in found.sources} == {""}  # no split of its own
    assert left_out(path) == {"test image of a datalist": 1}
    path.write_text(json.dumps({"channel_names": {"0": "CT"}, "numTraining": 2, "file_ending": ".nii.gz"}))  # nnU-Net 2
    assert keys(path) == ["imagesTr/a.nii.gz", "imagesTr/b_0000.nii.gz"]
    path.write_text(json.dumps({"training": ["imagesTr/a.nii.gz"], "validation": [{"image": "imagesTs/c.nii.gz"}]}))
    assert [source.section for source in find_sources(path).sources] == ["training", "validation"]


def test_one_missing_entry_of_a_list_is_a_reject(tmp_path):
    touch(tmp_path, "a.nii.gz")
    (tmp_path / "list.txt").write_text("a.nii.gz\nb.nii.gz\n" + "c" * 5000)
    reasons = [source.reason for source in find_sources(tmp_path / "list.txt").sources]
    assert reasons == ["", "cannot be opened: No such file or directory", "cannot be opened: File name too long"]


@pytest.mark.parametrize(
    "content",
    [
        b"\x1f\x8b\0\1",
        b"[" * 100_000,
        b"null",
        b'{"training": [{"image": 5}]}',
        b'{"training": [{"image": ["a"]}]}',
        b"{}",
    ],
)
def test_datalists_that_are_none(tmp_path, content, one_line):
    for name in ("list.json", "list.txt") if b"\0" in content else ("list.json",):
        with pytest.raises(ValueError) as raised:
            find_sources(touch(tmp_path, name, content=content) / name)
        one_line(raised, "source_dir", "neither a datalist nor a list")


def test_patient_from_finds_patients_or_rejects(tmp_path, one_line):
    touch(tmp_path, "p1_a.nii.gz", "p1_b.nii.gz", "other.nii.gz")
    by_key = {source.key: source for source in find_sources(tmp_path, "(p[0-9])_|other(x)?").sources}
    assert by_key["p1_a.nii.gz"].patient == by_key["p1_b.nii.gz"].patient == "p1"
    assert by_key["other.nii.gz"].reason == "patient_from finds no patient in its path"
    with pytest.raises(ValueError) as raised:
        find_sources(tmp_path, "NLST")
    one_line(raised, "patient_from", "NLST", "3 sources")
    assert "other" not in str(raised.value)
