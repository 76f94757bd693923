"""The configs as a user runs them, from another folder, at a tiny size."""

import csv
import json
import os
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import itk
import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigWorkflow

from scripts.data import chest_phantom
from scripts.errors import is_bad_input, root_cause
from scripts.inferers import save_volume

CONFIGS = Path(__file__).resolve().parents[1] / "bundle" / "configs"
DATA = Path(__file__).resolve().parent / "data"
TINY = {
    "grid": [16, 16, 16], "hidden_size": 24, "num_heads": 4, "patch_size": 6, "stride": 4, "local_patch_size": 4,
    "local_stride": 2, "num_phantoms": 8, "num_validation_phantoms": 2, "batch_size": 4, "num_validation_times": 3,
    "local_window": 2, "depth": 0, "val_interval": 1, "device": "$torch.device('cpu')",
}  # fmt: skip


def config_files(*names):
    return [str(CONFIGS / f"{name}.yaml") for name in names]


def run(run_id, stack, **settings):
    """Runs a config stack in this process, as `python -m monai.bundle run` does after parsing its arguments."""
    given = {name: str(value) if isinstance(value, Path) else value for name, value in settings.items()}
    workflow = ConfigWorkflow(config_files(*stack), run_id=run_id, logging_file=False, workflow_type=None, **given)
    workflow.initialize()
    workflow.run()


def run_process(run_id, stack, folder, launcher=(), **settings):
    """Runs a config stack as a user does, in a process of its own, in `folder`; returns the finished process."""
    files = str(config_files(*stack))
    command = [sys.executable, *launcher, "-m", "monai.bundle", "run", run_id, "--config_file", files]
    for name, value in settings.items():
        command += [f"--{name}", str(value)]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=300)


def training(stage, folder, **settings):
    """Stack and settings of a tiny training run with its checkpoints in `folder`/ckpt."""
    stack = ["train"] if stage == 1 else ["train", "train_global"]
    of_stage = {"depth": 2, "local_window": 0} if stage == 2 else {}
    return stack, {**TINY, **of_stage, "ckpt_dir": folder / "ckpt", **settings}


def train(stage, folder, **settings):
    stack, given = training(stage, folder, **settings)
    run("training", stack, **given)


def sample(**settings):
    run("run", ["inference"], **settings)


@contextmanager
def assert_refused(*facts):
    """Bad input: an error of ours that says the facts in one line, which `errors` prints without a traceback."""
    with pytest.raises((ValueError, RuntimeError)) as caught:
        yield
    cause = root_cause(caught.value)
    assert is_bad_input(cause), repr(cause)
    assert "\n" not in str(cause)
    for fact in facts:
        assert str(fact) in str(cause)


