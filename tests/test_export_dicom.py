"""Generated and other volumes to DICOM as a user asks for it, and what no file may say of a patient."""

import gzip
import json

import nibabel as nib
import numpy as np
import pydicom
import pytest
from bundle_runs import assert_refused, run, sample
from dicom_series import as_dicom, only, series_in, write_series

from scripts.data.dicom import read_series
from scripts.data.ingest.sources import find_sources
from scripts.output import VolumeStore
from scripts.output.generated import MARK, GeneratedVolume

AFFINE = np.diag([10.0, 10.0, 10.0, 1.0])
PROVENANCE = {"solver": "euler", "num_inference_steps": 20, "weights_sha256": "ab" * 32, "intensity": "HU"}


def header(folder):
    return pydicom.dcmread(folder / "0001.dcm")


def read(folder):
    """HU (X, Y, Z), RAS, of an axial series."""
    return read_series(only(series_in(sorted(folder.iterdir())))).transpose(2, 1, 0)[::-1, ::-1]


def export(source, folder, **settings):
    run("run", ["export_dicom"], source_dir=source, output_dir=folder, **settings)


@pytest.fixture
def generated(tmp_path, chest):
    """Saves a volume of a seed; returns the store's folder."""

    def save(seed=7, folder="generated", volume=chest, writers=("nifti",), **provenance):
        store = VolumeStore(str(tmp_path / folder), {**PROVENANCE, **provenance}, writers=writers)
        store.missing([{"seed": seed}])
        store.save(seed, volume, AFFINE)
        store.finish()
        return tmp_path / folder

    return save


# --dicom True


def test_dicom_is_asked_for_later_and_nothing_is_sampled_again(trained, tmp_path, capsys):
    settings = {"ckpt_path": trained / "ckpt" / "model.pt", "num_inference_steps": 2, "output_dir": tmp_path / "out"}
    sample(num_samples=2, **settings)
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("seed_*")}
    capsys.readouterr()
    sample(num_samples=2, dicom=True, **settings)
    said = capsys.readouterr().out
    assert "2 of 2 volumes are in" in said and "was made of 2 volumes that were there" in said
    assert {path: path.stat().st_mtime_ns for path in times} == times
    series = [tmp_path / "out" / f"seed_{seed:06d}_dicom" for seed in range(2)]
    assert len({header(one).SeriesInstanceUID for one in series}) == 2
    weights = json.loads((trained / "ckpt" / "model.json").read_text())["sha256"]
    assert all(f"of sha256 {weights}" in header(one).DerivationDescription for one in series)
    for seed, folder in enumerate(series):
        assert np.array_equal(read(folder), nib.load(tmp_path / "out" / f"seed_{seed:06d}.nii.gz").get_fdata())
    # a series that lost a slice is written again, the same; the other one stays
    whole = {path: path.read_bytes() for path in series[0].iterdir()}
    before = series[1].stat().st_mtime_ns
    (series[0] / "0009.dcm").unlink()
    sample(num_samples=2, dicom=True, **settings)
    assert {path: path.read_bytes() for path in series[0].iterdir()} == whole
    assert series[1].stat().st_mtime_ns == before


def test_a_folder_in_the_way_is_told_before_anything_is_sampled(trained, tmp_path):
    settings = {"ckpt_path": trained / "ckpt" / "model.pt", "num_inference_steps": 1, "output_dir": tmp_path / "out"}
    mine = tmp_path / "out" / "seed_000001_dicom" / "mine.txt"
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    for overwrite in (False, True):
        with assert_refused("seed_000001_dicom was not made by this bundle"):
            sample(num_samples=2, dicom=True, overwrite=overwrite, **settings)
    assert mine.read_text() == "mine" and not list((tmp_path / "out").glob("*.nii.gz"))


def test_the_same_volume_has_the_same_uids_and_another_one_others(generated, chest):
    def uid(**settings):
        folder = generated(writers=["nifti", "dicom"], **settings)
        return header(next(folder.glob("*_dicom"))).SeriesInstanceUID

    first = uid(folder="a")
    assert uid(folder="b") == first
    others = [uid(folder="c", seed=8), uid(folder="d", weights_sha256="cd" * 32), uid(folder="e", solver="heun")]
    others += [uid(folder="f", volume=chest + 1)]
    assert len({first, *others}) == 5


def test_a_series_that_breaks_off_leaves_nothing(generated, monkeypatch, tmp_path):
    def full(self, path, **_):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(pydicom.Dataset, "save_as", full)
    with pytest.raises(OSError, match="No space"):
        generated(writers=["nifti", "dicom"])
    folder = tmp_path / "generated"
    assert sorted(path.name for path in folder.iterdir() if path.name != ".prdit.lock") == [
        "seed_000007.json",
        "seed_000007.nii.gz",
    ]


