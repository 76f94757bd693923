"""Every setting of every command against a fixed list of values: one line or a result, never a traceback.

With an overlay, a value that the same check refuses as in the command alone is not tried again.

Run by hand: `make slow`, or `python -m pytest -m slow tests/test_bad_input.py -s` for the counts; with MATRIX_LINES=1 all
lines are shown, with MATRIX_OWN=1 only the settings of the last config file are tried, with MATRIX_TAKEN=1 only values of
the right kind.
"""

import functools
import os
import shutil
import signal
import sys
import time
import traceback
from collections import Counter
from copy import deepcopy
from pathlib import Path

import monai.bundle
import pytest
import torch
from bundle_runs import DATA, TINY, config_files, run, sample
from monai.bundle import ConfigParser
from review_studies import answer, make_study, write_answers, write_phantoms

from scripts import errors
from scripts.settings.description import SETTINGS
from scripts.settings.reach import described_settings, reached

VALUES = (
    "x", "", "a,b", "1e-4", "$None", 0, 1, -1, 1.5, 1e30, 10**12, float("nan"), float("inf"), True, False,
    [], [1], [1, 2], ["a"], {"a": "b"}, "/proc/1/x", "/dev/null", "a\0b", "~", "2" * 300,
)  # fmt: skip
parsed = functools.cache(ConfigParser.load_config_file)  # in this process, for all that are forked from it
UNTOUCHED = {"rank", "world_size"}  # of processes that are not there: they would wait for each other
SECONDS = 300
SOME_FAILED = 2


@pytest.fixture(scope="module")
def world(trained, tmp_path_factory):
    """What the commands need: weights of both stages, and volumes."""
    folder = tmp_path_factory.mktemp("world")
    shutil.copytree(trained / "ckpt", folder / "ckpt")
    for name, seeds in (("real", range(4)), ("generated", range(4, 8))):
        write_phantoms(folder / name, seeds)
    sample(ckpt_path=folder / "ckpt/model.pt", output_dir=folder / "sampled", num_samples=1, device="cpu")
    run("training", ["train", "train_autoencoder"], **commands(folder, folder)["train", "train_autoencoder"])
    shutil.copytree(folder / "generated", folder / "models/HA-GAN/first")
    for end in ("pt", "json"):
        shutil.copy(folder / f"ckpt/model.{end}", folder / f"models/12L.{end}")
    _, key = make_study(folder, **_study(folder))
    write_answers(folder / "answers", key, lambda _, index, synthetic, case: answer(case, synthetic))
    return folder


def _study(world):
    return {"real_dir": world / "real", "generated_dir": world / "generated", "num_cases": 2}


