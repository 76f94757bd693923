"""What a user reads when something outside this bundle is missing or too old."""

import importlib
import json
from pathlib import Path

import monai
import pytest
import torch

from scripts.errors import bundle_root, require_monai, what_to_say


def test_an_older_monai_is_one_line(monkeypatch, one_line):
    require_monai()
    monkeypatch.setattr(monai, "__version__", "1.5.2")
    with pytest.raises(ValueError) as raised:
        require_monai()
    one_line(raised, "MONAI 1.5.2 is too old", "pip install")
    monkeypatch.setattr(monai, "__version__", "1.10.0")  # newer, though not as text
    require_monai()


def test_a_package_that_is_missing_is_one_line():
    with pytest.raises(ModuleNotFoundError) as missing:
        importlib.import_module("a_package_that_nobody_has")
    assert what_to_say(missing.value) == "the Python package a_package_that_nobody_has is not installed"
    absent, _ = monai.utils.optional_import("a_package_that_nobody_has")
    with pytest.raises(monai.utils.OptionalImportError) as optional:
        absent.function()
    line = what_to_say(optional.value)
    assert line is not None and "a_package_that_nobody_has" in line and "\n" not in line


def test_our_own_faults_keep_their_traceback():
    for name in ("scripts.nothing", "scripts.networks.nothing"):
        with pytest.raises(ModuleNotFoundError) as fault:
            importlib.import_module(name)
        assert what_to_say(fault.value) is None
    with pytest.raises(RuntimeError) as fault:
        torch.zeros(2) @ torch.zeros(3)
    assert what_to_say(fault.value) is None


def test_the_metadata_and_setup_cfg_agree_on_versions():
    """metadata.json is what the Model Zoo installs, setup.cfg what this repository does."""
    metadata = json.loads((Path(bundle_root()) / "configs" / "metadata.json").read_text())
    setup = (Path(bundle_root()).parent / "setup.cfg").read_text()
    assert f"torch=={metadata['pytorch_version']}" in setup
    assert f"]=={metadata['monai_version']}" in setup
    assert f"pytorch-ignite=={metadata['required_packages_version']['pytorch-ignite']}" in setup
    assert f"version = {metadata['version']}\n" in setup
