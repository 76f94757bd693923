"""Runs of the ingest: repeated, broken off, shared by processes, and against dcm2niix."""

import json
import shutil
import signal
import subprocess
import sys
import time

import nibabel as nib
import numpy as np
import pytest
from dicom_series import rewrite
from ingest import BUNDLE, REAL_CT, volumes_of, write_chest

from scripts.data import LoadCTd, ct_datalist, intensity_of
from scripts.data.ingest.sources import find_sources

# running


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def source_state(folder):
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.rglob("*") if path.is_file()}


def test_second_run_changes_nothing_and_sources_stay(prepare, tmp_path, chest):
    for number in range(2):
        write_chest(tmp_path / "in" / str(number), chest, str(number))
    write_chest(tmp_path / "in" / "bad", chest, "bad", left_out=(4,))
    before = source_state(tmp_path / "in")
    _, folder, _ = prepare(tmp_path / "in")
    first = contents(folder)
    times = {path: path.stat().st_mtime_ns for path in (folder / "volumes").iterdir()}
    prepare(tmp_path / "in")
    assert contents(folder) == first and source_state(tmp_path / "in") == before
    assert {path: path.stat().st_mtime_ns for path in (folder / "volumes").iterdir()} == times


def test_changed_source_is_made_again(prepare, tmp_path, chest):
    paths = write_chest(tmp_path / "in", chest)
    _, folder, _ = prepare(tmp_path / "in")
    first = contents(folder)
    for path in paths:
        rewrite(path, lambda item: setattr(item, "RescaleIntercept", -1000))
    prepare(tmp_path / "in")
    assert contents(folder) != first


def test_dry_run_writes_nothing(prepare, tmp_path, chest, capsys):
    write_chest(tmp_path / "in" / "a", chest, "a")
    write_chest(tmp_path / "in" / "b", chest, "b", left_out=(7,))
    before = sorted(tmp_path.rglob("*"))
    status, _, _ = prepare(tmp_path / "in", dry_run=True)
    said = capsys.readouterr().out
    assert status == 0 and sorted(tmp_path.rglob("*")) == before
    assert "32 slices of 32 x 32, 10.00 mm apart: take" in said and "1 slice is missing" in said
    assert "1 to take, 1 to reject" in said


def test_paper_compat_is_scaled_and_marked(prepare, tmp_path, chest):
    write_chest(tmp_path / "in", np.rint(chest))
    _, folder, _ = prepare(tmp_path / "in", paper_compat=True)
    (path,) = volumes_of(folder).values()
    image, hu = nib.load(path), np.rint(chest)
    high = np.quantile(hu, 0.999)
    np.testing.assert_allclose(image.get_fdata(), (np.clip(hu, -1000, high) + 1000) / (high + 1000), atol=2e-3)
    assert [image.header["cal_min"], image.header["cal_max"]] == [0, 1]
    assert json.loads((folder / "dataset.json").read_text())["intensity"] == "paper_compat"
    assert "not HU" in bytes(image.header["descrip"]).decode() and "not HU" in (folder / "report.html").read_text()
    datalist = ct_datalist(folder)
    loaded = LoadCTd("image", 32, 320.0)(datalist["training"][0])["image"]
    np.testing.assert_allclose((loaded[0].numpy() + 1000) / 2000, image.get_fdata(), atol=1e-4)
    assert intensity_of(datalist) == "paper_compat"


def run_command(tmp_path, folder, *more, wait=True):
    command = [sys.executable, "-W", "ignore", "-m", "monai.bundle", "run", "--config_file", str(BUNDLE / "configs" / "preprocess.yaml"),
               "--source_dir", str(tmp_path / "in"), "--dataset_dir", str(folder), "--spacing", "10", "--size", "32",
               "--center", "volume", "--salt_file", str(tmp_path / "salt"), *more]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path)
    return process.communicate() + (process.returncode,) if wait else process


def test_command_continues_after_a_kill(prepare, tmp_path, chest):
    """kill -9 in the middle, run again: the same bytes as a run without a break, and exit status 2 for the reject."""
    for number in range(6):
        write_chest(tmp_path / "in" / str(number), chest, str(number), left_out=(4,) * (number == 3))
    broken = tmp_path / "broken"
    process = run_command(tmp_path, broken, "--num_workers", "1", wait=False)
    deadline = time.monotonic() + 120
    while len(list(broken.glob("records/*.json"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (broken / "dataset.json").exists()
    time.sleep(0.5)  # its worker notices
    out, err, status = run_command(tmp_path, broken, "--num_workers", "2")
    assert status == 2 and "Traceback" not in err, err
    assert "5 volumes of 1 patient accepted" in out
    status, whole, _ = prepare(tmp_path / "in", "whole")
    assert status == 2 and contents(broken) == contents(whole)


@pytest.mark.slow
def test_torchrun_makes_the_same_data_set(tmp_path, chest):
    for number in range(5):
        write_chest(tmp_path / "in" / str(number), chest, str(number), PatientID=str(number))
    run_command(tmp_path, tmp_path / "one", "--num_workers", "0")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "monai.bundle",
               "run", "--config_file", str(BUNDLE / "configs" / "preprocess.yaml"), "--source_dir", str(tmp_path / "in"),
               "--dataset_dir", str(tmp_path / "two"), "--spacing", "10", "--size", "32", "--center", "volume",
               "--salt_file", str(tmp_path / "salt"), "--num_workers", "0"]  # fmt: skip
    assert subprocess.run(command, capture_output=True, cwd=tmp_path).returncode == 0
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


# against dcm2niix


@pytest.mark.skipif(shutil.which("dcm2niix") is None, reason="dcm2niix is not installed")
@pytest.mark.parametrize("name", ["phantom", "dicom_j2k", "dicom_philips_mixed/S2010"])
def test_places_and_hu_agree_with_dcm2niix(tmp_path, chest, name):
    series = REAL_CT / name
    if name == "phantom":
        series = tmp_path / "in"
        write_chest(series, np.rint(chest), spacing=(3.0, 2.0), Manufacturer="SIEMENS")
    elif not REAL_CT.is_dir():
        pytest.skip("the folder of real CT is not there")
    command = ["dcm2niix", "-o", tmp_path, "-f", "ct", "-z", "n", "-b", "n", series]
    subprocess.run(command, check=True, capture_output=True)
    theirs = nib.load(tmp_path / "ct.nii")
    (source,) = find_sources(series).sources
    volume = source.read()
    ours = np.asarray(volume[0])
    to_theirs = np.linalg.inv(theirs.affine) @ np.asarray(volume.affine)
    rng = np.random.default_rng(0)
    points = np.stack([rng.integers(0, side, 5000) for side in ours.shape])
    index = to_theirs[:3, :3] @ points + to_theirs[:3, 3:]
    np.testing.assert_allclose(index, np.rint(index), atol=0.02)  # the same voxels
    assert np.array_equal(np.asanyarray(theirs.dataobj)[tuple(np.rint(index).astype(int))], ours[tuple(points)])
