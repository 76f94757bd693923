"""inference.yaml as a user runs it, from another folder, on tiny weights."""

import json

import itk
import nibabel as nib
import numpy as np
import pytest
import yaml
from bundle_runs import CONFIGS, assert_refused, run, run_process, sample

from scripts.output import Writer


def test_samples_are_ct_in_hu_with_geometry(trained, tmp_path):
    settings = {"ckpt_path": trained / "ckpt" / "model.pt", "num_inference_steps": 4, "seed": 5, "bf16": False}
    settings["predictor_ratio"] = 2.0
    sample(num_samples=4, batch_size=4, output_dir=tmp_path / "four", **settings)
    assert (tmp_path / "four" / "preview.png").is_file()
    image = nib.load(tmp_path / "four" / "seed_000005.nii.gz")
    hu = np.asanyarray(image.dataobj)
    assert hu.dtype == np.int16 and hu.shape == (16, 16, 16) and -1000 <= hu.min() < hu.max() <= 1000
    assert nib.aff2axcodes(image.affine) == ("R", "A", "S")
    assert np.allclose(image.header.get_zooms(), 20) and image.header.get_xyzt_units()[0] == "mm"
    assert image.header["sform_code"] > 0 and image.header["qform_code"] > 0
    assert np.allclose(image.get_sform(), image.get_qform(), atol=1e-4)
    # ITK sees the same voxels at the same place, in its own orientation LPS
    other = itk.imread(str(tmp_path / "four" / "seed_000005.nii.gz"))
    assert np.array_equal(itk.array_from_image(other).transpose(2, 1, 0), hu)
    assert np.allclose(np.array(other.GetOrigin()) * [-1, -1, 1], image.affine[:3, 3], atol=1e-3)
    sidecar = json.loads((tmp_path / "four" / "seed_000005.json").read_text())
    weights = json.loads((trained / "ckpt" / "model.json").read_text())["sha256"]
    sidecars = [json.loads(path.read_text()) for path in sorted((tmp_path / "four").glob("seed_*.json"))]
    assert [one["seed"] for one in sidecars if one["synthetic"] is True] == [5, 6, 7, 8]
    assert [image.header["cal_min"], image.header["cal_max"]] == [-1000, 400]
    assert b"synthetic" in bytes(image.header["descrip"])
    assert sidecar["seed"] == 5 and sidecar["weights_sha256"] == weights and sidecar["num_inference_steps"] == 4
    # the same seed in a batch of one is the same volume
    sample(num_samples=1, batch_size=1, output_dir=tmp_path / "one", **settings)
    alone = np.asanyarray(nib.load(tmp_path / "one" / "seed_000005.nii.gz").dataobj)
    assert np.abs(alone.astype(int) - hu).max() <= 1


def test_a_broken_sampling_run_continues_and_never_overwrites(trained, tmp_path, capsys):
    settings = {"ckpt_path": trained / "ckpt" / "model.pt", "num_inference_steps": 2, "output_dir": tmp_path / "out"}
    sample(num_samples=2, **settings)
    first = tmp_path / "out" / "seed_000000.nii.gz"
    before = first.stat().st_mtime_ns
    (tmp_path / "out" / "seed_000001.json").unlink()  # as if the run had been killed before it was done
    capsys.readouterr()
    sample(num_samples=3, **settings)
    assert "2 of 3 volumes written" in capsys.readouterr().out
    assert first.stat().st_mtime_ns == before and (tmp_path / "out" / "seed_000002.json").is_file()
    sample(num_samples=3, **settings)
    assert "3 of 3 volumes are in" in capsys.readouterr().out
    with assert_refused("num_inference_steps"):
        sample(num_samples=3, **{**settings, "num_inference_steps": 3})
    assert first.stat().st_mtime_ns == before
    sample(num_samples=1, **{**settings, "num_inference_steps": 3}, overwrite=True)
    assert first.stat().st_mtime_ns > before


@pytest.mark.parametrize(
    ("count", "facts"), [(1, ["1 volume is in", "makes it"]), (2, ["2 volumes are in", "makes them"])]
)
def test_volumes_that_are_there_are_told_and_nothing_else(count, facts, trained, tmp_path, capsys):
    settings = {"ckpt_path": trained / "ckpt" / "model.pt", "output_dir": tmp_path / "out", "num_inference_steps": 2}
    sample(**settings, num_samples=count)
    capsys.readouterr()
    sample(**settings, num_samples=count)
    out = capsys.readouterr().out
    assert all(fact in out.splitlines()[-1] for fact in facts)
    assert "empty" not in out  # what Ignite says of a loader without items


