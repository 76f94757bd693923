"""A data set as a whole: what is said at its end, its report, who is who, and what is gone."""

import csv
import json
import os
import re

import nibabel as nib
import numpy as np
import pytest
from ingest import linear, world, write_chest
from PIL import Image

from scripts.data import chest_phantom, ct_datalist, grid_affine
from scripts.data.ingest.preparation import Preparation
from scripts.data.ingest.report import write_reports
from scripts.data.readers import read_file

AFFINE = grid_affine([32] * 3, [320] * 3)


def names_in(folder):
    return {path.name.split(".")[0] for path in [*folder.glob("volumes/*"), *folder.glob("records/*")]}


def test_two_places_with_equal_names_make_two_volumes(prepare, tmp_path, chest, write_nifti, capsys):
    for number, hospital in enumerate(("h1", "h2")):
        write_nifti(chest + number, AFFINE, f"{hospital}/case001.nii.gz", np.int16)
    status, folder, records = prepare([str(tmp_path / "h1"), tmp_path / "h2"])
    assert status == 0 and len(records) == len(list((folder / "volumes").iterdir())) == 2
    assert "2 volumes of 2 patients accepted" in capsys.readouterr().out


@pytest.mark.skipif(os.name != "posix", reason="names are bytes on POSIX alone")
def test_odd_names_go_through(prepare, tmp_path, chest, write_nifti, capsys, monkeypatch):
    """Not UTF-8, or a number; and the table of who is who has the bytes of the name."""
    path = write_nifti(chest, AFFINE, "2024/a.nii.gz", np.int16)
    path.rename(path.parent / os.fsdecode(b"M\xfcller.nii.gz"))
    monkeypatch.chdir(tmp_path)
    status, _, _ = prepare(2024, mapping_file=tmp_path / "map.csv")
    assert status == 0 and b"M\xfcller.nii.gz" in (tmp_path / "map.csv").read_bytes()


def test_table_of_who_is_who_is_for_the_user_alone(prepare, tmp_path, chest):
    for number, patient in enumerate(("=cmd|' /C calc'!A0", "+1", "-1", "@SUM(1)", "\tx", "P-1")):
        write_chest(tmp_path / "in" / str(number), chest, str(number), PatientID=patient)
    table = tmp_path / "map.csv"
    prepare(tmp_path / "in", mapping_file=table)
    table.chmod(0o644)
    prepare(tmp_path / "in", mapping_file=table)
    assert table.stat().st_mode & 0o777 == 0o600
    with open(table, newline="") as file:
        ids = [row["patient_id"] for row in csv.DictReader(file)]
    assert "P-1" in ids and not [text for text in ids if text.startswith(tuple("=+-@\t"))] and len(ids) == 6


def test_the_end_says_how_to_find_what_was_rejected(prepare, tmp_path, chest, write_nifti, capsys):
    write_nifti(chest, AFFINE, "in/a.nii.gz", np.int16)
    (tmp_path / "in" / "b.nii.gz").write_bytes(b"broken")
    _, folder, _ = prepare(tmp_path / "in")
    said = capsys.readouterr().out
    (command,) = re.findall("repeat the command with --mapping_file (.*), for you alone", said)
    assert "training and validation are both the only volume" in said and str(tmp_path / "in") not in said
    prepare(tmp_path / "in", mapping_file=command)
    assert "b.nii.gz" in open(command).read() and "--mapping_file" not in capsys.readouterr().out


def test_patient_ids_that_are_all_alike_are_noticed(prepare, tmp_path, chest, capsys):
    for number in range(3):
        write_chest(tmp_path / "in" / str(number), chest, str(number), PatientID="ANONYMOUS")
    _, folder, _ = prepare(tmp_path / "in")
    assert (
        "warning: training and validation are both all 3 volumes, which have one patient id" in capsys.readouterr().out
    )
    assert "one patient id" in (folder / "report.html").read_text()
    write_chest(tmp_path / "in" / "other", chest, "other", PatientID="P2")
    prepare(tmp_path / "in")
    assert "warning: 3 of 4 volumes have one patient id" in capsys.readouterr().out