def losses(folder, stage="local"):
    with open(folder / "ckpt" / f"{stage}_losses.csv") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with both stages trained on tiny phantoms; the tests may read it, not write."""
    folder = tmp_path_factory.mktemp("trained")
    train(1, folder, max_epochs=12, ema_decay=0.5, warmup_steps=2)
    train(2, folder, max_epochs=6, ema_decay=0.5, warmup_steps=2)
    return folder


def test_two_stages_lower_the_validation_loss(trained):
    local, model = (
        [float(row["val_loss"]) for row in losses(trained, stage) if row["val_loss"]] for stage in ("local", "model")
    )
    assert local[-1] < 0.9 * local[0]
    assert min(model) < min(local)
    assert all(float(row["train_noise"]) > 0 and float(row["train_signal"]) > 0 for row in losses(trained))


def test_stage_2_stores_the_hash_of_stage_1_and_leaves_it_as_it_was(trained):
    settings = json.loads((trained / "ckpt" / "model.json").read_text())
    assert settings["local_sha256"] == json.loads((trained / "ckpt" / "local.json").read_text())["sha256"]
    local, model = (torch.load(trained / "ckpt" / f"{name}.pt", weights_only=True) for name in ("local", "model"))
    assert all(torch.equal(model[name], value) for name, value in local.items())


def test_stage_2_refuses_a_stage_1_that_does_not_fit(trained):
    with assert_refused("local.pt", "patch size and stride"):
        train(2, trained, local_stride=1, local_patch_size=3)


def test_stage_2_does_not_continue_on_another_stage_1(trained, tmp_path):
    shutil.copytree(trained / "ckpt", tmp_path / "ckpt")
    for name in ("local_checkpoint_epoch=11.pt", "local_checkpoint_epoch=12.pt", "local.pt", "local.json"):
        (tmp_path / "ckpt" / name).unlink()
    train(1, tmp_path, max_epochs=1, seed=1)
    with assert_refused("another stage 1"):
        train(2, tmp_path, max_epochs=8)


def test_finetuning_starts_from_weights_and_trains_all_of_them(trained, tmp_path):
    _, settings = training(2, tmp_path, max_epochs=1, ema_decay=0.5, warmup_steps=0)
    start = trained / "ckpt" / "model.pt"
    run("training", ["train", "finetune"], **{**settings, "finetune_from": start})
    before, after = (torch.load(path, weights_only=True) for path in (start, tmp_path / "ckpt" / "model.pt"))
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert any(name.startswith("local.") for name in moved) and any(name.startswith("residual.") for name in moved)
    validated = json.loads((trained / "ckpt" / "model.json").read_text())["training"]["val_loss"]
    assert float(losses(tmp_path, "model")[0]["val_loss"]) < 1.2 * validated
    with assert_refused("of another network"):
        run("training", ["train", "finetune"], **{**settings, "hidden_size": 12, "finetune_from": start})


def test_the_overlay_of_the_paper(tmp_path):
    """The stack of the docs at a tiny size: both stages of the paper's network."""
    keep = (
        "grid",
        "num_phantoms",
        "num_validation_phantoms",
        "batch_size",
        "num_validation_times",
        "device",
        "ckpt_dir",
    )
    for stage in (1, 2):
        stack, settings = training(stage, tmp_path)
        settings = {name: settings[name] for name in keep}
        size = {"preset": "PRDiT-XS/1", "patch_size": 6, "stride": 4, "max_epochs": 1}
        run("training", [*stack, "paper_128"], **settings, **size)
    network = json.loads((tmp_path / "ckpt" / "model.json").read_text())["network"]
    assert (network["hidden_size"], network["num_heads"], network["depth"]) == (192, 6, 1)
    assert network["local_patch_size"] is None and network["local_stride"] is None


def test_stage_2_without_stage_1(tmp_path):
    with assert_refused("train stage 1"):
        train(2, tmp_path)


def test_a_broken_run_continues_as_if_it_had_not_been_broken(tmp_path):
    for name, lengths in (("whole", [3]), ("broken", [1, 3])):
        for epochs in lengths:
            train(1, tmp_path / name, max_epochs=epochs, lr_decay_to=1.0)
    whole, broken = (
        torch.load(tmp_path / name / "ckpt" / "local_checkpoint_epoch=3.pt", weights_only=True)
        for name in ("whole", "broken")
    )
    for part in ("network", "ema"):
        assert all(torch.equal(broken[part][name], value) for name, value in whole[part].items())
    state = {name: part["optimizer"]["state"] for name, part in (("whole", whole), ("broken", broken))}
    assert all(torch.equal(state["broken"][i]["exp_avg"], state["whole"][i]["exp_avg"]) for i in state["whole"])
    assert [row["epoch"] for row in losses(tmp_path / "broken")] == ["1", "2", "3"]


def test_a_finished_run_says_so_and_changes_nothing(tmp_path, capsys):
    train(1, tmp_path, max_epochs=1)
    before = {path.name: path.read_bytes() for path in (tmp_path / "ckpt").glob("*.*") if path.is_file()}
    capsys.readouterr()
    train(1, tmp_path, max_epochs=1)
    assert "trained to epoch 1 already; raise max_epochs" in capsys.readouterr().out
    assert {path.name: path.read_bytes() for path in (tmp_path / "ckpt").glob("*.*") if path.is_file()} == before