def test_a_folder_is_not_continued_in_another_precision_or_on_another_kind_of_device(trained, tmp_path):
    settings = {"ckpt_path": trained / "ckpt" / "model.pt", "num_inference_steps": 2, "output_dir": tmp_path / "out"}
    sample(num_samples=1, **settings, bf16=False)
    sidecar = tmp_path / "out" / "seed_000000.json"
    content = json.loads(sidecar.read_text())
    assert (content["precision"], content["device"]) == ("float32", "cpu")
    metadata = json.loads((CONFIGS / "metadata.json").read_text())
    assert content["versions"]["bundle"] == metadata["version"]
    with assert_refused("precision float32, now it is bf16", "--overwrite True"):
        sample(num_samples=2, **settings, bf16=True)
    sidecar.write_text(json.dumps({**content, "device": "cuda"}))
    with assert_refused("device cuda, now it is cpu"):
        sample(num_samples=2, **settings, bf16=False)


def test_a_picture_that_is_not_ours_stays(trained, tmp_path, capsys):
    settings = {"ckpt_path": trained / "ckpt" / "model.pt", "num_inference_steps": 2, "output_dir": tmp_path}
    picture = tmp_path / "preview.png"
    picture.write_bytes(b"somebody's")
    sample(num_samples=1, **settings)
    assert picture.read_bytes() == b"somebody's" and "preview.png was not made" in capsys.readouterr().out
    sample(num_samples=1, **settings, overwrite=True)
    first = picture.read_bytes()
    assert first[1:4] == b"PNG"
    sample(num_samples=2, **settings)
    assert picture.read_bytes() != first


@pytest.mark.parametrize("name", ["preview.png", "view.html", "seed_000001.json"])
def test_a_folder_in_the_way_of_a_file_is_told_before_anything_is_sampled(name, trained, tmp_path):
    (tmp_path / name).mkdir()
    with assert_refused(tmp_path / name, "is a folder", "output_dir"):
        sample(ckpt_path=trained / "ckpt" / "model.pt", output_dir=tmp_path, num_samples=2, num_inference_steps=2)
    assert not list(tmp_path.glob("seed_*.nii.gz"))


@pytest.mark.parametrize("kind", ["another volume", "no volume", "another JSON"])
def test_files_that_are_not_ours_are_not_overwritten(kind, trained, tmp_path):
    settings = {"ckpt_path": trained / "ckpt" / "model.pt", "num_inference_steps": 2, "output_dir": tmp_path}
    foreign = tmp_path / ("seed_000000.json" if kind == "another JSON" else "seed_000000.nii.gz")
    if kind == "another volume":
        nib.save(nib.Nifti1Image(np.zeros((4, 4, 4), np.int16), np.eye(4)), foreign)
    else:
        foreign.write_text('["of somebody else"]')
    content = foreign.read_bytes()
    with assert_refused(f"{foreign} was not made by this bundle"):
        sample(num_samples=1, **settings)
    assert foreign.read_bytes() == content
    sample(num_samples=1, **settings, overwrite=True)
    assert foreign.read_bytes() != content


@pytest.mark.parametrize(
    ("settings", "fact"),
    [
        ({"num_inference_steps": 0}, "num_inference_steps must be a whole number from 1 to 1000"),
        ({"num_inference_steps": 1001}, "num_inference_steps must be a whole number from 1 to 1000"),
        ({"predictor_ratio": 0.5}, "predictor_ratio must be a number at least 1"),
        ({"solver": "plms"}, "solver must be one of"),
        ({"spacing": "karras"}, "spacing must be one of"),
        ({"eta": 2}, "eta must be a number at least 0"),
        ({"eta": 0.5, "predictor_ratio": 2}, "predictor_ratio or eta, not both"),
        ({"solver": "heun", "num_inference_steps": 5}, "must be a multiple of 2"),
        ({"prediction": "velocity"}, "prediction must be one of noise, or null"),
        ({"guidance": -1}, "guidance must be a number at least 0"),
        ({"guidance": 0.5, "guidance_block": 2}, "guidance_block must be 0 to 1"),
        ({"process_name": "flow_matching"}, "trained with the process cosine_sine"),
        ({"batch_size": 0}, "batch_size must be a whole number from 1"),
        ({"chunk_tokens": -1}, "chunk_tokens must be a whole number from 0"),
        ({"memory_gb": 0}, "memory_gb must be a number more than 0"),
        ({"memory_gb": 8, "grid": 4096}, "choose a smaller grid"),
        ({"num_samples": 0}, "num_samples must be a whole number from 1"),
        ({"grid": [15, 16, 16]}, "grid must be three multiples"),
        ({"output_dir": "/proc/nowhere"}, "output_dir /proc/nowhere is not writable"),
        ({"ckpt_path": "nothing.pt"}, "ckpt_path must be a file that exists and ends in .pt, got 'nothing.pt'"),
    ],
)
def test_bad_settings_of_sampling(trained, tmp_path, settings, fact):
    given = {"ckpt_path": trained / "ckpt" / "model.pt", "output_dir": tmp_path / "out", "num_inference_steps": 2}
    with assert_refused(fact):
        sample(**{**given, **settings})