def test_copies_under_other_names_are_noticed(prepare, tmp_path, chest, write_nifti, capsys):
    for number, name in enumerate(("a.nii.gz", "a.nii", "b.nii.gz")):
        write_nifti(chest + number // 2, AFFINE, f"in/{name}", np.int16)
    prepare(tmp_path / "in")
    assert "warning: 1 volume has the values of another, a copy of one scan? " in capsys.readouterr().out


def test_what_is_gone_is_told_and_removed_where_asked(prepare, tmp_path, chest, write_nifti, capsys):
    paths = [write_nifti(chest, AFFINE, f"in/{number}.nii.gz", np.int16) for number in range(3)]
    _, folder, _ = prepare(tmp_path / "in")
    before, foreign = names_in(folder), folder / "volumes" / "mine.nii.gz"
    foreign.touch()
    paths[0].unlink()
    prepare(tmp_path / "in")
    assert "the sources of 1 volume of earlier runs are gone; they are kept" in capsys.readouterr().out
    assert names_in(folder) == before | {"mine"}
    (tmp_path / "in" / "lost.nii.gz").symlink_to(tmp_path / "nowhere")
    prepare(tmp_path / "in", remove_missing=True)
    assert "nothing was removed" in capsys.readouterr().out
    (tmp_path / "in" / "lost.nii.gz").unlink()
    prepare(tmp_path / "in", remove_missing=True)
    listed = ct_datalist(folder)
    assert "they were removed" in capsys.readouterr().out and foreign.exists()
    assert len(names_in(folder)) == 3 and len(listed["training"]) + len(listed["validation"]) == 2


def test_headers_warnings_reach_the_report(prepare, tmp_path, chest):
    image = nib.Nifti1Image(chest.astype(np.int16), AFFINE)
    image.set_sform(AFFINE, 1)
    image.set_qform(AFFINE + np.eye(4)[:, 3:] @ [[0, 0, 0, 0]] + np.pad([[40.0], [0], [0]], ((0, 1), (3, 0))), 1)
    (tmp_path / "in").mkdir()
    nib.save(image, tmp_path / "in" / "a.nii.gz")
    _, folder, (record,) = prepare(tmp_path / "in")
    assert record["status"] == "accepted" and "40 mm apart" in record["warnings"][0]
    assert "40 mm apart" in (folder / "report.html").read_text()


def test_no_chest_is_rejected_unless_told(prepare, tmp_path, chest, write_nifti):
    belly = np.where(chest > -300, chest, np.where(np.abs(np.indices(chest.shape)[0] - 15.5) > 13, -1000, 40))
    write_nifti(belly, AFFINE, "in/a.nii.gz", np.int16)
    status, _, (record,) = prepare(tmp_path / "in")
    assert status == 2 and "no chest" in record["reason"] and "min_lung_ml 500" in record["reason"]
    status, _, (record,) = prepare(tmp_path / "in", "other", min_lung_ml=0)
    assert status == 0 and "is this a chest" in record["warnings"][0]


def test_crop_of_a_chest_counts_as_one(tmp_path, write_nifti):
    """Lungs that are open to the sides of a crop are no air inside a body, but lung all the same."""
    fine = chest_phantom(3, (64, 64, 64), (320, 320, 320))
    path = write_nifti(fine[12:34, 16:46, 20:50], grid_affine([22, 30, 30], [110, 150, 150]), "crop.nii.gz", np.int16)
    _, _, facts = Preparation([5] * 3, [30] * 3, min_coverage=0)(read_file(path))
    assert facts["lung_ml"] < 500


def test_default_size_holds_an_adult_chest():
    assert Preparation([1.0] * 3, None).size == [320] * 3
    assert Preparation([0.8] * 3, None).size == [400] * 3
    assert Preparation([0.7, 0.7, 1.25], None).size == [458, 458, 256]
    assert Preparation([1.0] * 3, [256] * 3).size == [256] * 3


def test_bodies_of_metres_are_refused_before_they_are_resampled():
    from monai.data import MetaTensor

    affine = np.diag([100.0, 100, 100, 1])
    volume = MetaTensor(__import__("torch").from_numpy(linear(world((32, 32, 32), affine))[None]), affine=affine)
    with pytest.raises(ValueError, match="field of view is 3200"):
        Preparation([1.0] * 3, None)(volume)


def test_data_set_that_names_files_elsewhere_is_refused(prepare, tmp_path, chest, write_nifti, one_line):
    write_nifti(chest, AFFINE, "in/a.nii.gz", np.int16)
    _, folder, _ = prepare(tmp_path / "in")
    content = json.loads((folder / "dataset.json").read_text())
    for image in ("../in/a.nii.gz", str(tmp_path / "in" / "a.nii.gz"), "volumes/../../in/a.nii.gz"):
        content["training"] = [{"image": image}]
        (folder / "dataset.json").write_text(json.dumps(content))
        with pytest.raises(ValueError) as raised:
            ct_datalist(folder)
        one_line(raised, "dataset.json", "outside its folder")


# the report


def test_report_of_many_volumes_stays_small(tmp_path):
    """Its pictures lie beside it and are fetched when they are seen."""
    facts = {"kind": "NIfTI", "slices": None, "status": "accepted", "reason": "", "warnings": [], "section": ""}
    facts |= {"original_shape": [300, 512, 512], "original_spacing_mm": [1, 1, 1], "original_axes": "RAS"}
    facts |= {"original_min": -1024.0, "original_max": 3071.0, "coverage": [1, 1, 1], "lung_ml": 4000}
    facts |= {"body_width_mm": 350, "histogram": list(range(64))}
    names = [f"{number:012x}_00000000" for number in range(3000)]
    records = [{"volume": name, "patient": name[:12], **facts} for name in names]
    dataset = {"intensity": "HU", "numTraining": 3000, "numValidation": 0, "size": [320] * 3, "spacing_mm": [1.0] * 3}
    lists = {"training": [{"image": f"volumes/{name}.nii.gz"} for name in names], "validation": []}
    write_reports(tmp_path, records, {}, {**dataset, **lists})
    page = (tmp_path / "report.html").read_text()
    assert len(page) < 3.5e6 and page.count('loading="lazy"') == 3000 and "data:image/j" not in page
    assert page.count("<") < 20 * 3000  # few elements
    assert f'<a href="records/{names[7]}.jpg"><img' in page


def test_pictures_have_the_size_that_the_report_says(prepare, tmp_path, chest, write_nifti):
    write_nifti(chest, AFFINE, "in/a.nii.gz", np.int16)
    _, folder, (record,) = prepare(tmp_path / "in")
    page = (folder / "report.html").read_text()
    width, height = Image.open(folder / "records" / f"{record['volume']}.jpg").size
    assert f'width="{width}" height="{height}"' in page and width > 700 and "height: auto" in page
    assert "align-items: flex-start" in page  # or the row's height would stretch the picture
