"""A continued run takes what it is given, or refuses it in one line; it never ignores it."""

import math
import shutil

import nibabel as nib
import pytest
import torch
import yaml
from bundle_runs import CONFIGS, assert_refused, losses, run
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from scripts.data import chest_phantom, grid_affine
from scripts.training import TrainingCheckpoint

BASE = {
    "grid": [8, 8, 8], "hidden_size": 24, "num_heads": 4, "patch_size": 6, "stride": 4, "local_patch_size": 4,
    "local_stride": 2, "local_window": 2, "num_phantoms": 2, "num_validation_phantoms": 1, "batch_size": 2,
    "num_validation_times": 1, "val_interval": 1, "warmup": 0.25, "num_pictures": 0, "max_epochs": 4, "bf16": False,
    "device": "$torch.device('cpu')",
}  # fmt: skip
REFUSED = {  # another run: it needs a ckpt_dir of its own, or the old setting
    "grid": ([16, 16, 16], "grid [8, 8, 8], this run has [16, 16, 16]"),
    "field_of_view_mm": ([320, 320, 300], "field_of_view_mm [320.0, 320.0, 320.0]"),
    "hu_window": ([-1000, 900], "hu_window [-1000.0, 1000.0]"),
    "num_validation_phantoms": (2, "validation_volumes 1 volumes"),
    "num_validation_times": (2, "num_validation_times 1, this run has 2"),
    "dataset_dir": ("ct", "validation_volumes"),
    "depth": (1, "local_window is for stage 1 alone"),
    "hidden_size": (12, "another network"),
    "num_heads": (2, "num_heads 4, this run has 2"),
    "patch_size": (4, "patch_size 6, this run has 4"),
    "stride": (2, "stride 4, this run has 2"),
    "local_patch_size": (6, "another network"),
    "local_stride": (4, "another network"),
    "norm": ("rms", "norm layer, this run has rms"),
    "parametrization": ("none", "parametrization skip, this run has none"),
    "process_name": ("flow_matching", "parametrization"),
    "noise_std": (0.5, "noise_std 1.0, this run has 0.5"),
    "max_epochs": (1, "max_epochs is 1, but"),
    "encoding": ("haar", "encoding haar is not what this network sees"),
}
TAKEN = {  # for the steps that follow
    "seed": 1, "flip_prob": 1.0, "num_phantoms": 4, "batch_size": 1, "epoch_length": 3, "local_window": 1, "lr": 0.1,
    "betas": [0.5, 0.6], "warmup": 1.0, "lr_decay_to": 0.7, "max_grad_norm": 0.01, "ema_decay": 0.1,
    "training_times": "logit_normal", "time_power": 3.0, "bf16": True,
}  # fmt: skip
NO_MATTER = {
    "cache_gb": 0.0, "chunk_tokens": 3, "activation_checkpointing": True, "max_bad_steps": 1, "val_interval": 2,
    "keep_checkpoints": 1, "keep_last": True, "num_pictures": 1, "checkpoint_interval": 2, "field_of_view_mm": [320, 320, 320],
    "hu_window": [-1000, 1000], "attention": "sdpa", "log_dir": "elsewhere", "tf32": True,
}  # fmt: skip
ELSEWHERE = {  # names of the run or places, the machine, and what another test continues
    "ckpt_dir", "stage", "bundle_root", "imports", "device", "compile", "num_workers", "rank", "process_group", "sampler",
    "validation_sampler", "tracker", "max_padding", "max_steps",
    "dry_run", "strides", "trains",
}  # fmt: skip
LAST = "local_checkpoint_epoch=4.pt"


def train_on(folder, **settings):
    run("training", ["train"], **{**BASE, "ckpt_dir": folder / "ckpt", **settings})


@pytest.fixture(scope="module")
def broken(tmp_path_factory):
    """A run after 2 of 4 epochs, what it should become, other weights to start from, and another data set."""
    folder = tmp_path_factory.mktemp("broken")
    with pytest.MonkeyPatch.context() as patch:
        save = TrainingCheckpoint.save

        def save_and_stop(self, engine):
            save(self, engine)
            if engine.state.epoch == 2:
                engine.terminate(skip_completed=True)

        patch.setattr(TrainingCheckpoint, "save", save_and_stop)
        train_on(folder)
    shutil.copytree(folder / "ckpt", folder / "whole" / "ckpt")
    train_on(folder / "whole")
    train_on(folder / "other", max_epochs=1, seed=5)
    shutil.copytree(folder / "other" / "ckpt", folder / "start")
    (folder / "ct").mkdir()
    for seed in range(2):
        image = nib.Nifti1Image(chest_phantom(seed, [8] * 3, [320.0] * 3), grid_affine([8] * 3, [320.0] * 3))
        nib.save(image, folder / "ct" / f"{seed}.nii.gz")
    return folder