def test_every_solver_samples_and_says_so(trained, tmp_path):
    """As a user names it; the JSON holds what was used, defaults included."""
    settings = {"ckpt_path": trained / "ckpt" / "model.pt", "num_samples": 1, "num_inference_steps": 4}
    volumes = {}
    for solver, given, used in (
        ("predictor_corrector", {}, (2.0, None)),
        ("euler", {}, (1.0, None)),
        ("heun", {"predictor_ratio": 1.5}, (1.5, None)),
        ("rk4", {}, (1.0, None)),
        ("adams_bashforth", {"spacing": "uniform"}, (1.0, None)),
        ("ddim", {"eta": 1.0}, (None, 1.0)),
        ("multistep", {"prediction": "noise"}, (3.0, None)),
        ("dpm_solver", {}, (1.0, None)),
    ):
        sample(**settings, solver=solver, **given, output_dir=tmp_path / solver)
        sidecar = json.loads((tmp_path / solver / "seed_000000.json").read_text())
        assert (sidecar["solver"], sidecar["predictor_ratio"], sidecar["eta"]) == (solver, *used)
        expected = {"spacing": "two_sided", "prediction": None, **given, "process": "cosine_sine"}
        assert {name: sidecar[name] for name in expected} == expected
        volumes[solver] = np.asanyarray(nib.load(tmp_path / solver / "seed_000000.nii.gz").dataobj)
    assert len({volume.tobytes() for volume in volumes.values()}) == len(volumes)


@pytest.mark.slow
def test_two_processes_sample_what_one_does(trained, tmp_path):
    settings = {"ckpt_path": trained / "ckpt" / "model.pt", "num_inference_steps": 2, "num_samples": 3, "bf16": False}
    settings |= {"device": "$torch.device('cpu')"}
    sample(output_dir=tmp_path / "one", **settings)
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    stack = ["inference", "multi_gpu"]
    # again with one volume to do, which leaves a process without work
    for written in (3, 1):
        process = run_process("run", stack, tmp_path, launcher, output_dir=tmp_path / "two", **settings)
        assert process.returncode == 0, process.stderr
        assert process.stdout.count(f"{written} of 3 volumes written") == 1
        names = sorted(path.name for path in (tmp_path / "one").iterdir())
        assert sorted(path.name for path in (tmp_path / "two").iterdir()) == names
        for seed in range(3):
            one, two = (nib.load(tmp_path / name / f"seed_{seed:06d}.nii.gz") for name in ("one", "two"))
            assert np.array_equal(one.get_fdata(), two.get_fdata()) and np.array_equal(one.affine, two.affine)
            one, two = ((tmp_path / name / f"seed_{seed:06d}.json").read_text() for name in ("one", "two"))
            assert one == two
        (tmp_path / "two" / "seed_000001.json").unlink()


def test_memory_of_the_card_chooses_the_batch(trained, tmp_path):
    """The same volumes, whatever fits."""
    settings = {"ckpt_path": trained / "ckpt" / "model.pt", "num_inference_steps": 2, "num_samples": 2, "bf16": False}
    for name, given in (("alone", {}), ("together", {"memory_gb": 8})):
        sample(output_dir=tmp_path / name, **settings, **given)
    alone, together = (nib.load(tmp_path / name / "seed_000001.nii.gz").get_fdata() for name in ("alone", "together"))
    assert np.abs(alone - together).max() <= 1