def test_two_processes_train_and_write_once(tmp_path):
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    stack, settings = training(1, tmp_path, max_epochs=2, batch_size=2)
    process = run_process("training", [*stack, "multi_gpu"], tmp_path, launcher, **settings)
    assert process.returncode == 0, process.stderr
    names = sorted(path.name for path in (tmp_path / "ckpt").iterdir())
    checkpoints = ["local_checkpoint_epoch=1.pt", "local_checkpoint_epoch=2.pt"]
    assert names == ["local.json", "local.pt", *checkpoints, "local_losses.csv", "logs"]
    assert [row["step"] for row in losses(tmp_path)] == ["2", "4"]  # 8 phantoms, 2 processes of batch 2


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
    assert "2 volumes written" in capsys.readouterr().out
    assert first.stat().st_mtime_ns == before and (tmp_path / "out" / "seed_000002.json").is_file()
    sample(num_samples=3, **settings)
    assert "0 volumes written" in capsys.readouterr().out
    with assert_refused("num_inference_steps"):
        sample(num_samples=3, **{**settings, "num_inference_steps": 3})
    assert first.stat().st_mtime_ns == before
    sample(num_samples=1, **{**settings, "num_inference_steps": 3}, overwrite=True)
    assert first.stat().st_mtime_ns > before


