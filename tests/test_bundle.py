"""The configs as a user runs them, from another folder, at a tiny size."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import monai.bundle
import nibabel as nib
import numpy as np
import pytest
import torch
import yaml
from bundle_runs import (
    CONFIGS,
    DATA,
    TINY,
    assert_refused,
    config_files,
    losses,
    run,
    run_process,
    sample,
    train,
    training,
)
from two_processes import RIVALS, train_all

from scripts.data import chest_phantom
from scripts.networks import read_card
from scripts.output import save_volume


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


@pytest.mark.parametrize("name", ["hidden_size", "num_heads", "patch_size", "local_stride", "parametrization", "norm"])
def test_nobody_types_the_sizes_of_a_network_twice(name):
    """Stage 2 and fine-tuning read them from the weights; typed once more they would not count, and are refused."""
    for stack in (["train", "train_global"], ["train", "finetune"], ["train", "train_new_local"]):
        if (stack[-1], name) == ("train_new_local", "local_stride"):
            continue
        with assert_refused(f"{name} has no effect with train.yaml + {stack[-1]}.yaml"):
            monai.bundle.run("training", config_file=config_files(*stack), logging_file=False, **{name: 8})


def test_the_first_weights_of_every_stage_are_those_of_the_seed(trained, tmp_path):
    """Whatever has been drawn in the process before, and whatever a config reads first."""
    found = []
    for number in (1, 2):
        torch.manual_seed(number)
        ckpt_dir = tmp_path / str(number) / "ckpt"
        shutil.copytree(trained / "ckpt", ckpt_dir, ignore=shutil.ignore_patterns("model*", "logs"))
        train(2, tmp_path / str(number), max_epochs=1)
        found.append(torch.load(ckpt_dir / "model.pt", weights_only=True))
    assert all(torch.equal(value, found[1][name]) for name, value in found[0].items())


def test_stage_2_does_not_continue_on_another_stage_1(trained, tmp_path):
    shutil.copytree(trained / "ckpt", tmp_path / "ckpt")
    for path in (tmp_path / "ckpt").glob("local*"):
        path.unlink()
    train(1, tmp_path, max_epochs=1, seed=1)
    with assert_refused("another stage 1"):
        train(2, tmp_path, max_epochs=8)


def test_finetuning_starts_from_weights_and_trains_all_of_them(trained, tmp_path):
    _, settings = training(2, tmp_path, max_epochs=1, ema_decay=0.5, warmup=0)
    start = trained / "ckpt" / "model.pt"
    run("training", ["train", "finetune"], **{**settings, "finetune_from": start})
    before, after = (torch.load(path, weights_only=True) for path in (start, tmp_path / "ckpt" / "model.pt"))
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert any(name.startswith("local.") for name in moved) and any(name.startswith("residual.") for name in moved)
    validated = json.loads((trained / "ckpt" / "model.json").read_text())["training"]["val_loss"]
    assert float(losses(tmp_path, "model")[0]["val_loss"]) < 1.2 * validated
    with assert_refused("finetune_from is needed"):
        run("training", ["train", "finetune"], **settings)


def copied(weights, folder):
    """A copy of weights and their JSON in a new folder."""
    folder.mkdir()
    for path in (weights, weights.with_suffix(".json")):
        shutil.copy(path, folder)
    return folder / weights.name


def test_a_new_local_denoiser_trains_beside_the_transformer_of_weights(trained, tmp_path):
    start, mine = trained / "ckpt" / "model.pt", tmp_path / "ckpt" / "model.pt"
    patches = {"local_patch_size": 6, "local_stride": 4}
    _, settings = training(2, tmp_path, **patches, max_epochs=4, ema_decay=0.5, warmup=0)
    run("training", ["train", "train_new_local"], **settings, residual_ckpt=start)
    before, after = (torch.load(path, weights_only=True) for path in (start, mine))
    frozen = {name for name in before if not name.startswith("local.")}
    assert frozen and all(torch.equal(before[name], after[name]) for name in frozen)
    rows = losses(tmp_path, "model")
    assert float(rows[-1]["val_loss"]) < float(rows[0]["val_loss"])
    assert read_card(mine).residual_sha256 == read_card(start).sha256
    with assert_refused("another transformer than that of residual_ckpt"):
        copy = copied(mine, tmp_path / "copy")
        run("training", ["train", "train_new_local"], **{**settings, "max_epochs": 5}, residual_ckpt=copy)
    with assert_refused("hu_window [-1000.0, 1000.0] there, [-500.0, 500.0] here"):
        run("training", ["train", "train_new_local"], **settings, residual_ckpt=start, hu_window=[-500, 500])
    settings |= {"ckpt_dir": tmp_path / "all", "max_epochs": 1}
    run("training", ["train", "finetune"], **settings, finetune_from=mine)
    with assert_refused("residual_ckpt must be a file that exists and ends in .pt, got"):
        run("training", ["train", "train_new_local"], **settings, residual_ckpt=tmp_path / "none.pt")
    with assert_refused("residual_ckpt"):
        run("training", ["train", "train_new_local"], **settings)


def test_the_recipes_of_the_paper(tmp_path):
    """At a tiny size: depths that share stage 1, the ablation without it, a refiner on top, and all of that fine-tuned."""
    keep = ("num_phantoms", "num_validation_phantoms", "batch_size", "num_validation_times", "device")
    given = {**{name: TINY[name] for name in keep}, "max_steps": 2, "num_pictures": 0}
    sizes = {"hidden_size": 24, "num_heads": 4, "patch_size": 6, "stride": 4}

    def trained_by(folder, stack, *recipes, **settings):
        run("training", ["train", *stack, *recipes], **given, ckpt_dir=tmp_path / folder, **settings)
        name = {"train_high_resolution": "high_resolution", "finetune_high_resolution": "high_resolution_finetuned"}
        name = name.get(stack[-1], "model") if stack else "local"
        state = torch.load(tmp_path / folder / f"{name}.pt", weights_only=True)
        return state, json.loads((tmp_path / folder / f"{name}.json").read_text())

    low = ("paper_128", "paper_64")
    local, first = trained_by("4L", [], *low, **sizes, grid=[16, 16, 16])
    shallow, card = trained_by("4L", ["train_global"], *low)
    assert card["network"]["depth"] == 4 and card["network"]["parametrization"] == "none"
    assert card["training"]["device_hours_before"] == first["training"]["device_hours"] > 0
    shared = {"local_ckpt": tmp_path / "4L" / "local.pt", "depth": 8}
    deep, card = trained_by("8L", ["train_global"], *low, **shared)
    assert card["network"]["depth"] == 8 and card["local_sha256"] == first["sha256"]
    for name, value in local.items():
        assert torch.equal(value, shallow[name]) and torch.equal(value, deep[name])
    with assert_refused("lr", "the paper has depths of 4, 8 and 12"):  # the paper names none for a depth of 5
        trained_by("5L", ["train_global"], *low, **{**shared, "depth": 5})
    alone, card = trained_by("alone", ["train_without_local"], *low, **sizes, grid=[16, 16, 16])
    assert card["network"]["local_denoiser"] is False and card["network"]["depth"] == 4
    assert not [name for name in alone if name.startswith("local.")] and set(alone) < set(shallow)
    refiner = {"refiner_hidden_size": 16, "refiner_patch_size": 6, "refiner_stride": 4}
    with assert_refused("grid [32, 32, 32] there, [128, 128, 128] here"):
        trained_by(
            "up", ["train_high_resolution"], "paper_up_128", **refiner, backbone_ckpt=tmp_path / "8L" / "model.pt"
        )
    up = {**refiner, "backbone_ckpt": tmp_path / "alone" / "model.pt", "grid": [32, 32, 32]}
    frozen, _ = trained_by("up", ["train_high_resolution"], "paper_up_128", "paper_up_256", **up)
    assert all(torch.equal(value, frozen[f"backbone.{name}"]) for name, value in alone.items())
    stack = ["train_high_resolution", "finetune_high_resolution"]
    finetuned, _ = trained_by("up", stack, "paper_finetune_256", grid=[32, 32, 32])
    assert not all(torch.equal(value, finetuned[name]) for name, value in frozen.items())
    sampled = {"num_samples": 1, "num_inference_steps": 2, "device": TINY["device"], "writers": ["nifti"]}
    run("run", ["inference"], ckpt_path=tmp_path / "alone" / "model.pt", output_dir=tmp_path / "out", **sampled)
    assert (tmp_path / "out" / "seed_000000.nii.gz").is_file()


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
    assert "trained to epoch 1 already; raise max_steps" in capsys.readouterr().out
    assert {path.name: path.read_bytes() for path in (tmp_path / "ckpt").glob("*.*") if path.is_file()} == before


def test_two_processes_train_as_one_and_write_once(tmp_path, monkeypatch):
    """Two ranks of batch b take the steps of one rank of batch 2 b, and hold equal weights.

    To be exact, noise and times belong to the volume, a step sees all volumes, and plain gradient descent divides by no
    gradient that is all but zero.
    """
    overlay = {
        "objective": {
            "_target_": "scripts.training.HeldOut", "num_times": 2,
            "objective": {
                "_target_": "scripts.training.Denoising", "network": "@network_def", "process": "@scheduler",
                "space": "@space", "bf16": False,
            },
        },
        "optimizer": {
            "_target_": "torch.optim.SGD", "lr": "@lr",
            "params": {"_target_": "scripts.training.parameters_to_train", "network": "@objective"},
        },
        "+train::handlers": [
            {"_target_": "bundle_runs.KeepWeights", "network": "@network_def", "folder": "@ckpt_dir", "rank": "@rank"}
        ],
    }  # fmt: skip
    (tmp_path / "exact.yaml").write_text(yaml.safe_dump(overlay))
    stack, settings = training(1, tmp_path, max_epochs=3, batch_size=8, lr=0.1, warmup=0, flip_prob=0.0)
    del settings["local_window"]  # which this objective does not read
    settings["bf16"] = False
    run("training", [*stack, str(tmp_path / "exact")], **{**settings, "ckpt_dir": tmp_path / "one"})
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    process = run_process(
        "training", [*stack, "multi_gpu", str(tmp_path / "exact")], tmp_path, launcher, **{**settings, "batch_size": 4}
    )
    assert process.returncode == 0, process.stderr
    names = {path.name for path in (tmp_path / "ckpt").iterdir() if not path.name.startswith(("rank", "."))}
    checkpoints = {"local_checkpoint_epoch=2.pt", "local_checkpoint_epoch=3.pt"}
    assert names == {"local.json", "local.pt", *checkpoints, "local_losses.csv", "logs"}
    assert [row["step"] for row in losses(tmp_path)] == ["1", "2", "3"]  # 8 phantoms, 2 processes of batch 4
    one, first, second = (
        torch.load(tmp_path / name, weights_only=True) for name in ("one/rank0.pt", "ckpt/rank0.pt", "ckpt/rank1.pt")
    )
    for name, value in one.items():
        assert torch.equal(first[name], second[name])
        torch.testing.assert_close(first[name], value, rtol=0, atol=1e-5)
    assert float(one["local.output.weight"].abs().max()) > 1e-3  # zero at the start: it did learn


@pytest.mark.slow
def test_two_processes_train_the_rivals_as_one(tmp_path, monkeypatch):
    """As above; an autoencoder leaves its discriminators out of the first step, and waits for nobody who is not there."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    train_all(tmp_path / "one")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join((str(Path(__file__).parent), str(CONFIGS.parent))))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    script = [str(Path(__file__).with_name("two_processes.py")), str(tmp_path / "two")]
    process = subprocess.run([*command, *script], capture_output=True, text=True, timeout=600)
    assert process.returncode == 0, process.stderr
    for rival in RIVALS:
        one, first, second = (
            torch.load(tmp_path / name, weights_only=True)
            for name in (f"one/{rival}/rank0.pt", f"two/{rival}/rank0.pt", f"two/{rival}/rank1.pt")
        )
        for name, value in one.items():
            if torch.is_tensor(value):  # not the count of steps
                assert torch.equal(first[name], second[name]), (rival, name)
                torch.testing.assert_close(first[name], value, rtol=0, atol=1e-4, msg=f"{rival} {name}")


