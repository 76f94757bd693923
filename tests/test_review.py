"""A reader study as a user runs it: blind, and scored to the numbers that were put in."""

import json
import os
import re
import shutil
import stat

import numpy as np
import pytest
from bundle_runs import assert_refused
from dicom_series import as_dicom, write_series
from review_studies import READERS, SIZE_MM, answer, make_study, score, write_answers, write_phantoms

from scripts.data import chest_phantom
from scripts.data.pictures import preview_picture, slice_picture
from scripts.review import study as study_module
from scripts.review.blinding import read_volume_script
from scripts.review.cases import Geometry, Steps, common_geometry, crop_notes
from scripts.review.study import reader_names


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Folders 'real' at 10 mm and 'generated' at 20 mm, 5 phantoms each, and a study of 3 and 3 of them."""
    folder = tmp_path_factory.mktemp("review")
    write_phantoms(folder / "real", range(5), side=32)
    write_phantoms(folder / "generated", range(100, 105), change=lambda hu: hu.clip(-1000, 1000))
    return folder


@pytest.fixture(scope="module")
def made(folder):
    return make_study(folder)


# making a study


def test_a_study_is_mixed_shuffled_and_the_same_for_all_readers(made):
    folder, key = made
    assert [path.name for path in sorted(folder.iterdir())] == READERS
    assert [volume["set"] for volume in key["volumes"]].count("generated") == 3 and len(key["volumes"]) == 6
    orders = [list(cases.values()) for cases in key["readers"].values()]
    assert all(sorted(order) == list(range(6)) for order in orders)
    assert len({tuple(order) for order in orders}) == 3  # an order of its own for each
    assert key["trial_volume"] not in key["volumes"]


def test_every_reader_sees_the_volumes_of_the_key(made, folder):
    """Each case is its source on the common grid, by the same steps."""
    place, key = made
    steps = Steps(**key["steps"])
    assert steps.grid == [16] * 3 and steps.spacing_mm == [20.0] * 3
    for reader, cases in key["readers"].items():
        for case, index in cases.items():
            volume, header = read_volume_script(place / reader / "cases" / f"{case}.js")
            source = key["volumes"][index]
            expected = steps({"image": str(folder / source["set"] / source["file"])})
            assert np.array_equal(volume, expected) and header["spacing"] == steps.spacing_mm


def test_nothing_a_reader_gets_names_a_source(made, folder):
    place, key = made
    for path in place.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert b"secret" not in content and str(folder).encode() not in content
            assert not any(volume["sha256"].encode() in content for volume in key["volumes"])
    assert "voxels of 20 mm" in (place / "Ana" / "index.html").read_text()


def test_the_key_is_for_the_organiser_alone(made):
    path = made[0].with_name("study.key.json")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert not list(made[0].rglob("*key*"))


def test_the_same_command_makes_the_same_study_and_other_volumes_another_order(made, folder, tmp_path):
    again, key = make_study(folder, "again")
    first = made[0]
    files = [path.relative_to(first) for path in first.rglob("*") if path.is_file()]
    assert all((first / path).read_bytes() == (again / path).read_bytes() for path in files)
    write_phantoms(tmp_path / "generated", range(200, 205))
    _, other = make_study(folder, "other", generated_dir=tmp_path / "generated")
    kinds = [
        [found["volumes"][i]["set"] for cases in found["readers"].values() for i in cases.values()]
        for found in (key, other)
    ]
    assert kinds[0] != kinds[1] and key["key_of_study"] != other["key_of_study"]


def test_a_study_is_never_written_over(made, folder):
    before = {path: path.read_bytes() for path in made[0].rglob("*") if path.is_file()}
    with assert_refused("study.key.json", "is there already"):
        make_study(folder)
    with assert_refused("is not empty"):
        make_study(folder, key_file=folder / "new.json")
    assert {path: path.read_bytes() for path in made[0].rglob("*") if path.is_file()} == before
    assert not (folder / "new.json").exists()


def test_nothing_is_left_of_a_study_that_was_broken_off(folder, tmp_path, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(study_module, "write_reader_page", stop)
    with pytest.raises(KeyboardInterrupt) as stopped:
        make_study(folder, "broken")
    assert "starts anew" in stopped.value.__notes__[0]
    assert not [path for path in folder.iterdir() if "broken" in path.name]
    monkeypatch.undo()
    monkeypatch.setattr(study_module, "find_leaks", lambda *_: ["case_001: the size of its file is unlike"])
    with assert_refused("Ana could be told apart", "case_001"):
        make_study(folder, "broken")
    assert not [path for path in folder.iterdir() if "broken" in path.name]


def test_a_study_that_a_kill_left_unfinished_is_finished_by_the_same_command_alone(made, tmp_path):
    """What is there when a run is killed between its last renames; its key may be of another study that was finished."""

    def left(reader, key):
        folder = tmp_path / "study"
        for place in (folder, folder / ".unfinished" / "Ben", folder / "Ana" if reader else folder):
            place.mkdir(parents=True, exist_ok=True)
        (folder / ".prdit.lock").touch()
        (tmp_path / ".prdit-1.part").touch()  # of the key
        if key:
            (tmp_path / "study.key.json").write_text(json.dumps(key))
        return folder

    def removed():
        for path in (tmp_path / "study.key.json", tmp_path / "study"):
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)

    sources = {"real_dir": made[0].parent / "real", "generated_dir": made[0].parent / "generated"}
    for reader, key in ((False, None), (False, made[1]), (True, made[1])):
        left(reader, key)
        _, again = make_study(tmp_path, **sources)
        assert {**again, "made": ""} == {**made[1], "made": ""}
        assert sorted(path.name for path in (tmp_path / "study").iterdir()) == READERS
        assert sorted(path.name for path in tmp_path.iterdir()) == ["study", "study.key.json"]
        for reader in READERS:
            assert len(list((tmp_path / "study" / reader / "cases").iterdir())) == 7
        removed()
    for reader, key, said in (
        (True, None, "is not empty"),
        (False, {**made[1], "key_of_study": "another"}, "study.key.json is there already"),
        (False, {}, "study.key.json is there already"),
    ):
        left(reader, key or {"mine": 1} if key is not None else None)
        with assert_refused(said):
            make_study(tmp_path, **sources)
        removed()


def test_phantoms_stand_in_for_real_cases_and_only_the_organiser_is_told(folder, capsys):
    place, key = make_study(folder, "phantoms", real_dir=None, readers=1, trial_case=False)
    assert key["real"] == "phantoms" and "phantoms, not patients" in key["notes"][0] and key["trial"] is None
    assert "phantoms, not patients" in capsys.readouterr().out
    assert "hantom" not in (place / "reader_1" / "index.html").read_text()


@pytest.mark.parametrize(
    ("settings", "facts"),
    [
        ({"num_cases": 1}, ["num_cases must be a whole number from 2"]),
        ({"num_cases": 6}, ["num_cases is 6", "holds 5 volumes"]),
        ({"num_cases": 5}, ["the trial case needs a volume more"]),
        ({"readers": ["Ana", "ana"]}, ["two of them are called ana"]),
        ({"readers": ["../Ana"]}, ["'../Ana' cannot be the name of a folder"]),
        ({"readers": 0}, ["readers must be a whole number from 1 to 100, or names"]),
        ({"generated_dir": None}, ["generated_dir is not given"]),
        ({"spacing": 5}, ["spacing 5 mm is finer than", "20 mm", "blur would give it away"]),
        ({"spacing": 30}, ["only 10 voxels of 30 mm along x in common"]),
        ({"field_of_view_mm": 400}, ["field_of_view_mm 400 is more than", "padding would give it away"]),
    ],
)
def test_bad_studies_are_refused(folder, settings, facts):
    with assert_refused(*facts):
        make_study(folder, "bad", **settings)
    assert not [path for path in folder.iterdir() if "bad" in path.name]


def test_places_of_a_study(folder):
    with assert_refused("key_file", "lies among the readers' folders"):
        make_study(folder, "bad", key_file=folder / "bad" / "key.json")
    with assert_refused("output_dir", "lies in real_dir"):
        make_study(folder, "real/bad")
    with assert_refused("real and generated share files"):
        make_study(folder, "bad", generated_dir=folder / "real")


def test_a_volume_that_is_in_both_sets_is_refused(folder, tmp_path):
    write_phantoms(tmp_path / "copies", range(2), side=32)
    with assert_refused("p0_secret.nii.gz", "are the same file"):
        make_study(folder, "bad", generated_dir=tmp_path / "copies", num_cases=2, real_dir=_only(folder, tmp_path, 3))


def test_real_cases_may_be_dicom_and_take_the_same_steps(folder, tmp_path):
    for seed in (0, 1):
        hu = as_dicom(chest_phantom(seed, [32] * 3, SIZE_MM))
        write_series(tmp_path / "dicom" / f"s{seed}", hu, f"s{seed}", spacing=(10.0, 10.0), step=(0.0, 0.0, 10.0))
    place, key = make_study(folder, "dicom", real_dir=tmp_path / "dicom", num_cases=2, trial_case=False, readers=1)
    steps, found = Steps(**key["steps"]), set()
    expected = [steps({"image": str(folder / "real" / f"p{seed}_secret.nii.gz")}) for seed in (0, 1)]
    for case, index in key["readers"]["reader_1"].items():
        volume = read_volume_script(place / "reader_1" / "cases" / f"{case}.js")[0].astype(int)
        if key["volumes"][index]["set"] == "real":
            found.add(int(np.argmin([np.abs(volume - one).max() for one in expected])))
            assert min(np.abs(volume - one).max() for one in expected) <= 1
    assert found == {0, 1}


def _only(folder, tmp_path, count):
    (tmp_path / "few").mkdir()
    for path in sorted((folder / "real").iterdir())[:count]:
        (tmp_path / "few" / path.name).write_bytes(path.read_bytes())
    return tmp_path / "few"


def test_names_of_readers():
    assert reader_names(2) == ["reader_1", "reader_2"] and reader_names(["Dr. Núñez 2"]) == ["Dr. Núñez 2"]
    for bad in ("", ".", "..", "a/b", "a\\b", "a:b", " a", "a ", "x" * 61):
        with pytest.raises(ValueError, match="cannot be the name of a folder"):
            reader_names([bad])


def test_the_common_grid_is_as_coarse_and_as_small_as_need_be():
    files = [Geometry("a", [0.7, 0.7, 5.0], [350, 350, 300]), Geometry("b", [2.0, 2.0, 2.0], [320, 400, 400])]
    assert common_geometry(files) == ([160, 175, 60], [2.0, 2.0, 5.0])
    assert common_geometry(files, spacing=[4, 4, 5], field_of_view_mm=200) == ([50, 50, 40], [4, 4, 5])
    with pytest.raises(ValueError, match="finer than a is along z"):
        common_geometry(files, spacing=4)


def test_names_of_files_need_not_be_text(folder, tmp_path):
    shutil.copytree(folder / "real", tmp_path / "odd")
    for number, path in enumerate(sorted((tmp_path / "odd").iterdir())):
        path.rename(os.fsdecode(os.fsencode(tmp_path / "odd") + b"/p\xff%d.nii.gz" % number))
    place, key = make_study(folder, "odd", real_dir=tmp_path / "odd", num_cases=2, readers=1)
    answers = write_answers(tmp_path / "answers", key, lambda _, index, synthetic, case: answer(case, synthetic))
    change_case(answers / "reader_1.json", 1, comment="half of \ud83d")
    results, _ = score(answers, folder / "odd.key.json", tmp_path / "score")
    assert any("p\\udcff" in volume["file"] for volume in results["cases"])
    assert results["comments"][0]["comment"] == "half of ?"


def test_a_small_volume_that_crops_all_others_is_named():
    files = [Geometry(name, [2.0] * 3, [320.0, 320.0, 300.0]) for name in "abc"]
    assert crop_notes(files, [320, 320, 300]) == []
    (note,) = crop_notes([*files, Geometry("small", [2.0] * 3, [320.0, 320.0, 120.0])], [320, 320, 120])
    assert note == "all cases are cropped to 120 mm along z, where most cover 300 mm: small does not"


# scoring


WRONG = {"Ana": {0}, "Ben": {1, 2}, "Zoë": set()}  # volumes that a reader takes for the other kind


def say(reader, index, synthetic, case):
    marks = [{"index": [8, 4, 2], "plane": "coronal", "note": "<script>mark</script>"}] if index == 1 else []
    return answer(
        case,
        synthetic != (index in WRONG[reader]),
        confidence=5 - READERS.index(reader),
        realism=2 if synthetic else 4,
        comment="<script>alert('x')</script> & more" if index == 2 else "",
        marks=marks,
        seconds=10.0 * (1 + READERS.index(reader)),
    )


@pytest.fixture(scope="module")
def scored(made, tmp_path_factory):
    folder = tmp_path_factory.mktemp("scored")
    write_answers(folder / "answers", made[1], say)
    return score(folder / "answers", made[0].with_name("study.key.json"), folder / "score")


def test_the_score_is_what_was_put_in(made, scored):
    """All of it by hand: who is wrong where is in WRONG."""
    synthetic = np.array([volume["set"] == "generated" for volume in made[1]["volumes"]])
    results = scored[0]
    wrong = {name: np.isin(range(6), list(indices)) for name, indices in WRONG.items()}
    for name, one in results["readers"].items():
        assert (one["accuracy"]["count"], one["accuracy"]["total"]) == (6 - wrong[name].sum(), 6)
        assert one["sensitivity"]["count"] == 3 - (wrong[name] & synthetic).sum()
        assert one["specificity"]["count"] == 3 - (wrong[name] & ~synthetic).sum()
        # one confidence for all: a pair is won where both are right, tied where one is, lost where none is
        right = [(~wrong[name])[kind] for kind in (synthetic, ~synthetic)]
        pairs = [(int(a) + int(b)) / 2 for a in right[0] for b in right[1]]
        assert one["auc"]["value"] == pytest.approx(np.mean(pairs))
        assert (
            one["seconds"]["median"] == 10 * (1 + READERS.index(name))
            and one["seconds"]["total"] == 6 * one["seconds"]["median"]
        )
    assert results["pooled"]["accuracy"]["count"] == 15 and results["pooled"]["accuracy"]["total"] == 18
    areas = [one["auc"]["value"] for one in results["readers"].values()]
    assert results["pooled"]["auc"]["value"] == pytest.approx(np.mean(areas))
    called = np.array([synthetic != one for one in wrong.values()])
    said = called.sum(0)
    agreement = np.mean([(a * (a - 1) + (3 - a) * (2 - a)) / 6 for a in said])
    chance = called.mean() ** 2 + (1 - called.mean()) ** 2
    assert results["agreement"]["fleiss"]["value"] == pytest.approx((agreement - chance) / (1 - chance))
    assert results["questions"]["realism"]["real"]["counts"] == [0, 0, 0, 9]
    assert results["questions"]["realism"]["difference"]["value"] == -2
    assert results["questions"]["realism"]["p_value"] == pytest.approx(2 / 20)
    assert results["questions"]["anatomy"]["difference"]["value"] == 0
    assert [mark["reader"] for mark in results["marks"]] == READERS and len(results["comments"]) == 3


def test_what_readers_typed_cannot_run(scored):
    page = scored[1]
    assert "<script" not in page and "&lt;script&gt;alert(" in page and "&lt;script&gt;mark" in page
    assert page.count("data:image/png") == 3 and "src=" in page


def test_every_link_of_the_page_is_inside_of_it(scored):
    assert not re.findall(r'(?:src|href)="(?!data:|#)', scored[1]) and "http" not in scored[1]


def test_pictures_are_optional(made, scored, tmp_path):
    key = tmp_path / "alone.key.json"
    key.write_text(json.dumps(made[1]))
    write_answers(tmp_path / "answers", made[1], say)
    results, page = score(tmp_path / "answers", key, tmp_path / "score")
    assert len(results["marks"]) == 3 and "3 of them have no picture" in page and "<img" not in page
    _, page = score(tmp_path / "answers", key, tmp_path / "score", study_dir=made[0])
    assert page.count("<img") == 3
    with assert_refused("study_dir must be a folder that exists"):
        score(tmp_path / "answers", key, tmp_path / "score", study_dir=tmp_path / "nowhere")


def change(path, **fields):
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def change_case(path, number, **fields):
    content = json.loads(path.read_text())
    content["cases"][number] |= fields
    path.write_text(json.dumps(content))


REFUSED = {
    "another study": (lambda f: change(f / "Ana.json", study="abc"), ["Ana.json answers study abc, the key is that of"]),
    "a stranger": (lambda f: change(f / "Ana.json", reader="Eva"), ["is of Eva, who is no reader", "Ana, Ben, Zoë"]),
    "a reader twice": (lambda f: (f / "copy.json").write_text((f / "Ana.json").read_text()), ["are both of Ana"]),
    "not submitted": (lambda f: change(f / "Ben.json", submitted=None), ["Ben has not submitted yet"]),
    "a reader without a file": (lambda f: (f / "Zoë.json").unlink(), ["there are no answers of Zoë"]),
    "a question": (lambda f: change_case(f / "Ana.json", 2, anatomy=None), ["case_002 has no answer to anatomy"]),
    "a verdict": (lambda f: change_case(f / "Ana.json", 2, verdict=None), ["case_002 has no answer to verdict"]),
    "a case": (lambda f: change_case(f / "Ana.json", 2, case="case_009"), ["answers case_009, which is no case"]),
    "a case twice": (lambda f: change_case(f / "Ana.json", 2, case="case_001"), ["answers case_001 twice"]),
    "confidence": (lambda f: change_case(f / "Ana.json", 2, confidence=6), ["Ana.json: case_002 confidence is not valid"]),
    "a switch": (lambda f: change_case(f / "Ana.json", 2, realism=True), ["case_002 realism is not valid"]),
    "a word": (lambda f: change_case(f / "Ana.json", 2, verdict="fake"), ["case_002 verdict is not valid"]),
    "time": (lambda f: change_case(f / "Ana.json", 2, seconds=-1), ["case_002 seconds is not valid"]),
    "a mark outside": (
        lambda f: change_case(f / "Ana.json", 2, marks=[{"index": [16, 0, 0], "plane": "axial"}]),
        ["case_002 has a mark at [16, 0, 0]"],
    ),
    "another format": (lambda f: change(f / "Ana.json", format=2), ["Ana.json: format is not valid"]),
    "no list": (lambda f: change(f / "Ana.json", cases={}), ["Ana.json: cases is not valid"]),
    "no JSON": (lambda f: (f / "Ana.json").write_text("{"), ["Ana.json is no JSON file of answers"]),
    "another JSON": (lambda f: (f / "x.json").write_text("[]"), ["x.json holds no answers of a reader"]),
    "nothing": (lambda f: [path.unlink() for path in f.iterdir()], ["holds no .json file"]),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_bad_answers_are_refused(name, made, tmp_path):
    harm, facts = REFUSED[name]
    harm(write_answers(tmp_path / "answers", made[1], say))
    with assert_refused(*facts):
        score(tmp_path / "answers", made[0].with_name("study.key.json"), tmp_path / "score")
    assert not list(tmp_path.glob("score/*.json"))


def test_bad_keys_and_places_are_refused(made, tmp_path):
    answers = write_answers(tmp_path / "answers", made[1], say)
    with assert_refused("Ana.json is no key of a reader study"):
        score(answers, answers / "Ana.json", tmp_path / "score")
    with assert_refused("key_file must be a file that exists", "nowhere.json"):
        score(answers, tmp_path / "nowhere.json", tmp_path / "score")
    with assert_refused("answers must be a folder or file that exists", "nowhere"):
        score(tmp_path / "nowhere", made[0].with_name("study.key.json"), tmp_path / "score")
    with assert_refused("lies in study_dir"):
        score(answers, made[0].with_name("study.key.json"), made[0] / "score", study_dir=made[0])
    (tmp_path / "score").mkdir(exist_ok=True)
    (tmp_path / "score" / "score.html").write_text("mine")
    with assert_refused("score.html was not made by this command"):
        score(answers, made[0].with_name("study.key.json"), tmp_path / "score")


def test_what_is_incomplete_is_left_out_and_counted(made, tmp_path):
    answers = write_answers(tmp_path / "answers", made[1], say)
    (answers / "Zoë.json").unlink()
    change(answers / "Ben.json", submitted=None)
    change_case(answers / "Ana.json", 1, verdict=None)
    change_case(answers / "Ana.json", 2, realism=None, seconds=0)
    key = made[0].with_name("study.key.json")
    results, page = score(answers, key, tmp_path / "score", incomplete="leave_out")
    assert results["absent"] == ["Zoë"] and results["readers"]["Ben"]["submitted"] is None
    assert results["readers"]["Ana"]["accuracy"]["total"] == 5 and results["readers"]["Ana"]["cases_left_out"] == 1
    assert results["readers"]["Ana"]["scores_left_out"] == 1
    counts = results["questions"]["realism"]
    assert sum(counts["real"]["counts"] + counts["generated"]["counts"]) == 11
    assert results["agreement"]["num_cases"] == 5
    for words in (
        "Zoë gave no answers",
        "Ben has not submitted",
        "Ana: left out are 1 of 6 cases, without a verdict or confidence, and 1 of 18 scores",
    ):
        assert any(words in note for note in results["notes"]) and words in page


def test_a_single_reader_is_scored(folder, tmp_path):
    place, key = make_study(folder, "single", readers="Ana", num_cases=2)
    answers = write_answers(tmp_path / "answers", key, lambda _, index, synthetic, case: answer(case, synthetic))
    results, page = score(answers, folder / "single.key.json", tmp_path / "score")
    assert results["readers"]["Ana"]["auc"]["value"] == 1 and "the bootstrap sees no spread" in page
    assert results["agreement"]["pairs"] == [] and any("one reader" in note.lower() for note in results["notes"])


# pictures


@pytest.mark.parametrize("plane", ["axial", "coronal", "sagittal"])
def test_a_mark_is_drawn_where_the_voxel_is(plane):
    volume, spacing = np.full((20, 24, 28), -1000, np.int16), (2.0, 3.0, 4.0)
    volume[5, 17, 21] = 1000
    picture, (across, down) = slice_picture(volume, spacing, plane, (5, 17, 21), (-1000, 1000), 300)
    brightest = np.unravel_index(np.asarray(picture).argmax(), picture.size[::-1])
    assert abs(brightest[1] + 0.5 - across) < 8 and abs(brightest[0] + 0.5 - down) < 8


def test_marked_slices_are_turned_as_the_reports_pictures(chest):
    """The patient's right on the left, anterior on top or left."""
    preview = np.asarray(preview_picture([chest], [320.0] * 3, 64, [(-1350.0, 150.0)]))
    for number, plane in enumerate(("axial", "coronal", "sagittal")):
        picture, _ = slice_picture(chest, [10.0] * 3, plane, (16, 16, 16), (-1350.0, 150.0), 64)
        assert np.array_equal(np.asarray(picture), preview[:64, 66 * number : 66 * number + 64])