@pytest.mark.parametrize(
    ("settings", "fact"),
    [
        ({"num_inference_steps": 0}, "num_inference_steps must be 1 to 1000"),
        ({"num_inference_steps": 1001}, "num_inference_steps must be 1 to 1000"),
        ({"predictor_ratio": 0.5}, "predictor_ratio must be at least 1"),
        ({"solver": "plms"}, "solver must be one of"),
        ({"spacing": "karras"}, "spacing must be one of"),
        ({"eta": 2}, "eta must be 0 to 1"),
        ({"eta": 0.5, "predictor_ratio": 2}, "predictor_ratio or eta, not both"),
        ({"solver": "heun", "num_inference_steps": 5}, "must be a multiple of 2"),
        ({"prediction": "velocity"}, "prediction must be null or noise"),
        ({"process_name": "flow_matching"}, "trained with the process cosine_sine"),
        ({"batch_size": 0}, "batch_size must be 1 or more"),
        ({"chunk_tokens": -1}, "chunk_tokens must be 0 or more"),
        ({"memory_gb": 0}, "memory_gb must be more than 0"),
        ({"memory_gb": 8, "grid": 4096}, "choose a smaller grid"),
        ({"num_samples": 0}, "num_samples must be 1 or more"),
        ({"grid": [15, 16, 16]}, "grid must be three multiples"),
        ({"output_dir": "/proc/nowhere"}, "output_dir /proc/nowhere is not writable"),
        ({"ckpt_path": "nothing.pt"}, "no checkpoint at nothing.pt"),
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
        expected = {"spacing": "quadratic", "prediction": None, **given, "process": "cosine_sine"}
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
        assert f"{written} volumes written" in process.stdout and process.stdout.count("volumes written") == 1
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


def test_flow_matching_in_every_stack(tmp_path, trained):
    """Both stages, fine-tuning and sampling with one overlay; weights of the other process are refused by name."""
    given = {"ema_decay": 0.5, "warmup_steps": 2}
    stack, settings = training(1, tmp_path, max_epochs=8, **given)
    run("training", [*stack, "flow_matching"], **settings)
    rows = losses(tmp_path)
    assert list(rows[0])[3:] == ["train_loss", "train_velocity", "val_loss", "val_velocity"]
    assert float(rows[-1]["val_loss"]) < 0.9 * float(rows[0]["val_loss"])
    assert float(rows[-1]["val_loss"]) == pytest.approx(float(rows[-1]["val_velocity"]), abs=2e-6)
    stack, settings = training(2, tmp_path, max_epochs=2, training_times="logit_normal", **given)
    run("training", [*stack, "flow_matching"], **settings)
    model = tmp_path / "ckpt" / "model.pt"
    stored = json.loads(model.with_suffix(".json").read_text())
    assert stored["process"]["name"] == "flow_matching" and stored["network"]["num_predictions"] == 1
    for stack, steps, solver in ((["inference", "flow_matching"], 20, "multistep"), (["inference"], 20, "heun")):
        changed = {} if "flow_matching" in stack else {"solver": solver}
        run("run", stack, ckpt_path=model, output_dir=tmp_path / solver, num_samples=1, **changed)
        sidecar = json.loads((tmp_path / solver / "seed_000000.json").read_text())
        found = [sidecar[name] for name in ("process", "solver", "num_inference_steps")]
        assert found == ["flow_matching", solver, steps]
        volume = np.asanyarray(nib.load(tmp_path / solver / "seed_000000.nii.gz").dataobj)
        assert volume.std() > 50
    _, settings = training(2, tmp_path, max_epochs=1)
    settings |= {"ckpt_dir": tmp_path / "finetuned", "finetune_from": model}
    run("training", ["train", "finetune", "flow_matching"], **settings)
    with assert_refused("trained with the process flow_matching", "cosine_sine"):
        run("training", ["train", "finetune"], **{**settings, "ckpt_dir": tmp_path / "other"})
    with assert_refused("trained with the process cosine_sine", "flow_matching"):
        stack, settings = training(2, tmp_path, local_ckpt=trained / "ckpt" / "local.pt")
        run("training", [*stack, "flow_matching"], **{**settings, "ckpt_dir": tmp_path / "third"})


def test_bad_input_is_one_line_and_a_status(trained, tmp_path):
    for name in ("model.pt", "model.json"):
        shutil.copy(trained / "ckpt" / name, tmp_path)
    content = (tmp_path / "model.pt").read_bytes()
    (tmp_path / "model.pt").write_bytes(content[: len(content) // 2])
    process = run_process("run", ["inference"], tmp_path, ckpt_path="model.pt", output_dir="out")
    assert process.returncode != 0
    assert process.stderr.splitlines()[-1].startswith("error: model.pt is truncated")
    assert "Traceback" not in process.stderr + process.stdout


@pytest.mark.parametrize(
    ("settings", "fact"),
    [
        ({"dataset_dir": "missing"}, "dataset_dir missing is no folder"),
        ({"dataset_dir": "."}, "holds no NIfTI"),
        ({"local_patch_size": 5}, "patch_size - stride must be even"),
        ({"grid": [15, 16, 16], "local_window": 0}, "multiple of the stride 2"),
        ({"preset": "PRDiT-Z/4"}, "preset must be"),
        ({"ckpt_dir": "/proc/nowhere"}, "ckpt_dir /proc/nowhere is not writable"),
    ],
)
def test_bad_settings_of_training(tmp_path, monkeypatch, settings, fact):
    monkeypatch.chdir(tmp_path)
    with assert_refused(fact):
        train(1, tmp_path, **settings)


def test_a_loss_that_is_not_finite_stops_training_and_keeps_the_last_good_checkpoint(tmp_path):
    train(1, tmp_path, max_epochs=1)
    with assert_refused("not finite in 3 steps in a row", "checkpoint is kept"):
        train(1, tmp_path, max_epochs=30, lr=1.0e30, max_bad_steps=3, warmup_steps=0)
    best = torch.load(tmp_path / "ckpt" / "local.pt", weights_only=True)
    assert all(torch.isfinite(value).all() for value in best.values())


def test_training_on_a_folder_of_nifti(tmp_path):
    """A plain folder of CTs of another size, spacing and orientation is enough."""
    (tmp_path / "ct").mkdir()
    for seed in range(3):
        affine = np.diag([-8.0, -8.0, 10.0, 1.0])  # LPS storage
        volume = chest_phantom(seed, (40, 40, 32))[::-1, ::-1]
        save_volume(volume, affine, tmp_path / "ct" / f"case{seed}.nii.gz")
    train(1, tmp_path, dataset_dir=tmp_path / "ct", batch_size=2, max_epochs=1)
    assert len(losses(tmp_path)) == 1


def test_import_official_sample_and_export(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    checkpoint = torch.load(DATA / "official_prdit_tiny.pt", weights_only=True)
    torch.save({"ema": checkpoint["state_dict"]}, "official.pt")
    settings = {"official_ckpt": "official.pt", "ckpt_path": "ours/model.pt", "grid": [8, 8, 8], "num_heads": 4}
    run("run", ["import_official"], **settings, norm="layer")
    assert "hidden_size 24, depth 2" in capsys.readouterr().out
    sample(ckpt_path="ours/model.pt", num_inference_steps=2, num_samples=1, output_dir="out")
    run("run", ["export"], ckpt_path="ours/model.pt", output_path="half/model.pt")
    assert Path("half/model.pt").stat().st_size < 0.6 * Path("ours/model.pt").stat().st_size
    with assert_refused("exists already"):
        run("run", ["import_official"], **settings, norm="layer")
    torch.save({"a": torch.zeros(2)}, "foreign.pt")
    with assert_refused("no PRDiT checkpoint"):
        run("run", ["import_official"], **{**settings, "official_ckpt": "foreign.pt", "ckpt_path": "new.pt"})