def test_flow_matching_in_every_stack(tmp_path, trained):
    """Both stages, fine-tuning and sampling with one overlay; weights of the other process are refused by name."""
    given = {"ema_decay": 0.5, "warmup": 0.125}
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


def test_a_refused_training_leaves_nothing_behind(tmp_path):
    settings = {**TINY, "ckpt_dir": "deep/ckpt", "max_epochs": 1, "grid": [15, 15, 15], "local_window": 0}
    process = run_process("training", ["train"], tmp_path, **settings)
    assert process.returncode == 1 and "multiple of the stride" in process.stderr.splitlines()[-1]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("settings", "fact"),
    [
        ({"dataset_dir": "missing"}, "dataset_dir must be a folder that exists, or null, got 'missing'"),
        ({"dataset_dir": "empty"}, "holds no NIfTI"),
        ({"dataset_dir": "."}, "lies in dataset_dir, which is only read"),
        ({"local_patch_size": 5}, "patch_size - stride must be even"),
        ({"grid": [15, 16, 16], "local_window": 0}, "multiple of the stride 2"),
        ({"ckpt_dir": "/proc/nowhere"}, "ckpt_dir /proc/nowhere is not writable"),
    ],
)
def test_bad_settings_of_training(tmp_path, monkeypatch, settings, fact):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    with assert_refused(fact):
        train(1, tmp_path, **settings)


