"""What a user reads when something outside this bundle is missing or too old."""

import importlib
import json
import logging
import re
import signal
import sys
from pathlib import Path

import monai
import pytest
import torch
from packaging.version import Version

from scripts.errors import bundle_root, report_errors_in_one_line, require_monai, what_to_say


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


PYTHON_FAILS = [
    "int('x')", "a, b = 1, 2, 3", "dict(['a'])", "format('x', 'g')", "float('x')", "bytes([300])",
    "raise ValueError(f'{int(1):d} and {\"x\":d}')",
]  # fmt: skip


@pytest.mark.parametrize("line", PYTHON_FAILS)
def test_what_python_says_about_a_wrong_value_is_no_message_of_ours(line):
    """Only a `raise` in the package is: 'too many values to unpack' names no setting, and is a fault of ours."""
    assert said_in_package(line) is None


def test_what_the_package_raises_is_told_however_it_is_wrapped():
    line = "x must be 1"
    assert said_in_package(f"raise ValueError({line!r})") == line
    assert said_in_package(f"try:\n    int('x')\nexcept ValueError:\n    raise ValueError({line!r}) from None") == line
    assert said_in_package(f"with open(__file__):\n    raise ValueError({line!r})") == line
    assert said_in_package(f"try:\n    raise ValueError({line!r})\nexcept TypeError:\n    pass") == line
    assert said_in_package("raise RuntimeError('x')") is None


def said_in_package(source):
    path = str(Path(bundle_root()) / "scripts" / "part.py")
    with pytest.raises((ValueError, RuntimeError)) as raised:
        exec(compile(source, path, "exec"), {"__file__": __file__})
    return what_to_say(raised.value)


def test_nothing_of_a_program_that_is_not_ours_is_changed():
    """A notebook or a test runs configs in its own process."""

    def state():
        levels = [logging.getLogger(f"ignite.engine.engine.{name}").level for name in ("SupervisedTrainer", "Engine")]
        return sys.excepthook, signal.getsignal(signal.SIGTERM), logging.raiseExceptions, sys.stdout.errors, levels

    before = state()
    report_errors_in_one_line()
    assert state() == before


def test_the_metadata_and_setup_cfg_agree_on_versions():
    """metadata.json is what the Model Zoo installs, setup.cfg what this repository does."""
    metadata = json.loads((Path(bundle_root()) / "configs" / "metadata.json").read_text())
    setup = (Path(bundle_root()).parent / "setup.cfg").read_text()
    pinned = re.search(r"^torch==(.+)$", (Path(bundle_root()).parent / "constraints.txt").read_text(), re.M)
    least, below = re.search(r"^ *torch>=([\d.]+),<([\d.]+)$", setup, re.M).groups()
    assert pinned[1] == metadata["pytorch_version"] and Version(least) <= Version(pinned[1]) < Version(below)
    assert f"]=={metadata['monai_version']}" in setup
    assert f"pytorch-ignite=={metadata['required_packages_version']['pytorch-ignite']}" in setup
    assert f"version = {metadata['version']}\n" in setup
