"""`prdit`: the line of MONAI that each command stands for, its help, and what it refuses."""

import json
import logging
import os
import re
import shlex
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import tqdm
from bundle_runs import CONFIGS, assert_refused
from monai.bundle import ConfigParser
from test_docs import check_run
from test_settings_checks import STACKS

from scripts.commands import run
from scripts.commands.runs import Run
from scripts.commands.stacks import merged, overlays
from scripts.commands.table import ABOUT, COMMANDS, available
from scripts.settings.reach import reached

PRDIT = CONFIGS.parent / "prdit.py"
TRAIN, GLOBAL, REFINER = (["train"], ["train", "train_global"], ["train", "train_high_resolution"])


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Another folder; what a run leaves in this process is taken back."""
    monkeypatch.chdir(tmp_path)
    for name, value in (("excepthook", sys.__excepthook__), ("argv", [*sys.argv]), ("path", [*sys.path])):
        monkeypatch.setattr(sys, name, value)
    monkeypatch.setattr(tqdm.tqdm, "status_printer", tqdm.tqdm.status_printer)
    monkeypatch.setattr(logging, "raiseExceptions", logging.raiseExceptions)
    monkeypatch.setenv("PYTHONWARNINGS", "ignore")  # what prdit would set for good
    monkeypatch.setenv("TQDM_MININTERVAL", "0.1")
    sigterm, handlers, level = signal.getsignal(signal.SIGTERM), logging.root.handlers[:], logging.root.level
    with warnings.catch_warnings():
        yield
    signal.signal(signal.SIGTERM, sigterm)
    logging.root.handlers[:] = handlers
    logging.root.setLevel(level)
    logging.disable(logging.NOTSET)


def shown(capsys, *words):
    """The stacks and settings that `--show` prints, a line each."""
    run([*words, "--show"])
    lines = [shlex.split(line) for line in capsys.readouterr().out.splitlines()]
    for line in lines:
        assert line[:4] == ["python", "-m", "monai.bundle", "run"] or line[0] == "torchrun"
        check_run(line[line.index("run") + 1 :])  # MONAI finds the files, the order, the run and the settings
    return [([Path(one).stem for one in files(line)], settings(line)) for line in lines]


def files(line):
    value = line[line.index("--config_file") + 1]
    return value.strip("[]").replace("'", "").split(",")


def settings(line):
    words = line[line.index("--config_file") + 2 :]
    return {name.removeprefix("--"): value for name, value in zip(words[::2], words[1::2])}


def refused(capsys, *words):
    with pytest.raises(SystemExit) as end:
        run(words)
    assert end.value.code == 1
    out, error = capsys.readouterr()
    assert out == "" and error.count("\n") == 1 and error.startswith("error: ")
    return error


def test_the_list_of_commands_has_each_that_can_run(capsys):
    run([])
    out = capsys.readouterr().out
    assert [name for name in (*available(), *ABOUT) if f"\n  {name} " not in f"\n{out}"] == []
    assert {"demo", "prepare", "train", "sample", "evaluate", "export", "import", "wscore", "sweep"} <= set(available())


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_a_command_of_monai(name, capsys):
    if name not in available():
        pytest.skip("its config file is not in this bundle")
    command = COMMANDS[name]
    for stack, given in shown(capsys, name, *(place.lower() + ".pt" for place in command.positions.values())):
        assert stack[0] == command.stack[0]
        assert set(command.positions) <= set(given)
    known = {"output_dir": "x", **{setting: "y" for setting in command.short.values()}}
    for typed, setting in command.short.items():
        places = [word for one in command.positions if one != setting for word in (f"--{one}", "x")]
        (_, given), *_ = shown(capsys, name, f"--{typed}", known[setting], *places)
        assert given[setting] == "y"


@pytest.mark.parametrize("name", [name for name, command in COMMANDS.items() if "prdit" in command.then])
def test_what_is_told_to_type_next_can_be_typed(name, capsys):
    words = COMMANDS[name].then.partition("prdit ")[2].split()
    assert shown(capsys, *(re.sub("{.*}", "x", word) for word in words))


def test_settings_reach_monai_as_they_were_typed(capsys):
    ((stack, given),) = shown(capsys, "sample", "w.pt", "2025", "--seed=7", "--overwrite", "--grid", "[32,32,32]")
    assert stack == ["inference"]
    assert given == {"ckpt_path": "w.pt", "output_dir": "2025", "seed": "7", "overwrite": "True", "grid": "[32,32,32]"}
    ((_, given),) = shown(capsys, "sample", "--output_dir", "it's $HOME")
    assert given == {"output_dir": "it's $HOME"}


def test_a_value_with_a_dash_in_front_is_no_flag():
    words = Run(("inference",), {"output_dir": "-rf", "eta": "-1", "bf16": "None"}).words()
    assert words[-5:] == ["--output_dir=-rf", "--eta", "-1", "--bf16", "$None"]


def test_none_is_what_monai_takes_for_none(capsys):
    assert shown(capsys, "sample", "--bf16", "None", "--grid=null")[0][1] == {"bf16": "$None", "grid": "$None"}


def test_a_folder_stands_for_its_weights(capsys, tmp_path):
    (tmp_path / "C").mkdir()
    assert "no model.pt" in refused(capsys, "sample", "C", "o")
    (tmp_path / "C" / "local.pt").touch()
    assert shown(capsys, "sample", "C", "o")[0][1] == {
        "ckpt_path": "C/local.pt",
        "output_dir": "o",
    }  # and inference.yaml refuses stage 1
    (tmp_path / "C" / "model.pt").touch()
    assert shown(capsys, "sample", "C", "o")[0][1] == {"ckpt_path": "C/model.pt", "output_dir": "o"}


def test_training_is_both_stages_and_the_refiner(capsys):
    assert [stack for stack, _ in shown(capsys, "train", "D", "C")] == [TRAIN, GLOBAL]
    assert [stack for stack, _ in shown(capsys, "train", "D", "C", "--stage", "2")] == [GLOBAL]
    first, second, third = shown(
        capsys,
        "train",
        "D",
        "C",
        "--up",
        "2",
        "--grid",
        "32",
        "--depth",
        "8",
        "--lr",
        "1.0e-4",
        "--refiner_stride",
        "4",
    )
    assert first == (TRAIN, {"dataset_dir": "D", "ckpt_dir": "C", "grid": "32", "lr": "1.0e-4"})
    assert second == (GLOBAL, {"dataset_dir": "D", "ckpt_dir": "C", "depth": "8", "lr": "1.0e-4"})
    assert third[0] == REFINER
    assert third[1]["backbone_ckpt"] == "C/model.pt" and third[1]["factor"] == "2" and third[1]["refiner_stride"] == "4"
    assert "grid" not in third[1] and "depth" not in third[1]
    stages = shown(capsys, "train", "D", "C", "--up", "2", "--hidden_size", "24")  # which the refiner does not use
    assert ["hidden_size" in given for _, given in stages] == [True, False, False]


def test_overlays_come_in_their_order(capsys):
    stacks = shown(capsys, "train", "D", "C", "--with", "mlflow,flow_matching", "--recipe", "paper_128", "--gpus", "2")
    tail = ["flow_matching", "paper_128", "mlflow", "multi_gpu"]
    assert [stack for stack, _ in stacks] == [[*TRAIN, *tail], [*GLOBAL, *tail]]
    assert shown(capsys, "train", "D", "C", "--finetune_from", "x.pt")[0][0] == ["train", "finetune"]
    assert shown(capsys, "train", "D", "C", "--residual_ckpt", "x.pt")[0][0] == ["train", "train_new_local"]
    stacks = shown(capsys, "train", "D", "C", "--with", "route_tokens,muon", "--up", "2")
    assert [stack for stack, _ in stacks] == [
        ["train", "muon"], ["train", "train_global", "route_tokens", "muon"], ["train", "train_high_resolution", "muon"]
    ]  # fmt: skip
    assert shown(capsys, "evaluate", "o", "r", "--with", "totalsegmentator")[0][0] == ["evaluate", "totalsegmentator"]


@pytest.mark.parametrize(
    "words, facts",
    [
        ("smaple", ("smaple", "sample")),
        ("sample --solvr heun", ("no setting solvr", "solver", "prdit sample --help")),
        ("train D C --max_epoch 1", ("max_epoch", "max_epochs")),
        ("train D C --factor 2", ("no setting factor",)),
        ("train D C --validate::dataset2::x 2", ("validate::dataset2::x names no place",)),
        ("sample --handlers::7::x 2", ("handlers::7::x names no place",)),
        ("sample --seed::x 2", ("seed::x names no place",)),
        ("train --recipe paper128", ("paper_128",)),
        ("train --recipe finetune", ("no recipe finetune",)),
        ("train --with mlflo", ("mlflow",)),
        ("sample --with mlflow", ("no overlay mlflow", "inference.yaml")),
        ("train --with finetune,train_new_local", ("exclude each other",)),
        ("train --with finetune_high_resolution", ("train_high_resolution.yaml",)),
        ("train --with finetune --stage 1", ("stage", "finetune")),
        ("train --stage 3", ("stage", "1", "2", "3")),
        ("train . C --stage 1 --depth 2", ("depth is for stage 2",)),
        ("train --up 1", ("up", "2")),
        ("train --gpus none", ("gpus", "none")),
        ("train D C E", ("DATA WEIGHTS", "'E'")),
        ("sample C out --output_dir o", ("output_dir", "twice")),
        ("sample --seed 1 --seed 2", ("seed", "twice")),
        ("train D", ("WEIGHTS is missing: prdit train DATA WEIGHTS",)),
        ("sample C", ("OUT is missing: prdit sample WEIGHTS OUT",)),
        ("evaluate O", ("OUT is missing: prdit evaluate VOLUMES OUT",)),
        ("evaluate", ("VOLUMES is missing: prdit evaluate VOLUMES OUT",)),
        ("prepare", ("SOURCE and DATA are missing: prdit prepare SOURCE DATA",)),
        ("prepare --source_dir S", ("DATA is missing",)),
        ("review-score A K", ("OUT is missing: prdit review-score ANSWERS KEY OUT",)),
        (
            "train --with train_high_resolution --hidden_size 24",
            ("hidden_size has no effect with train.yaml + train_high",),
        ),
    ],
)
def test_what_is_not_right_is_one_line(words, facts, capsys):
    error = refused(capsys, *words.split(), "--show")
    assert [fact for fact in facts if fact not in error] == []


@pytest.mark.parametrize(
    "words, facts",
    [
        ("prepare nowhere D", ("source_dir must be a folder or file that exists", "'nowhere'")),
        ("train nowhere C", ("dataset_dir must be a folder that exists", "'nowhere'")),
        ("train . C --up 2 --depth 300", ("depth must be a whole number from 0 to 256", "300")),
        ("train . C --refiner_stride 0 --up 2", ("refiner_stride must be",)),
        ("sample nowhere.pt o", ("ckpt_path must be a file that exists",)),
        ("demo -n 1.5", ("num_samples must be a whole number", "1.5")),
        ("demo --dicom maybe", ("dicom must be True or False", "'maybe'")),
        ("demo --num_samples None", ("num_samples is needed",)),
        ("plan demo --solver heunn", ("solver must be one of", "'heunn'")),
        ("demo --spacing uniform --schedule {'positions':[1]}", ("spacing has no effect beside schedule",)),
        ("demo %x", ("output_dir %x: MONAI takes what follows %", "./%x")),
        ("evaluate . r --generated_dirs {'a':nowhere}", ("generated_dirs must be names with values",)),
    ],
)
def test_a_wrong_value_is_one_line_before_anything_starts(words, facts, monkeypatch, capsys):
    monkeypatch.setattr("scripts.commands.main.start", None)
    error = refused(capsys, *words.split())
    assert [fact for fact in facts if fact not in error] == []


@pytest.mark.parametrize(
    "words",
    [
        "demo --batch_size null --bf16=None --grid [64,64,64] --seed $1+1",
        "demo 2025 --device cuda:0",
        "train --betas [0.9,0.99]",
    ],
)
def test_what_is_right_is_started(words, monkeypatch):
    started = []
    monkeypatch.setattr("scripts.commands.main.start", lambda one, verbose: started.append(one) or 0)
    run(words.split())
    assert len(started) == (2 if words.startswith("train") else 1)


def test_stacks_are_merged_as_monai_merges_them():
    for stack in STACKS:
        parser = ConfigParser()
        parser.read_config([str(CONFIGS / f"{name}.yaml") for name in stack])
        ours, theirs = merged(stack), {name: one for name, one in parser.config.items() if name != parser.meta_key}
        assert list(ours) == list(theirs)
        for name in set(ours) - {"run", "training"}:  # two names of one list there, to which an overlay adds twice
            assert ours[name] == theirs[name]
        assert reached(ours) == reached(theirs)


def test_help_lists_the_settings(capsys):
    run(["sample", "--help"])
    few = capsys.readouterr().out
    assert "WEIGHTS OUT" in few and "--num_samples" in few and "4: volumes to make" in few and "--gpus" in few
    run(["sample", "--help", "all"])
    every = capsys.readouterr().out
    assert "--guidance_below" in every and "--guidance_below" not in few and "more with" not in every
    run(["train", "--help"])
    out = capsys.readouterr().out
    assert [name for name in ("--up", "--stage", "paper_128", "mlflow", "--ckpt_dir") if name not in out] == []


@pytest.mark.parametrize("base", ["train", "inference", "evaluate", "preprocess"])
def test_every_overlay_is_found(base):
    names = {path.stem for path in CONFIGS.glob("*.yaml")}
    assert set(overlays(base)) < names
    assert ("mlflow" in overlays(base)) == (base == "train")


def test_help_and_typing_errors_wait_for_no_library():
    """PyTorch and MONAI take ten seconds; the line is there before them, in any folder."""
    lines = [
        "",
        "smaple",
        "sample --show",
        "sample --help",
        "train --help all",
        "train D",
        "train nowhere C",
        "demo -n x",
    ]
    check = f"""