def test_a_loss_that_is_not_finite_stops_training_and_keeps_the_last_good_checkpoint(tmp_path):
    train(1, tmp_path, max_epochs=1)
    with assert_refused("not finite in 3 steps in a row", "checkpoints are kept"):
        train(1, tmp_path, max_epochs=30, lr=1.0e30, max_bad_steps=3, warmup=0)
    best = torch.load(tmp_path / "ckpt" / "local.pt", weights_only=True)
    assert all(torch.isfinite(value).all() for value in best.values())
    assert [path.name for path in (tmp_path / "ckpt").glob("*epoch=*.pt")] == ["local_checkpoint_epoch=1.pt"]
    train(1, tmp_path, max_epochs=2)
    assert float(losses(tmp_path)[1]["val_loss"]) < 2


def test_a_run_that_ends_while_its_loss_is_not_finite_fails(tmp_path):
    with assert_refused("not finite in 3 steps in a row"):
        train(1, tmp_path, max_epochs=2, lr=1.0e30, warmup=0)


@pytest.mark.parametrize(
    ("changed", "facts"),
    [
        ({"parametrization": "none"}, ["parametrization skip", "none"]),
        ({"hu_window": [-500.0, 500.0]}, ["hu_window", "-500"]),
        ({"noise_std": 0.5}, ["noise_std 1.0", "0.5"]),
    ],
)
def test_a_run_does_not_continue_as_another(trained, tmp_path, changed, facts):
    shutil.copytree(trained / "ckpt", tmp_path / "ckpt")
    with assert_refused("local_checkpoint_epoch", "ckpt_dir", *facts):
        train(1, tmp_path, max_epochs=20, **changed)
    train(1, tmp_path, max_epochs=13, chunk_tokens=7)  # changes no weight