def commands(world, out):
    """Settings with which each command works, with all outputs in `out`."""
    weights, real = world / "ckpt/model.pt", world / "real"
    few = {"num_phantoms": 2, "num_validation_phantoms": 1, "batch_size": 2, "num_validation_times": 1}
    start = {**TINY, **few, "ckpt_dir": out / "ckpt", "max_epochs": 1}
    sizes = ("hidden_size", "num_heads", "patch_size", "stride", "local_patch_size", "local_stride", "depth")
    whole = {name: value for name, value in start.items() if name not in sizes} | {"local_window": 0}
    local = {name: start[name] for name in ("local_patch_size", "local_stride")}
    rival = {name: value for name, value in whole.items() if not name.startswith("local_")} | {"num_pictures": 1}
    latent = {name: value for name, value in rival.items() if name != "grid"}
    gan = {name: value for name, value in rival.items() if name != "num_validation_times"} | {"grid": [32] * 3}
    autoencoder = gan | {"grid": [16] * 3, "channels": 16, "factor": 2, "num_codes": 64}
    evaluate = {"real_dir": real, "generated_dir": world / "generated", "output_dir": out / "report", "device": "cpu"}
    quick = {"num_bootstrap": 4, "num_ms_ssim_pairs": 2}
    return {
        ("train",): start,
        ("train", "train_global"): {**whole, "depth": 2, "local_ckpt": world / "ckpt/local.pt"},
        ("train", "finetune"): {**whole, "finetune_from": weights},
        ("train", "train_new_local"): {**whole, **local, "residual_ckpt": weights},
        ("train", "train_high_resolution"): {
            "backbone_ckpt": weights, "ckpt_dir": out / "ckpt", "max_epochs": 1, "num_phantoms": 2, "device": "cpu",
            "num_validation_phantoms": 1, "batch_size": 2, "refiner_window": 1, "refiner_patch_size": 6,
            "refiner_stride": 4, "refiner_hidden_size": 16, "num_validation_times": 1, "val_interval": 1, "num_pictures": 0,
        },
        ("train", "train_wavelet"): {**rival, "channels": 32, "multipliers": [1, 2]},
        ("train", "train_gan"): {**gan, "channels": 16, "latent_size": 8},
        ("train", "train_autoencoder"): autoencoder,
        ("train", "train_latent"): {
            **latent, "autoencoder_ckpt": world / "ckpt/autoencoder.pt", "channels": 8, "multipliers": [1, 2],
        },
        ("inference",): {"ckpt_path": weights, "output_dir": out / "o", "num_samples": 1, "num_inference_steps": 2},
        ("inference", "ddpm_sampler"): {
            "ckpt_path": weights, "output_dir": out / "o", "num_samples": 1, "num_inference_steps": 2,
        },
        ("import_official",): {
            "official_ckpt": DATA / "official_prdit_tiny.pt", "ckpt_path": out / "i.pt", "grid": 8, "num_heads": 4,
            "norm": "layer",
        },
        ("export",): {"ckpt_path": weights, "output_path": out / "e.pt"},
        ("evaluate",): {**evaluate, **quick},
        ("evaluate", "wscore"): {
            **evaluate, "real_section": "all", "num_steps": 1, "batch_size": 1, "critic_channels": [2], "num_seeds": 1,
        },
        ("evaluate", "sampling_sweep"): {
            "real_dir": real, "output_dir": out / "report", "checkpoints": {"a": str(weights)}, "num_samples": 2,
            "num_inference_steps": [1], "predictor_ratio": [1], "metrics": ["HU"], "device": "cpu", **quick,
        },
        ("tables",): {
            "models_dir": world / "models", "real_dir": real, "tables": [1], "output_dir": out / "tables",
            "num_samples": 3, "num_seeds": 1, "num_inference_steps": 1, "num_timed": 1, "num_phantoms": 2, "bf16": False,
            "critic_steps": 1, "critic_batch_size": 1, "critic_channels": [2], "critic_seeds": 1,
            "critic_real_section": "all", "cache_gb": 0.1, "device": "cpu",
        },
        ("review",): {**_study(world), "output_dir": out / "study"},
        ("review_score",): {
            "answers": world / "answers", "key_file": world / "study.key.json", "output_dir": out / "score",
            "num_bootstrap": 4,
        },
        ("view",): {
            "source_dir": world / "generated", "beside_dir": real, "output_dir": out / "view", "max_volumes": 1,
        },
        ("export_dicom",): {"source_dir": world / "sampled", "output_dir": out / "dicom"},
        ("preprocess",): {"source_dir": real, "dataset_dir": out / "d", "size": 16, "spacing": 20, "num_workers": 0},
    }  # fmt: skip


def files_of(folder):
    return {path: (status.st_size, status.st_mtime_ns) for path in folder.rglob("*") for status in [path.lstat()]}


def outcome(stack, settings, folder):
    """Runs a command in a process of its own: 'made', 'refused', or what is wrong about how it ended."""
    folder.mkdir()
    output = folder / "output.txt"
    process = os.fork()
    if process == 0:
        _run_as_a_command(stack, settings, folder, output)
    for _ in range(10 * SECONDS):
        ended, status = os.waitpid(process, os.WNOHANG)
        if ended:
            break
        time.sleep(0.1)
    else:
        os.killpg(process, signal.SIGKILL)
        os.waitpid(process, 0)
        return "hangs"
    text = output.read_text(errors="replace")
    errors = [line for line in text.splitlines() if line.startswith("error: ")]
    if "Traceback" in text or os.WIFSIGNALED(status):
        return f"traceback, or killed by {os.WTERMSIG(status)}:\n{text[-30_000:]}"
    ended = os.waitstatus_to_exitcode(status)
    if ended == 0 or (ended == SOME_FAILED and " rejected" in text):  # a data set, but without some scans
        return "made"
    return "refused" if len(errors) == 1 else f"{len(errors)} error lines"


