"""The commands of the docs, typed: each page from its top, from a folder of its own, at tiny sizes."""

import logging
import os
import re
import runpy
import shlex
import shutil
import signal
import subprocess
import sys
from contextlib import nullcontext

import nibabel as nib
import pytest
import torch
from bundle_runs import DATA
from conftest import randomise
from monai.bundle import ConfigParser
from test_docs import PAGES, ROOT, arguments, commands, config_stack, lines_of_prdit
from test_high_resolution_training import HIGH

from scripts.data import chest_phantom, grid_affine
from scripts.interop import official_state_dict
from scripts.networks import build_prdit, preset_settings, save_weights
from scripts.networks.high_resolution import build_high_resolution
from scripts.output import save_volume
from scripts.settings.reach import described_settings, reached

NETWORK = {
    "grid": [16, 16, 16], "hidden_size": 24, "num_heads": 4, "patch_size": 6, "stride": 4, "local_patch_size": 4,
    "local_stride": 2, "local_window": 0, "batch_size": 2, "max_epochs": 1, "num_validation_times": 3,
    "num_phantoms": 4, "num_validation_phantoms": 2, "val_interval": 1, "warmup": 0.5, "num_pictures": 0,
}  # fmt: skip
TINY = {
    "import_official": {"grid": [16, 16, 16], "num_heads": 4, "norm": "layer"},
    "preprocess": {"size": 32, "spacing": 10, "num_workers": 1},
    "train": {**NETWORK, "depth": 0},
    "train_global": {"depth": 3},
    "paper_128": {"lr": 1.0e-3},  # which knows the paper's depths alone
    "train_wavelet": {"channels": 32, "multipliers": [1, 2], "grid": [16, 16, 16]},
    "train_gan": {"channels": 16, "latent_size": 8, "grid": [32, 32, 32]},
    "train_autoencoder": {"channels": 16, "factor": 2, "num_codes": 32, "discriminator_start": 1, "grid": [16, 16, 16]},
    "train_latent": {"channels": 8, "multipliers": [1, 2]},
    "ddpm_sampler": {"num_inference_steps": 2},
    "train_high_resolution": {**HIGH, "max_epochs": 1},
    "inference": {"num_inference_steps": 2, "num_samples": 2},
    "evaluate": {
        "grid": [16, 16, 16], "field_of_view_mm": 320, "metrics": ["HU"], "num_bootstrap": 10, "num_phantoms": 4,
    },
    "wscore": {"num_steps": 2, "batch_size": 2, "critic_channels": [4, 8], "num_seeds": 1, "cache_gb": 0.1},
    "sampling_sweep": {"num_inference_steps": [2, 4], "num_samples": 2},
    "review": {"num_cases": 2},
}  # fmt: skip
TINY_SCRIPTS = {
    "sampling.py": "--steps 1 --preset PRDiT-XS/1 --grid 16 --batch 1 --device cpu",
    "high_resolution.py": "--grid 16 --num_phantoms 16 --local_epochs 1 --global_epochs 1 --refiner_epochs 1 "
    "--num_samples 2 --num_reference 2 --num_validation 1 --num_inference_steps 2",
    "baselines.py": "--budget 1.0e-9 --num_phantoms 8 --num_validation_phantoms 7 --num_samples 7 --critic_steps 1 "
    "--systems PRDiT HA-GAN",
    "faster_training.py": "--budget 1.0e-7 --seeds 0 --arms plain --local_steps 2 --num_phantoms 8 --num_samples 2 "
    "--num_validation_phantoms 2",
    "few_calls.py": "--calls 1 2 --num_samples 4 --num_phantoms 8",
    "fit_steps.py": "--calls 2 --evaluations 2 --num_samples 4 --num_phantoms 8",
    "overhead.py": "--systems HA-GAN --steps 1 --rounds 1",
    "sampler_quality.py": "--calls 2 --num_samples 2 --num_phantoms 2 --samplers euler",
}
NUM_CT = 20  # enough to validate on two
ELSEWHERE = {  # why a command is not typed here
    "make ": "the checks themselves",
    "-m venv": "makes an environment",
    "monai.bundle download": "test_release.py downloads from a server of its own; Hugging Face needs a network",
    "push_to_hf_hub": "needs an account",
    "mlflow.yaml": "test_tracking.py, where mlflow is installed",
    "settings_page.py": "test_settings_checks.py compares the page",
    "view_page.py": "test_view.py; needs a browser",
    "side_by_side.py": "test_pictures.py",
    "onnx_export": "test_release.py, where onnx is installed",
    "review_score.yaml": "test_review.py, with answers of readers",
    "totalsegmentator.yaml": "test_organs.py, with a stand-in",
    **dict.fromkeys(["train D M/", "train E R/", "/paper_rad", "/paper_up"], "test_bundle.py trains the recipes"),
    "prdit tables": "test_tables.py",
    "--astra": "test_evaluation.py, with a stand-in; needs a package of 190 MB",
}
CT_FOLDERS, WEIGHTS = ("source_dir", "beside_dir", "dataset_dir", "real_dir", "generated_dir"), (
    "ckpt_path",
    "backbone_ckpt",
    "finetune_from",
    "residual_ckpt",
    "distill_from",
)
MANY_PROCESSES, SCRIPT = "torchrun", "python benchmarks/"