@pytest.mark.parametrize(
    ("changed", "fact"),
    [
        ({"hu_window": [-200, 200]}, "hu_window"),
        ({"noise_std": 0.5}, "noise_std"),
        ({"field_of_view_mm": 100}, "voxels"),
    ],
)
def test_stage_2_refuses_a_stage_1_of_other_data(trained, tmp_path, changed, fact):
    for name in ("local.pt", "local.json"):
        (tmp_path / "ckpt").mkdir(exist_ok=True)
        shutil.copy(trained / "ckpt" / name, tmp_path / "ckpt")
    with assert_refused("local.pt", fact):
        train(2, tmp_path, **changed)


@pytest.mark.parametrize(
    ("settings", "fact"),
    [
        ({"batch_size": 0}, "batch_size must be a whole number from 1"),
        ({"num_phantoms": 0}, "num_phantoms must be a whole number from 1"),
        ({"val_interval": 0}, "val_interval must be a whole number from 1"),
        ({"max_epochs": 1.5}, "max_epochs must be a whole number from 1"),
        ({"grid": [16.5, 16, 16]}, "grid must be one or three whole numbers"),
        ({"lr": float("nan")}, "lr must be a number more than 0"),
        ({"ema_decay": 1.5}, "ema_decay must be a number more than 0 and less than 1"),
        ({"log_dir": "/proc/nowhere"}, "log_dir /proc/nowhere is not writable"),
        ({"grid": [4, 4, 4], "local_patch_size": 12, "local_stride": 2}, "too small for patch_size 12"),
        ({"compile": "maybe"}, "compile must be True or False"),
    ],
)
def test_settings_of_the_wrong_kind_are_refused(settings, fact, tmp_path):
    with assert_refused(fact):
        train(1, tmp_path, **{"max_epochs": 1, **settings})