def test_scaled_volumes_are_no_dicom(tmp_path):
    with assert_refused("dicom needs volumes in HU"):
        VolumeStore(str(tmp_path / "a"), {**PROVENANCE, "intensity": "paper_compat"}, writers=["nifti", "dicom"])
    assert not list(tmp_path.iterdir())


def test_no_run_takes_more_disk_than_its_plan_says(generated, chest):
    """Noise can be compressed least."""
    noise = np.random.default_rng(0).integers(-1000, 1000, chest.shape).astype(np.float32)
    writers = ["nifti", "preview", "view", "dicom"]
    folder = generated(volume=noise, writers=writers)
    taken = sum(path.stat().st_size for path in folder.rglob("*"))
    plans = []
    for names in (writers, ["nifti", "preview", "dicom"]):
        store = VolumeStore(str(folder), PROVENANCE, writers=names, dry_run=True)
        store.missing([{"seed": 7}])
        plans.append(store.most_bytes(noise.size))
    assert taken <= plans[0] and plans[0] - plans[1] >= (folder / "view" / "000.js").stat().st_size


# export_dicom.yaml


def test_generated_volumes_say_so_themselves(generated, tmp_path, capsys):
    """The series is that of --dicom True."""
    folder = generated(writers=["nifti", "dicom"])
    export(folder, tmp_path / "dicom")
    one, other = (tmp_path / name / "seed_000007_dicom" for name in ("generated", "dicom"))
    for path in one.iterdir():
        assert path.read_bytes() == (other / path.name).read_bytes()
    assert header(other).SyntheticData == "YES"
    capsys.readouterr()
    export(folder, tmp_path / "dicom", synthetic=True)
    assert "0 series written" in capsys.readouterr().out


def test_nobody_guesses_whether_a_patient_was_scanned(generated, chest, write_nifti, tmp_path):
    real = write_nifti(np.rint(chest), AFFINE, "real/a.nii.gz", np.int16)
    for synthetic, fact in ((True, "YES"), (False, "NO")):
        export(real, tmp_path / fact, synthetic=synthetic)
        assert header(tmp_path / fact / "a_dicom").SyntheticData == fact
        assert np.array_equal(read(tmp_path / fact / "a_dicom"), np.rint(chest))
    scan = header(tmp_path / "NO" / "a_dicom")
    assert scan.Manufacturer == "" and "PatientComments" not in scan and scan.PatientID.startswith("CT-")
    assert "no patient" not in str(scan) and "Synthetic^" not in str(scan)
    with assert_refused("is it generated, or was somebody scanned?", real):
        export(real, tmp_path / "unknown")
    made = generated() / "seed_000007.nii.gz"
    with assert_refused("is generated, as its JSON says"):
        export(made, tmp_path / "unknown", synthetic=False)
    (made.parent / "seed_000007.json").unlink()
    for synthetic in (None, False):
        with assert_refused("says that it is generated", "--synthetic True"):
            export(made, tmp_path / "unknown", synthetic=synthetic)
    # one file that nobody knows stops all, before anything is written
    generated(seed=8)
    with assert_refused("--synthetic True"):
        export(made.parent, tmp_path / "unknown")
    assert not list(tmp_path.glob("unknown/*_dicom"))


def test_a_json_of_another_volume_says_nothing(generated, chest, tmp_path):
    folder = generated()
    nib.save(nib.Nifti1Image(np.rint(chest).astype(np.int16), AFFINE), folder / "seed_000007.nii.gz")
    assert not GeneratedVolume(folder / "seed_000007.nii.gz").is_certain()
    with assert_refused("is it generated"):
        export(folder, tmp_path / "dicom")


@pytest.mark.parametrize(
    ("change", "fact"),
    [
        (lambda volume: volume / 2000 + 0.5, "not a chest CT in HU"),
        (lambda volume: (volume > 0) * 3.0, "labels"),
        (lambda volume: volume * np.where(volume == volume.max(), np.nan, 1), "not numbers"),
    ],
)
def test_what_is_no_hu_is_refused(chest, write_nifti, tmp_path, change, fact):
    path = write_nifti(change(chest), AFFINE)
    with assert_refused("ct.nii.gz cannot become DICOM", fact):
        export(path, tmp_path / "dicom", synthetic=True)