def typed_here(page, *kinds):
    """Commands of a page that no other test runs, of the kinds wanted; '' is a single process of the bundle."""
    lines = [line for line in commands(page) if not any(part in line for part in ELSEWHERE)]
    of_kind = {line: next((k for k in (MANY_PROCESSES, SCRIPT) if line.startswith(k)), "") for line in lines}
    return [line for line in dict.fromkeys(lines) if of_kind[line] in kinds]


def as_monai_types(line):
    """A command of `prdit` as MONAI's commands in the folder; test_prdit.py types it as it is."""
    return [one.replace(f"{ROOT}/", "") for one in lines_of_prdit(line)] if line.startswith("prdit") else [line]


LONG_LINES = [
    pytest.param(line, id=re.sub(r"\W+", "-", line)[:150])
    for page in PAGES
    for line in typed_here(page, MANY_PROCESSES, SCRIPT)
]


class Folder:
    """A folder that looks like the repository to a command and has what the command is told to read."""

    def __init__(self, path):
        self.path = path
        (path / "bundle" / "models").mkdir(parents=True)
        for name in ("bundle/configs", "bundle/scripts", "benchmarks"):
            (path / name).symlink_to(ROOT / name)
        (path / "bundles").mkdir()
        (path / "bundles" / "prdit_ct_generation").symlink_to(ROOT / "bundle")  # as it is downloaded
        for name in ("model.pt", "model.json"):
            shutil.copy(ROOT / "bundle" / "models" / name, path / "bundle" / "models")

    def ready(self, line):
        """Makes what the command reads and none before it has made; returns its words, with tiny settings after them."""
        tokens = shlex.split(line)
        if line.startswith(SCRIPT):
            for name in re.findall(r"[= ](\w+/model\.pt)", line):
                self.make_weights(name)
            return tokens + shlex.split(TINY_SCRIPTS[tokens[1].split("/")[1]])
        positional, given = arguments(tokens[tokens.index("monai.bundle") + 1 :])
        if positional[0] != "run":
            return tokens
        stack = [path.stem for path in config_stack(given["config_file"])]
        self.scaled = "intensity" in given
        for name, value in given.items():
            if name in CT_FOLDERS and not (name == "dataset_dir" and "preprocess" in stack):
                self.make_ct(value)
            elif name in WEIGHTS and stack != ["import_official"]:
                self.make_weights(value)
            elif name == "official_ckpt":
                self.make_official(value, high_resolution="factor" in given)
            elif name in ("generated_dirs", "checkpoints"):
                for one in re.findall(r": ([\w.]+)", value):
                    self.make_ct(one) if name == "generated_dirs" else self.make_weights(one)
        tiny = {} if "train_high_resolution" in stack else TINY.get(stack[0], {})
        for name in stack[1:]:
            tiny = {**tiny, **TINY.get(name, {})}
        config = ConfigParser()
        config.read_config([str(path) for path in config_stack(given["config_file"])])
        used, described = reached(config.config), described_settings(config.config)
        # what the page gives as 1 is as small as can be
        tiny = {
            name: value
            for name, value in tiny.items()
            if name in used and given.get(name) != "1" and not set(described[name].not_beside) & set(given)
        }
        if given.get("ckpt_path", "").endswith("gan.pt"):  # which knows how many calls it takes
            tiny.pop("num_inference_steps")
        if "max_steps" in given and "max_epochs" in tiny:  # one of them alone is typed
            tiny["max_steps"] = tiny.pop("max_epochs")
        if stack[0] == "evaluate" and "output_dir" not in given:  # the page says "…"
            self.make_ct("B")
            tiny |= {"output_dir": "report", "generated_dir": "B"}
        return tokens + [word for name, value in tiny.items() for word in (f"--{name}", str(value))]

    def make_ct(self, name):
        folder = self.path / name
        if not folder.exists():
            folder.mkdir()
            for seed in range(NUM_CT):
                seed += NUM_CT * sum(name.encode())  # other volumes in each folder
                volume = chest_phantom(seed, [32] * 3, [320.0] * 3)
                if self.scaled:
                    image = nib.Nifti1Image(
                        (volume.clip(-1000, 1000) + 1000) / 2000, grid_affine([32] * 3, [320.0] * 3)
                    )
                    nib.save(image, folder / f"case{seed}.nii.gz")
                    continue
                save_volume(volume, grid_affine([32] * 3, [320.0] * 3), folder / f"case{seed}.nii.gz")

    def make_weights(self, name):
        path = self.path / name
        if not path.exists():
            path.parent.mkdir(exist_ok=True)
            sizes = {name: NETWORK[name] for name in ("hidden_size", "num_heads", "patch_size", "stride")}
            local = {name: NETWORK[name] for name in ("local_patch_size", "local_stride")}
            network = randomise(
                build_prdit(**preset_settings("PRDiT-XS/3", **sizes, **local, parametrization="skip")), len(name)
            )
            data = {"grid": NETWORK["grid"], "field_of_view_mm": 320.0, "hu_window": [-1000.0, 1000.0]}
            process = {"name": "cosine_sine", "num_train_timesteps": 1000, "noise_std": 1.0}
            save_weights(network, path, {"stage": "model", "process": process, "data": data})

    def make_official(self, name, high_resolution):
        sizes = {"hidden_size": 24, "num_heads": 4, "patch_size": 4, "stride": 2}
        if high_resolution:
            network = build_high_resolution({**sizes, "depth": 3}, 2, 24, 4, 2)
            torch.save(official_state_dict(network), self.path / name)
        else:
            shutil.copy(DATA / "official_prdit_tiny.pt", self.path / name)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The folder of a page, as the current one; what a command leaves in this process is taken back."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    monkeypatch.setattr(logging, "raiseExceptions", logging.raiseExceptions)
    sigterm = signal.getsignal(signal.SIGTERM)
    handlers, level = logging.root.handlers[:], logging.root.level
    yield Folder(tmp_path)
    signal.signal(signal.SIGTERM, sigterm)
    logging.root.handlers[:] = handlers
    logging.root.setLevel(level)


