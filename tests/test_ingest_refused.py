"""What the ingest refuses, file by file and as a whole."""

import csv
import os

import nibabel as nib
import numpy as np
import pytest
from dicom_series import base, save, truncate
from ingest import write_chest

from scripts.data import grid_affine
from scripts.data.ingest.sources import find_sources

# what is refused


def test_one_bad_series_never_stops_the_rest(prepare, tmp_path, chest, write_nifti, capsys):
    source, fine = tmp_path / "in", np.rint(chest)
    write_chest(source / "good", fine, "good")
    write_chest(source / "gap", fine, "gap", left_out=(10,))
    for path in write_chest(source / "cut", fine, "cut")[3:5]:
        truncate(path, 0.9)
    write_chest(source / "raw", fine, "raw", RescaleIntercept=0)
    write_chest(source / "twice", fine - 1024, "twice", intercept=-2048)
    write_chest(source / "small", fine[:, :, :12], "small")
    save(base(fine[0], ("mr", 0), SOPClassUID="1.2.840.10008.5.1.4.1.1.4", Modality="MR"), source / "mr")
    save(base(fine[0], ("scout", 0), ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"]), source / "good" / "scout")
    (source / "empty.dcm").write_bytes(b"")
    (source / "notes.txt").write_text("no CT")
    write_nifti(np.clip(fine / 8 + 125, 0, 255), name="in/grey.nii.gz")
    bare = nib.Nifti1Image(fine.astype(np.int16), None)
    nib.save(bare, source / "bare.nii.gz")
    status, folder, records = prepare(source)
    reasons = sorted(record["reason"] for record in records if record["status"] == "rejected")
    assert status == 2 and [record["status"] for record in records].count("accepted") == 1
    for words in (
        "1 slice is missing, between",
        "pixel data cannot be decoded",
        "rescale was not applied",
        "applied twice",
        "the scan covers 120 of 320 mm along z, less than min_coverage 0.75",
        "not CT: modality MR",
        "the file is empty",
        "not a chest CT in HU: its values are 0 to 1",
        "its orientation is not known: sform_code and qform_code are 0",
    ):
        assert sum(words in text for text in reasons) == 1, (words, reasons)
    assert len(reasons) == 9
    assert "1 volume of 1 patient accepted" in capsys.readouterr().out
    with open(folder / "report.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert sorted(row["reason"] for row in rows if row["status"] == "rejected") == reasons
    page = (folder / "report.html").read_text()
    assert "1 accepted, 9 rejected" in page and "1 localizer, 1 no CT format" in page


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_unreadable_files_are_named(prepare, tmp_path, chest, write_nifti):
    path = write_nifti(chest, grid_affine([32] * 3, [320] * 3), "in/a.nii.gz")
    path.chmod(0)
    status, _, (record,) = prepare(tmp_path / "in")
    assert status == 2 and "Permission denied" in record["reason"]


def test_file_that_cannot_be_opened_is_named(monkeypatch, tmp_path):
    """As above, for those who test as root."""
    from scripts.data.ingest import sources

    (tmp_path / "a.dcm").write_bytes(b"x")

    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(sources, "is_dicom", refuse)
    (source,) = find_sources(tmp_path).sources
    assert source.reason == "cannot be opened: Permission denied"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"center": "heart"}, ["center", "heart"]),
        ({"min_coverage": 2}, ["min_coverage", "2"]),
        ({"spacing": 0}, ["positive"]),
        ({"spacing": [1e-9, 10, 10], "size": None}, ["spacing", "at least 0.01 mm", "1e-09"]),
        ({"num_workers": -1}, ["num_workers"]),
        ({"patient_from": "("}, ["patient_from", "("]),
        ({"patient_from": "NLST-[0-9]+"}, ["patient_from", "NLST", "1 sources"]),
        ({"mapping_file": "set/map.csv"}, ["mapping_file", "dataset_dir"]),
    ],
)
def test_wrong_settings_are_named(prepare, tmp_path, chest, write_nifti, settings, words, one_line, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_nifti(chest, grid_affine([32] * 3, [320] * 3), "in/a.nii.gz")
    with pytest.raises(ValueError) as raised:
        prepare(tmp_path / "in", **settings)
    one_line(raised, *words)


@pytest.mark.parametrize("kind", ["missing", "empty", "inside", "list", "gone", "none"])
def test_wrong_places_are_named(prepare, tmp_path, kind, one_line):
    source = tmp_path / "in"
    if kind != "missing":
        source.mkdir()
    if kind in ("list", "gone"):
        source = source / "list.json"
        source.write_text("{" if kind == "list" else '{"training": [{"image": "gone.nii.gz"}], "validation": []}')
    with pytest.raises(ValueError) as raised:
        prepare(None if kind == "none" else source, "in/set" if kind == "inside" else "set")
    one_line(raised, "dataset_dir" if kind == "inside" else "source_dir")


def test_full_disk_stops_in_one_line(prepare, tmp_path, chest, monkeypatch, one_line):
    from scripts.data.ingest import volume_job

    def refuse(*arguments):
        raise OSError(28, "No space left on device")

    write_chest(tmp_path / "in", chest)
    monkeypatch.setattr(volume_job, "save_nifti", refuse)
    with pytest.raises(ValueError) as raised:
        prepare(tmp_path / "in")
    one_line(raised, "dataset_dir", "No space left on device")


def test_other_settings_in_the_same_folder_are_refused(prepare, tmp_path, chest, write_nifti, one_line):
    write_nifti(chest, grid_affine([32] * 3, [320] * 3), "in/a.nii.gz")
    prepare(tmp_path / "in")
    with pytest.raises(ValueError) as raised:
        prepare(tmp_path / "in", remove_table=True)
    one_line(raised, "remove_table", "choose another dataset_dir")


def test_places_without_a_ct_are_named_as_they_were_typed(prepare, tmp_path, one_line):
    places = [tmp_path / "a", tmp_path / "b"]
    for place in places:
        place.mkdir()
    with pytest.raises(ValueError) as raised:
        prepare(places)
    one_line(raised, f"source_dir {places[0]}, {places[1]} holds no CT: 0 other files left out")