@pytest.fixture
def folder(broken, tmp_path, monkeypatch):
    for name in ("ckpt", "start", "ct"):
        shutil.copytree(broken / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def weights(folder):
    state = torch.load(folder / "ckpt" / LAST, weights_only=True)
    return torch.cat([value.flatten() for part in ("network", "ema") for value in state[part].values()])


def test_every_setting_of_training_is_in_one_of_the_lists():
    content = yaml.safe_load((CONFIGS / "train.yaml").read_text())
    flat = {name for name, value in content.items() if not isinstance(value, dict)}
    flat -= {
        name for name, value in content.items() if isinstance(value, str) and value[0] in "@$" and name != "log_dir"
    }
    flat -= {"initialize", "training", "run"}
    assert flat - set(REFUSED) - set(TAKEN) - set(NO_MATTER) - ELSEWHERE == set()


@pytest.mark.parametrize("name", REFUSED)
def test_another_run_is_refused(folder, name):
    value, fact = REFUSED[name]
    with assert_refused(fact):
        train_on(folder, **{name: value})


@pytest.mark.parametrize("name", TAKEN)
def test_a_new_setting_changes_the_steps_that_follow(folder, broken, name, capsys):
    train_on(folder, **{name: TAKEN[name]})
    assert not torch.equal(weights(folder), weights(broken / "whole"))
    rows, steps = losses(folder), {"num_phantoms": 2, "batch_size": 2, "epoch_length": 3}.get(name, 1)
    assert [int(row["step"]) for row in rows] == [1, 2, 3 * steps, 4 * steps]
    printed = capsys.readouterr().out
    assert "local_checkpoint_epoch=2.pt in epoch 3 of 4" in printed
    assert (f"{steps} steps an epoch, before 1" in printed) == (steps > 1)
    assert ("in bf16 on cpu, before float32 on cpu" in printed) == (name == "bf16")


@pytest.mark.slow
@pytest.mark.parametrize("name", NO_MATTER)
def test_what_changes_no_step_changes_no_weight(folder, broken, name):
    train_on(folder, **{name: NO_MATTER[name]})
    torch.testing.assert_close(weights(folder), weights(broken / "whole"), rtol=1e-6, atol=1e-7)


def test_the_learning_rate_is_at_the_same_share_of_a_run_with_other_steps(folder, broken):
    """Half of the way is half of the way, whether an epoch has one step or three."""
    train_on(folder, epoch_length=3, warmup=0)
    rates = [float(row["lr"]) for row in losses(folder)]
    share = 9 / 12  # of the steps until the end of epoch 3 of 4
    assert rates[2:] == pytest.approx([2e-3 * 0.5 * (1 + math.cos(math.pi * share)), 0], rel=1e-3)


def test_weights_say_in_what_they_were_computed(folder, broken):
    def computed_in(where):
        return yaml.safe_load((where / "ckpt" / "local.json").read_text())["training"]["computed_in"]

    assert computed_in(broken) == computed_in(broken / "whole") == ["float32 on cpu"]
    train_on(folder, bf16=True, lr=1e-3)
    state = torch.load(folder / "ckpt" / LAST, weights_only=True)
    assert state["best"]["computed_in"] == ["float32 on cpu", "bf16 on cpu"]


def test_tensorboard_has_each_step_once(folder):
    """What a broken run has logged after its last checkpoint is logged again, and the first is hidden."""
    train_on(folder)
    (folder / "ckpt" / LAST).unlink()
    train_on(folder)
    log = EventAccumulator(str(folder / "ckpt" / "logs" / "local"), size_guidance={"scalars": 0})
    log.Reload()
    for tag in ("loss", "noise", "val_loss", "val_signal"):
        assert [event.step for event in log.Scalars(tag)] == [1, 2, 3, 4], tag