def test_bad_places_and_names(chest, write_nifti, tmp_path):
    path = write_nifti(np.rint(chest), AFFINE, "in/a.nii.gz", np.int16)
    with assert_refused("source_dir must be a file or folder that exists", "nowhere"):
        export("nowhere", tmp_path / "dicom")
    with assert_refused("lies in source_dir"):
        export(path.parent, path.parent / "dicom", synthetic=True)
    with assert_refused("body_part must be a term of DICOM in capitals"):
        export(path, tmp_path / "dicom", synthetic=True, body_part="left lung")
    (tmp_path / "in" / "b.txt").write_text("")
    with assert_refused("is no NIfTI file"):
        export(tmp_path / "in" / "b.txt", tmp_path / "dicom")
    for name, content in (("text.nii.gz", b"no CT"), ("whole.nii.gz", gzip.compress(b"no CT")), ("text.nii", b"no CT")):
        (tmp_path / name).write_bytes(content)
        with assert_refused(f"{name} cannot become DICOM: cannot be read"):  # before anybody is asked what it is
            export(tmp_path / name, tmp_path / "dicom")
    export(path, tmp_path / "dicom", synthetic=True)
    with assert_refused("is the series of another volume or was written with other settings"):
        export(path, tmp_path / "dicom", synthetic=False)
    assert header(tmp_path / "dicom" / "a_dicom").SyntheticData == "YES"
    export(path, tmp_path / "dicom", synthetic=False, overwrite=True)
    assert header(tmp_path / "dicom" / "a_dicom").SyntheticData == "NO"
    write_nifti(np.rint(chest), AFFINE, "in/a.nii", np.int16)
    with assert_refused("would both become a_dicom"):
        export(path.parent, tmp_path / "more", synthetic=True)


def test_broken_hu_are_rounded_and_folders_keep_their_order(chest, write_nifti, tmp_path):
    write_nifti(chest + 0.3, AFFINE, "in/one/a.nii.gz")
    write_nifti(np.rint(chest), AFFINE, "in/two/a.nii", np.int16)
    export(tmp_path / "in", tmp_path / "dicom", synthetic=True, body_part="ABDOMEN")
    assert np.array_equal(read(tmp_path / "dicom" / "one" / "a_dicom"), np.rint(chest + np.float32(0.3)))
    assert header(tmp_path / "dicom" / "two" / "a_dicom").BodyPartExamined == "ABDOMEN"


# the way back, and patients


def test_preprocess_takes_the_series_and_gives_the_same_volume(generated, prepare):
    """It says that the images are derived."""
    folder = generated(writers=["nifti", "dicom"])
    status, data, (record,) = prepare(folder / "seed_000007_dicom")
    assert status == 0 and record["status"] == "accepted"
    assert "ImageType says DERIVED: reformatted or processed images?" in record["warnings"]
    prepared = nib.load(data / "volumes" / f"{record['volume']}.nii.gz")
    assert np.array_equal(prepared.get_fdata(), nib.load(folder / "seed_000007.nii.gz").get_fdata())
    assert np.allclose(prepared.affine, AFFINE, atol=1e-3)


def test_a_folder_with_both_holds_each_volume_once(generated):
    folder = generated(writers=["nifti", "dicom"])
    (source,) = find_sources(folder).sources
    assert source.path.endswith("seed_000007.nii.gz")


def test_a_prepared_volume_and_its_dicom_keep_no_link_to_the_patient(chest, prepare, tmp_path):
    """None of the source's UIDs, names, numbers and dates is in any file, not even compressed or as part of another."""
    secret = {
        "PatientName": "Miller^Zebulon", "PatientID": "MRN-7730194", "PatientBirthDate": "19510307",
        "AccessionNumber": "ACC551782", "StudyDate": "20190523", "AcquisitionTime": "141507.25",
        "ReferringPhysicianName": "Quincy^Adams", "InstitutionName": "Saint Elsewhere", "StudyID": "ST48151",
        "SeriesDescription": "THORAX_SPECIAL", "DeviceSerialNumber": "SN108342",
        "FrameOfReferenceUID": "1.2.840.99999.5551234",
    }  # fmt: skip
    paths = write_series(
        tmp_path / "Miller_Zebulon",
        as_dicom(np.rint(chest)),
        "scan",
        (-155, -155, -155),
        spacing=(10, 10),
        step=(0, 0, 10),
        **secret,
    )
    scan = pydicom.dcmread(paths[0])
    secret |= {name: str(scan[name].value) for name in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")}
    secret |= {"a file": "scan_0", "the folder": "Miller", "a name": "Zebulon"}
    status, data, (record,) = prepare(tmp_path / "Miller_Zebulon")
    assert status == 0
    export(data, tmp_path / "dicom", synthetic=False)
    files = [path for folder in (data, tmp_path / "dicom") for path in folder.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} >= {".dcm", ".gz", ".json", ".html", ".csv"}
    for path in files:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        found = [name for name, value in secret.items() if value.encode() in content or value in str(path)]
        assert found == [], path
    (folder,) = (tmp_path / "dicom" / "volumes").iterdir()
    assert header(folder).SyntheticData == "NO" and MARK not in str(header(folder))
    prepared = nib.load(data / "volumes" / f"{record['volume']}.nii.gz").get_fdata()
    assert np.array_equal(read(folder), prepared)
