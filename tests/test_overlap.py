"""No run writes to what it reads, whatever the names of both."""

import os

import pytest

from scripts.overlap import check_places


@pytest.fixture
def places(tmp_path):
    """source/scan.nii.gz, and set/volumes."""
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "scan.nii.gz").write_text("scan")
    (tmp_path / "set" / "volumes").mkdir(parents=True)
    return tmp_path


def check(folder, read, apart=(), **written):
    check_places({"source_dir": [folder / one for one in read]}, {k: folder / v for k, v in written.items()}, apart)


@pytest.mark.parametrize(
    ("read", "written"),
    [
        (["source"], "source"),
        (["source"], "source/new/set"),
        (["source"], "source/../source/set"),
        (["source/scan.nii.gz"], "source/scan.nii.gz"),
        (["set", "source"], "source/scan.nii.gz"),
        (["source"], "link/set"),
        (["link"], "source/set"),
        (["source"], "set2"),  # whose volumes are a link into the source
        (["source/scan.nii.gz"], "hard.nii.gz"),
        (["link/scan.nii.gz"], "hard.nii.gz"),
    ],
)
def test_a_source_is_never_written_to(places, one_line, read, written):
    (places / "link").symlink_to(places / "source")
    (places / "set2").mkdir()
    (places / "set2" / "volumes").symlink_to(places / "link")
    os.link(places / "source" / "scan.nii.gz", places / "hard.nii.gz")
    with pytest.raises(ValueError) as raised:
        check(places, read, dataset_dir=written)
    one_line(raised, f"dataset_dir {places / written}", "source_dir, which is only read", "choose")


def test_what_lies_elsewhere_is_taken(places):
    check(places, ["source"], ["dataset_dir", "salt_file"], dataset_dir="set", salt_file="set.salt")
    check(places, ["source/scan.nii.gz"], dataset_dir="source")  # a file of a list stands for itself alone
    check(places, ["source/model.pt"], ckpt_dir="source")
    check(places, ["source"], dataset_dir="sourced")
    check_places({"real_dir": None, "weights": "hub"}, {"output_dir": places, "cache_dir": None})


@pytest.mark.parametrize(
    ("written", "facts"),
    [
        ({"dataset_dir": "source"}, ["source_dir lies in dataset_dir"]),
        ({"dataset_dir": "."}, ["source_dir lies in dataset_dir"]),
        ({"dataset_dir": "set", "salt_file": "set/key"}, ["salt_file", "must not lie in dataset_dir"]),
        ({"dataset_dir": "set", "mapping_file": "set/new/map.csv"}, ["mapping_file", "must not lie in dataset_dir"]),
        ({"salt_file": "key", "mapping_file": "set/../key"}, ["salt_file", "mapping_file"]),
    ],
)
def test_places_that_must_be_apart(places, one_line, written, facts):
    with pytest.raises(ValueError) as raised:
        check(places, ["source/scan.nii.gz"], ["dataset_dir", "salt_file", "mapping_file"], **written)
    one_line(raised, *facts)