import contextlib, runpy, sys
for line in {lines}:
    sys.argv = ["prdit", *line.split()]
    with contextlib.suppress(SystemExit):
        runpy.run_path({str(PRDIT)!r}, run_name="__main__")
assert not {{"torch", "monai", "ignite"}} & set(sys.modules)"""
    subprocess.run([sys.executable, "-c", check], check=True, capture_output=True, env={**os.environ, "PYTHONPATH": ""})


def test_a_run_says_what_counts_and_no_more(trained, capsys):
    """Before, after, next; nothing of MONAI's own. Repeated, it does nothing. A plan leaves nothing behind."""
    words = ["sample", str(trained / "ckpt"), "o", "-n", "2", "--num_inference_steps", "2", "--device", "cpu"]
    run(["plan", *words])
    told = capsys.readouterr().out
    assert "samples 2 volumes of 16³ voxels of 20 mm" in told and "calculated" in told and "next" not in told
    assert not Path("o").exists()
    run(words)
    out, error = capsys.readouterr()
    lines = out.splitlines()
    assert lines[0].startswith("samples 2 volumes of 16³ voxels of 20 mm, 2 network calls each, 1 at a time")
    assert "million parameters" in lines[1] and "CPU cores" in lines[1] and lines[1].endswith("-> o/")
    assert (
        lines[2].startswith("2 of 2 volumes written to o") and lines[-1] == "next: prdit evaluate o REPORT --real DATA"
    )
    assert len(lines) <= 4 and "\r" not in error and "WARN" not in out + error and "INFO" not in out + error
    run(words)
    assert "2 of 2 volumes are in o already" in capsys.readouterr().out


