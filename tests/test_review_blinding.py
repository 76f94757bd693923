"""Cheats that were planted in a reader study are found, and an honest study has none."""

import gzip
import json
import os
import shutil

import numpy as np
import pytest
from review_studies import make_study, write_phantoms

from scripts.data import chest_phantom
from scripts.review.blinding import FEATURES, features_of, find_leaks, read_volume_script, telling_features
from scripts.review.cases import Steps
from scripts.review.study import TRIAL
from scripts.review.viewer import write_reader_page, write_volume_script

STEPS = Steps([16] * 3, [20.0] * 3, True, [-1000.0, 1000.0], 0.5)
COUNT = 12  # volumes of each kind: few enough to be quick, enough for p < 0.01 / 10


@pytest.fixture(scope="module")
def honest(tmp_path_factory):
    """A reader's folder and all that its page may know."""
    folder = tmp_path_factory.mktemp("blinding")
    write_phantoms(folder / "real", range(4), side=32)
    write_phantoms(folder / "generated", range(100, 104))
    place, key = make_study(folder, readers=["Ana"])
    text = (place / "Ana" / "index.html").read_text()
    start = text.index('{"study"')
    page = json.JSONDecoder().raw_decode(text[start:].replace("\\u003c", "<"))[0]
    return place / "Ana", page


@pytest.fixture
def study(honest, tmp_path):
    shutil.copytree(honest[0], tmp_path / "Ana")
    return tmp_path / "Ana", json.loads(json.dumps(honest[1]))


def rewrite(folder, case, change_header=lambda header: None, change=lambda volume: volume):
    """Writes a case again with another header or volume, as large and as old as it was."""
    path = folder / "cases" / f"{case}.js"
    status = path.stat()
    volume, header = read_volume_script(path)
    write_volume_script(path, change(volume), header["spacing"], header["name"])
    old = json.dumps(header)
    change_header(header)
    content = path.read_bytes().replace(old.encode(), json.dumps(header).encode())
    path.write_bytes(content + b"//" + b"A" * (status.st_size - len(content) - 3) + b"\n")
    for place in (path, path.parent):
        os.utime(place, ns=(status.st_mtime_ns, status.st_mtime_ns))


def edit(path, old, new):
    status = path.stat()
    content = path.read_bytes()
    assert old in content
    path.write_bytes(content.replace(old, new))
    os.utime(path, ns=(status.st_mtime_ns, status.st_mtime_ns))


def in_page(folder, page, change):
    change(page)
    status = folder.stat()
    write_reader_page(folder, page)
    for place in (folder / "index.html", folder):
        os.utime(place, ns=(status.st_mtime_ns, status.st_mtime_ns))


CHEATS = {
    "size": (lambda f, p: edit(f / "cases/case_002.js", b"\n", b"\n\n"), "case_002: the size of its file"),
    "time": (lambda f, p: os.utime(f / "cases/case_003.js", (1e9, 1e9)), "case_003.js: the time of its file"),
    "time of a folder": (lambda f, p: os.utime(f / "cases", (1e9, 1e9)), "cases: the time of its file"),
    "rights": (lambda f, p: os.chmod(f / "cases/case_003.js", 0o600), "case_003: the rights of its file"),
    "one more file": (lambda f, p: (f / "cases/.DS_Store").write_text(""), "too many or missing: cases/.DS_Store"),
    "a missing file": (lambda f, p: (f / "cases/case_001.js").unlink(), "too many or missing: cases/case_001.js"),
    "a field of the volume": (lambda f, p: rewrite(f, "case_004", lambda h: h.update(model="PRDiT")), "case_004: the text"),
    "spacing": (lambda f, p: rewrite(f, "case_004", lambda h: h.update(spacing=[20, 20, 21])), "case_004: the text"),
    "another grid": (lambda f, p: rewrite(f, "case_004", change=lambda v: v[1:]), "case_004: the text around its voxels"),
    "a name": (lambda f, p: rewrite(f, "case_004", lambda h: h.update(name="seed_000004")), "has another name in it"),
    "an empty case": (lambda f, p: rewrite(f, "case_004", change=np.zeros_like), "case_004: it is empty"),
    "a remark": (lambda f, p: edit(f / "cases/case_005.js", b"by PRDiT", b"by GAN00"), "case_005: the text around"),
    "a field of the page": (
        lambda f, p: in_page(f, p, lambda page: page["cases"][1].update(set="generated")),
        "case_002: its entry in the page has other fields",
    ),
    "a path": (
        lambda f, p: in_page(f, p, lambda page: page["cases"][1].update(script="cases/./case_002.js")),
        "case_002: the name of its file",
    ),
    "text of the page": (lambda f, p: edit(f / "index.html", b"<body", b"<body data-real='1,3'"), "index.html says"),
    "hidden text": (lambda f, p: edit(f / "index.html", b"</body>", b"<!-- 2 --></body>"), "index.html says"),
}  # fmt: skip