@pytest.mark.parametrize("page", [page for page in PAGES if typed_here(page, "")], ids=lambda page: page.name)
def test_the_commands_of_a_page_run_one_after_another(page, folder, monkeypatch):
    for line in typed_here(page, ""):
        for one in as_monai_types(line):  # a folder of weights is there by now
            words = folder.ready(one)
            monkeypatch.setattr(sys, "argv", words[words.index("monai.bundle") :])
            print(shlex.join(words))
            with pytest.raises(SystemExit) if {"--help", "--dry_run"} & set(words) else nullcontext():
                runpy.run_module("monai.bundle", run_name="__main__", alter_sys=True)
    written = [path.name for path in folder.path.rglob("*") if path.is_file()]
    if page == ROOT / "README.md":
        assert {"local.pt", "model.pt", "dataset.json", "report.html", "seed_000000.nii.gz"} <= set(written)


@pytest.mark.slow
@pytest.mark.parametrize("line", LONG_LINES)
def test_commands_of_many_processes_and_benchmarks_run(line, folder):
    words = folder.ready(line)
    words = [word.replace("--nproc_per_node=8", "--nproc_per_node=2") for word in words]
    launcher = [sys.executable] if words[0] == "python" else [sys.executable, "-m", "torch.distributed.run"]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore", "CUDA_VISIBLE_DEVICES": ""}
    process = subprocess.run([*launcher, *words[1:]], env=env, capture_output=True, text=True)
    assert process.returncode == 0, f"{shlex.join(words)}\n{process.stdout[-2000:]}\n{process.stderr[-2000:]}"


def test_no_excuse_is_stale():
    """What is left to other tests is still on a page."""
    lines = [line for page in PAGES for line in commands(page)]
    assert [part for part in ELSEWHERE if not any(part in line for line in lines)] == []