def test_a_run_that_ends_early_ends_prdit(trained, capsys):
    with assert_refused("memory_gb is 0.1"):  # the hook that the run has set makes one line of it
        run(["sample", str(trained / "ckpt"), "o", "--memory_gb", "0.1", "--device", "cpu"])
    assert sys.excepthook is not sys.__excepthook__
    assert "next" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("train D C", "next: prdit sample C/model.pt OUT"),
        ("train D C --stage 2", "next: prdit sample C/model.pt OUT"),
        ("train D C --stage 1", "next: prdit train --dataset_dir D --ckpt_dir C --stage 2"),
        ("train --ckpt_dir C --stage 1", "next: prdit train --ckpt_dir C --stage 2"),
        ("train D C --with train_autoencoder", "next: prdit train --dataset_dir D --ckpt_dir C --with train_latent"),
        ("train D C --with train_gan", "next: prdit sample C/gan.pt OUT --num_inference_steps 1"),
        ("train D C --with train_wavelet", "next: prdit sample C/wavelet.pt OUT --with ddpm_sampler"),
        ("train D C --dry_run", None),
        ("train D C --dry_run True", None),
    ],
)
def test_what_is_told_to_type_next_fits_what_was_made(words, said, monkeypatch, tmp_path, capsys):
    """Weights of stage 1 are not sampled, and a dry run has made nothing."""
    monkeypatch.chdir(tmp_path)
    Path("D").mkdir()
    monkeypatch.setattr("scripts.commands.main.start", lambda one, verbose: 0)
    monkeypatch.setattr("scripts.commands.main.mark_finished", lambda one: None)
    run(words.split())
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("next")]
    assert lines == ([said] if said else [])