def test_weights_of_stage_1_are_sampled_only_where_they_are_wanted(trained, tmp_path):
    settings = {"ckpt_path": trained / "ckpt" / "local.pt", "num_inference_steps": 1, "num_samples": 1}
    with assert_refused("stage 1", "model.pt", "allow_stage_1"):
        sample(**settings, output_dir=tmp_path / "a")
    assert not list(tmp_path.rglob("*.nii.gz"))
    sample(**settings, output_dir=tmp_path / "b", allow_stage_1=True)
    assert len(list(tmp_path.rglob("*.nii.gz"))) == 1


def test_a_grid_that_the_weights_do_not_know_is_told(trained, tmp_path, capsys):
    settings = {"ckpt_path": trained / "ckpt" / "model.pt", "num_inference_steps": 1, "num_samples": 1}
    sample(**settings, output_dir=tmp_path / "a", grid=[16, 16, 16])
    assert "warning" not in capsys.readouterr().err
    sample(**settings, output_dir=tmp_path / "b", grid=[16, 16, 24])
    warnings = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: ")]
    assert len(warnings) == 1 and "[16, 16, 16]" in warnings[0] and "[16, 16, 24]" in warnings[0]


def test_a_folder_of_weights_is_answered_with_what_is_in_it(trained, tmp_path):
    with assert_refused("is a folder", trained / "ckpt" / "local.pt", trained / "ckpt" / "model.pt"):
        sample(ckpt_path=trained / "ckpt", output_dir=tmp_path / "out")


class Notes(Writer):
    """Writes the mean HU of each volume, and at the end how many there are."""

    def is_there(self, volume):
        return self.path(volume).is_file()

    def write(self, volume):
        assert volume.facts["synthetic"]
        self.path(volume).write_text(f"{volume.read()[0].mean():.3f}")

    def finish(self, volumes, overwrite):
        volumes[0].path.with_name("all.txt").write_text(str(len(volumes)))

    @staticmethod
    def path(volume):
        return volume.path.with_name(f"{volume.name}.txt")


def test_a_writer_can_be_asked_for_later_and_nothing_is_sampled_again(trained, tmp_path, capsys):
    """It works on what is stored, resumes volume by volume, and may be a component."""
    settings = {"ckpt_path": trained / "ckpt" / "model.pt", "num_inference_steps": 2, "output_dir": tmp_path / "out"}
    sample(num_samples=2, **settings)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("seed_*")}
    settings["writers"] = ["nifti", {"_target_": "test_bundle_sampling.Notes"}]
    capsys.readouterr()
    sample(num_samples=3, **settings)
    assert "1 of 3 volumes written" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in before} == before
    for seed in range(3):
        hu = nib.load(tmp_path / "out" / f"seed_{seed:06d}.nii.gz").get_fdata()
        assert float((tmp_path / "out" / f"seed_{seed:06d}.txt").read_text()) == pytest.approx(hu.mean(), abs=1e-3)
    assert (tmp_path / "out" / "all.txt").read_text() == "3"
    kept, gone = (tmp_path / "out" / f"seed_{seed:06d}.txt" for seed in (0, 1))
    kept.write_text("kept")
    gone.unlink()
    sample(num_samples=3, **settings)
    assert kept.read_text() == "kept" and gone.is_file()


def test_writers_are_known_and_hold_nifti(trained, tmp_path):
    settings = {"ckpt_path": trained / "ckpt" / "model.pt", "num_inference_steps": 1, "output_dir": tmp_path / "out"}
    for writers, fact in (("jpeg", "writers must be a list, each one of nifti"), (["preview"], "must hold nifti")):
        with assert_refused(fact):
            sample(num_samples=1, writers=writers, **settings)
    assert not (tmp_path / "out").exists()


def test_the_papers_sampler_has_one_name(trained, tmp_path):
    """1,000 equal predictor-corrector steps of p = 2 without guidance, whatever the weights recommend; fewer for this test."""
    given = {"ckpt_path": trained / "ckpt" / "model.pt", "output_dir": tmp_path, "num_samples": 1}
    run("run", ["inference", "paper_sampler"], **given, num_inference_steps=3)
    facts = json.loads((tmp_path / "seed_000000.json").read_text())
    expected = {"solver": "predictor_corrector", "predictor_ratio": 2.0, "eta": None, "spacing": "uniform"}
    expected |= {"prediction": None, "guidance": None}
    assert {name: facts[name] for name in expected} == expected
    assert yaml.safe_load((CONFIGS / "paper_sampler.yaml").read_text())["num_inference_steps"] == 1000