def test_a_run_of_short_epochs_continues_as_if_it_had_not_been_broken(tmp_path):
    """Epochs that do not end with the data."""
    for name, lengths in (("whole", [3]), ("broken", [1, 3])):
        for max_epochs in lengths:
            train(1, tmp_path / name, max_epochs=max_epochs, epoch_length=1, lr_decay_to=1.0)
    whole, broken = (losses(tmp_path / name) for name in ("whole", "broken"))
    assert whole == broken and len(whole) == 3


def test_the_csv_has_each_epoch_once_and_the_last_validation(tmp_path):
    train(1, tmp_path, max_epochs=3, checkpoint_interval=2, val_interval=2)
    assert [(row["epoch"], bool(row["val_loss"])) for row in losses(tmp_path)] == [
        ("1", False),
        ("2", True),
        ("3", True),
    ]
    train(1, tmp_path, max_epochs=4, checkpoint_interval=2, val_interval=2)
    assert [row["epoch"] for row in losses(tmp_path)] == ["1", "2", "3", "4"]


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
    run("run", ["export"], ckpt_path="ours/model.pt", output_path="less/model.pt", time_dtype="float8_e4m3fn")
    assert Path("less/model.pt").stat().st_size < 0.9 * Path("half/model.pt").stat().st_size
    sample(ckpt_path="less/model.pt", num_inference_steps=2, num_samples=1, output_dir="from_less")
    with assert_refused("time_dtype", "float7"):
        run("run", ["export"], ckpt_path="ours/model.pt", output_path="no/model.pt", time_dtype="float7")
    ours = {path: path.read_bytes() for path in Path("ours").iterdir()}
    Path("ours/model.pt").unlink()  # killed between both files
    run("run", ["import_official"], **settings, norm="layer")
    assert {path: path.read_bytes() for path in Path("ours").iterdir()} == ours
    with assert_refused("exists already"):
        run("run", ["import_official"], **{**settings, "ckpt_path": "half/model.pt"}, norm="layer")
    for grid in (9, [8, 8, 1]):
        with assert_refused("grid must be three multiples of the strides"):
            run("run", ["import_official"], **{**settings, "ckpt_path": "odd/model.pt", "grid": grid}, norm="layer")
    assert not Path("odd/model.pt").exists()
    torch.save({"a": torch.zeros(2)}, "foreign.pt")
    with assert_refused("no PRDiT checkpoint"):
        run("run", ["import_official"], **{**settings, "official_ckpt": "foreign.pt", "ckpt_path": "new.pt"})