def _run_as_a_command(stack, settings, folder, output):
    try:
        os.setsid()
        torch.set_num_threads(1)  # threads do not survive a fork
        os.chdir(folder)
        os.environ["HOME"] = str(folder)
        file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, 1), os.dup2(file, 2)
        sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)
        sys.argv = ["monai.bundle", "run"]
        torch.compile = lambda function, **_: function  # its compilers wait for threads that no fork has
        ConfigParser.load_config_file = staticmethod(lambda path, **_: deepcopy(parsed(str(path))))
        given = {name: str(value) if isinstance(value, os.PathLike) else value for name, value in settings.items()}
        run_id = "training" if stack[0] == "train" else "run"
        status = 0
        try:
            monai.bundle.run(run_id, config_file=config_files(*stack), logging_file=False, **given)
        except SystemExit as stop:
            status = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        except BaseException:
            errors._print_error(*sys.exc_info())  # what the command line has as its hook
            status = 1
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(status)
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(99)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_the_matrix_tells_good_from_bad(trained, tmp_path):
    good = commands(trained, tmp_path)["export",]
    assert outcome(("export",), good, tmp_path / "good") == "made"
    assert outcome(("export",), good | {"dtype": "x"}, tmp_path / "bad") == "refused"


@pytest.mark.slow
@pytest.mark.parametrize("stack", commands(Path(), Path()), ids="+".join)
def test_every_setting_answers_every_value(stack, world, tmp_path):
    good = commands(world, tmp_path)[stack]
    for file in config_files(*stack):
        parsed(file)
    started = time.monotonic()
    assert outcome(stack, good, tmp_path / "good") == "made"
    print(f"good: {time.monotonic() - started:.1f} s", flush=True)
    parser = ConfigParser()
    parser.read_config(config_files(*stack))
    described, counts, faults = described_settings(parser.config), Counter(), []
    used = reached(parser.config) - UNTOUCHED
    alone = SETTINGS[stack[0]] if len(stack) > 1 else {}
    before = files_of(world)
    own = SETTINGS[stack[-1]] if os.environ.get("MATRIX_OWN") else described
    for name in [name for name in described if name in used and name in own]:
        for index, value in enumerate(VALUES):
            if os.environ.get("MATRIX_TAKEN") and not _allowed(described[name].kind, value):
                continue
            if name in alone and described[name].kind == alone[name].kind and not _allowed(alone[name].kind, value):
                counts["as without overlay"] += 1
                continue
            out, began = tmp_path / f"{name}{index}", time.monotonic()
            ended = outcome(stack, {**commands(world, out)[stack], name: value}, out)
            counts[ended if ended in ("made", "refused") else "fault"] += 1
            if ended == "made" and not _allowed(described[name].kind, value):
                ended = "taken silently"
            if files_of(world) != before:
                ended += ", and changed what it was given"
            if os.environ.get("MATRIX_LINES"):
                line = (out / "output.txt").read_text(errors="replace").partition("error: ")[2].strip()
                odd = "" if ended == "made" or name in line else " WITHOUT ITS NAME"
                print(
                    f"T {time.monotonic() - began:.1f} {name}={str(value)[:30]!r} {ended[:20]}{odd}: {line}", flush=True
                )
            if ended not in ("made", "refused"):
                faults.append(f"{name}={value!r}: {ended}")
                print(faults[-1], flush=True)
            shutil.rmtree(out)
    print(f"\n{'+'.join(stack)}: {dict(counts)}")
    assert faults == []


def _allowed(kind, value):
    try:
        kind.convert(None if value == "$None" else value)
    except ValueError:
        return False
    return True
