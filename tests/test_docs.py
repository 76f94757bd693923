"""What the docs tell users to type: every command parses, its files exist, and its settings are settings."""

import inspect
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import monai.bundle
import numpy as np
import pytest
import yaml
from monai.bundle import ConfigParser

from scripts.data import chest_phantom
from scripts.inferers import save_volume

ROOT = Path(__file__).resolve().parents[1]
PAGES = [*ROOT.glob("*.md"), *(ROOT / "bundle" / "docs").glob("*.md")]
OF_MONAI = set(inspect.signature(monai.bundle.run).parameters) - {"override"}


def commands(page):
    """Each command line in a page's code, in order."""
    text = page.read_text()
    blocks = re.findall(r"^```\w*\n(.*?)^```", text, re.M | re.S)
    inline = re.findall(r"`((?:torchrun|python|make) [^`]+)`", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S))
    lines = [line.split(" #")[0].strip() for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    typed = [re.sub(r"^PYTHONPATH=\S+ ", "", line).rstrip(" …") for line in lines + inline]
    return [line for line in typed if re.match(r"(torchrun|python|make) ", line)]


ALL = [pytest.param(line, id=f"{page.name}-{line[:40]}") for page in PAGES for line in commands(page)]


def arguments(tokens):
    """Positional arguments and settings after `monai.bundle FUNCTION`."""
    positional, given, rest = [], {}, list(tokens)
    while rest:
        token = rest.pop(0)
        if token.startswith("--"):
            given[token[2:]] = rest.pop(0)
        else:
            positional.append(token)
    return positional, given


def config_stack(value):
    """Paths of `--config_file`, which may be a list."""
    names = yaml.safe_load(value) if value.startswith("[") else [value]
    return [ROOT / name for name in names]


def check_run(tokens):
    positional, given = arguments(tokens)
    files = config_stack(given["config_file"])
    assert [file for file in files if not file.is_file()] == []
    config = ConfigParser()
    config.read_config([str(file) for file in files])
    assert [name for name in positional or ["run"] if name not in config] == []
    assert [name for name in given if name not in OF_MONAI and name not in config] == []


@pytest.mark.parametrize("line", ALL)
def test_every_command_can_be_typed(line):
    tokens = shlex.split(line)
    if "monai.bundle" in tokens:
        function, *rest = tokens[tokens.index("monai.bundle") + 1 :]
        if function == "run":
            return check_run(rest)
        known = inspect.signature(getattr(monai.bundle, function)).parameters
        _, given = arguments(rest)
        takes_settings = any(parameter.kind is parameter.VAR_KEYWORD for parameter in known.values())
        assert takes_settings or [name for name in given if name not in known] == []
    elif tokens[0] == "make":
        assert re.search(rf"^{tokens[1]}:", (ROOT / "Makefile").read_text(), re.M)
    elif tokens[1] != "-m":
        script = ROOT / tokens[1]
        assert [
            token for token in tokens[2:] if token.startswith("--") and f'"{token}"' not in script.read_text()
        ] == []


def test_commands_are_found():
    """The other tests of this file must have something to look at."""
    assert len(ALL) > 30 and any("torchrun" in parameter.values[0] for parameter in ALL)


def test_a_wrong_command_is_found():
    good = "--config_file bundle/configs/inference.yaml --num_samples 4"
    check_run(shlex.split(good))
    for bad in (good.replace("num_samples", "num_sample"), good.replace("inference", "infer"), f"sample {good}"):
        with pytest.raises(AssertionError):
            check_run(shlex.split(bad))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text()):
        assert target.startswith("https://") or (page.parent / target).exists(), target


TINY_DATA = {"size": 32, "spacing": 10, "num_workers": 1}
TINY_NETWORK = {
    "grid": [16, 16, 16], "hidden_size": 24, "num_heads": 4, "patch_size": 6, "stride": 4, "local_patch_size": 4,
    "local_stride": 2, "local_window": 0, "batch_size": 2, "max_epochs": 1, "num_validation_times": 3,
}  # fmt: skip
TINY = {
    "preprocess": TINY_DATA,
    "train": {**TINY_NETWORK, "depth": 0},
    "train_global": {**TINY_NETWORK, "depth": 2, "val_interval": 1},
    "inference": {"num_inference_steps": 2, "num_samples": 2},
    "evaluate": {"grid": [16, 16, 16], "field_of_view_mm": 320, "metrics": ["HU"], "num_bootstrap": 10, "max_volumes": 2},
}  # fmt: skip


@pytest.mark.slow
def test_the_commands_of_the_readme_from_ct_to_a_report(tmp_path):
    """'Train on your CT' and 'Evaluate', line by line, at a tiny size and from another folder."""
    (tmp_path / "S").mkdir()
    for seed in range(4):
        volume = chest_phantom(seed, (64, 64, 64))
        save_volume(volume, np.diag([5.0, 5.0, 5.0, 1.0]), tmp_path / "S" / f"case{seed}.nii.gz")
    text = (ROOT / "README.md").read_text()
    lines = [line for line in commands(ROOT / "README.md") if "preprocess.yaml" in line or "_dir D" in line]
    sampling = next(line for line in commands(ROOT / "README.md") if "--ckpt_path C/model.pt" in line)
    lines.insert(-1, sampling)
    assert len(lines) == 5 and all(line in text for line in lines)
    for line in lines:
        tokens = shlex.split(line)
        last = config_stack(arguments(tokens[4:])[1]["config_file"])[-1].stem
        settings = [part for name, value in TINY[last].items() for part in (f"--{name}", str(value))]
        tokens = [token.replace("bundle/configs", str(ROOT / "bundle" / "configs")) for token in tokens]
        env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
        process = subprocess.run(
            [sys.executable, *tokens[1:], *settings], cwd=tmp_path, env=env, capture_output=True, text=True
        )
        assert process.returncode == 0, f"{line}\n{process.stderr}"
    assert (tmp_path / "report" / "report.html").is_file() and (tmp_path / "C" / "model.pt").is_file()