def test_finished_stages_are_left_alone(monkeypatch, tmp_path, capsys):
    """The same command goes on with what is not finished; other settings train on."""
    started = []

    def pretend(one, verbose):
        started.append(one.stage)
        one.weights().parent.mkdir(exist_ok=True)
        one.weights().touch()
        return 0

    monkeypatch.setattr("scripts.commands.main.start", pretend)
    Path("D").mkdir()
    run(["train", "D", "C", "--stage", "1"])
    assert started == ["local"]
    run(["train", "D", "C"])
    run(["train", "D", "C"])
    assert started == ["local", "model"]
    assert "finished already: C/model.pt" in capsys.readouterr().out
    run(["train", "D", "C", "--lr", "1.0e-4"])
    assert started[-2:] == ["local", "model"]
    assert json.loads((tmp_path / "C" / ".model.finished").read_text())[1]["lr"] == "1.0e-4"


def test_next_comes_after_a_data_set_with_rejected_scans_too(monkeypatch, capsys):
    monkeypatch.setattr("scripts.commands.main.start", lambda one, verbose: 2)
    Path("S").mkdir()
    for made in (False, True):  # all scans rejected, or some
        with pytest.raises(SystemExit) as end:
            run(["prepare", "S", "D"])
        assert end.value.code == 2 and ("prdit train D WEIGHTS" in capsys.readouterr().out) == made
        Path("D").mkdir(exist_ok=True)
        Path("D", "dataset.json").touch()
    monkeypatch.setattr("scripts.commands.main.start", lambda one, verbose: 1)
    with pytest.raises(SystemExit) as end:
        run(["prepare", "S", "D"])
    assert end.value.code == 1 and "next" not in capsys.readouterr().out


def test_stage_2_is_planned_before_stage_1_is_there(capsys, tmp_path):
    first, second = shown(capsys, "plan", "train", "D", "C")
    assert first == (TRAIN, {"dataset_dir": "D", "ckpt_dir": "C", "dry_run": "True"})
    assert second[0] == TRAIN and second[1]["depth"] == "6" and second[1]["stage"] == "model"
    assert float(second[1]["lr"]) == 1e-3 and "local_ckpt" not in second[1]
    assert second[1]["trains"] == "stage 2 (the transformer)"
    assert shown(capsys, "train", "D", "C", "--dry_run") == [first, second]
    assert shown(capsys, "plan", "train", "D", "C", "--grid", "32")[1][1]["grid"] == "32"
    (tmp_path / "C").mkdir()
    (tmp_path / "C" / "local.pt").touch()
    assert shown(capsys, "plan", "train", "D", "C")[1] == (GLOBAL, first[1])
    assert "not there yet" in refused(capsys, "plan", "train", "D", "C", "--up", "2", "--show")
    assert "plan is for" in refused(capsys, "plan", "export", "a.pt", "b.pt", "--show")