def test_an_honest_study_has_no_leak(study):
    assert find_leaks(*study) == []
    rewrite(study[0], "case_004")  # the tool of the tests below changes nothing by itself
    assert find_leaks(*study) == []


@pytest.mark.parametrize("name", CHEATS)
def test_a_planted_cheat_is_found(name, study):
    cheat, words = CHEATS[name]
    cheat(*study)
    assert any(words in leak for leak in find_leaks(*study)), find_leaks(*study)


def test_files_are_alike_when_they_are_zipped(honest):
    """A folder is sent as a zip, which shows the compressed sizes."""
    sizes = [len(gzip.compress(path.read_bytes())) for path in (honest[0] / "cases").iterdir()]
    raw = [len(gzip.compress(read_volume_script(path)[0].tobytes())) for path in (honest[0] / "cases").iterdir()]
    assert max(sizes) - min(sizes) < 0.01 * min(sizes) < max(raw) - min(raw)


def test_a_damaged_case_is_one_line(study, one_line):
    (study[0] / "cases" / f"{TRIAL}.js").write_text("prditVolume(")
    with pytest.raises(ValueError) as raised:
        read_volume_script(study[0] / "cases" / f"{TRIAL}.js")
    one_line(raised, TRIAL, "damaged")


# numbers that need no anatomy


@pytest.fixture(scope="module")
def alike(tmp_path_factory):
    """Real and generated volumes of one distribution, in files that differ: voxels of 10 and 20 mm, clipped or not."""
    folder = tmp_path_factory.mktemp("alike")
    write_phantoms(folder / "real", range(COUNT), side=32)
    write_phantoms(folder / "generated", range(100, 100 + COUNT), change=lambda hu: hu.clip(-1000, 1000))
    paths = [str(path) for name in ("real", "generated") for path in sorted((folder / name).iterdir())]
    return [STEPS({"image": path}) for path in paths]


SYNTHETIC = [False] * COUNT + [True] * COUNT


def told(volumes):
    return [found["feature"] for found in telling_features([features_of(volume) for volume in volumes], SYNTHETIC)]


def test_no_number_sorts_volumes_of_one_distribution(alike):
    assert told(alike) == []


def test_the_same_volume_in_two_files_is_the_same_case(tmp_path):
    """Averaging before or after writing, and clipping before or after, make no difference but that of rounding."""
    write_phantoms(tmp_path / "fine", [7], side=32)
    write_phantoms(tmp_path / "coarse", [7], side=16, change=lambda hu: hu.clip(-1000, 1000))
    cases = [STEPS({"image": str(next((tmp_path / name).iterdir()))}) for name in ("fine", "coarse")]
    assert np.abs(cases[0].astype(int) - cases[1]).max() <= 1


def planted(volumes, harm):
    return volumes[:COUNT] + [harm(volume.copy()) for volume in volumes[COUNT:]]


def padded(volume):
    volume[:, :, :2] = -1000
    return volume


def cornered(volume):
    volume[0, 0, 0] += 50
    return volume


NOISE = np.random.default_rng(0).normal(0, 15, [16] * 3).round().astype(np.int16)
LEAKS = {
    "smallest value": lambda volume: volume.clip(min=-990),
    "largest value": lambda volume: volume.clip(max=150),
    "share of voxels at the smallest value": lambda volume: np.where(volume < -950, -1000, volume),
    "value at the corners": cornered,
    "empty slices at the ends": padded,
    "share of odd values": lambda volume: volume // 2 * 2,
    "compressibility": lambda volume: volume // 16 * 16,
    "noise in soft tissue": lambda volume: np.where(volume > -300, volume + 4 * NOISE, volume),
}


@pytest.mark.parametrize("feature", LEAKS)
def test_a_planted_number_is_found(feature, alike):
    found = told(planted(alike, LEAKS[feature]))
    assert feature in found
    assert FEATURES[feature][1]


def test_files_as_they_are_would_be_told_apart():
    """What the steps are for: real volumes that are not clipped, with a table, beside generated ones."""
    real = [chest_phantom(seed, [16] * 3, [320.0] * 3) - 24 for seed in range(COUNT)]
    generated = [chest_phantom(100 + seed, [16] * 3, [320.0] * 3).clip(-1000, 1000) for seed in range(COUNT)]
    assert "smallest value" in told([volume.astype(np.int16) for volume in real + generated])


def test_few_cases_prove_nothing():
    features = [{"x": float(index)} for index in range(4)]
    assert telling_features(features, [False, False, True, True]) == []


def test_a_note_names_what_tells(tmp_path, capsys):
    """The organiser learns of a generator that never reaches the blackest black; the readers do not."""
    write_phantoms(tmp_path / "real", range(8), side=16)
    write_phantoms(tmp_path / "generated", range(100, 108), change=lambda hu: hu.clip(-900, 1000))
    _, key = make_study(tmp_path, num_cases=8, trial_case=False, readers=1, remove_table=False, hu_window=[-1000, 1000])
    assert any("smallest value alone tells real from generated" in note for note in key["notes"])
    assert "smallest value alone" in capsys.readouterr().out
