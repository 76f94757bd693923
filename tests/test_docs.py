"""What the docs tell users to type: every command parses, its files exist, and its settings are settings."""

import inspect
import io
import re
import shlex
from contextlib import redirect_stdout
from pathlib import Path

import monai.bundle
import pytest
import yaml
from monai.bundle import ConfigParser

from scripts.commands import run
from scripts.stack import check_stack

ROOT = Path(__file__).resolve().parents[1]
PAGES = [*ROOT.glob("*.md"), *(ROOT / "bundle" / "docs").glob("*.md")]
OF_MONAI = set(inspect.signature(monai.bundle.run).parameters) - {"override"} | {"help"}


def commands(page):
    """Each command line in a page's code, in order."""
    text = page.read_text()
    blocks = re.findall(r"^```\w*\n(.*?)^```", text, re.M | re.S)
    inline = re.findall(
        r"`((?:torchrun|python|make|prdit) [^`]+)`", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)
    )
    lines = [line.split(" #")[0].strip() for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    typed = [re.sub(r"^PYTHONPATH=\S+ ", "", line).rstrip(" …") for line in lines + inline]
    typed = [re.sub(r"^python \S*prdit\.py", "prdit", line) for line in typed]
    return [line for line in typed if re.match(r"(torchrun|python|make|prdit)( |$)", line)]


ALL = [pytest.param(line, id=f"{page.name}-{line[:40]}") for page in PAGES for line in commands(page)]


def arguments(tokens):
    """Positional arguments and settings after `monai.bundle FUNCTION`."""
    positional, given, rest = [], {}, list(tokens)
    while rest:
        token = rest.pop(0)
        if token.startswith("--"):
            given[token[2:]] = rest.pop(0) if rest and not rest[0].startswith("--") else True
        else:
            positional.append(token)
    return positional, given


def config_stack(value):
    """Paths of `--config_file`, which may be a list."""
    names = yaml.safe_load(value) if value.startswith("[") else [value]
    return [ROOT / name.replace("bundles/prdit_ct_generation/", "bundle/") for name in names]  # of a download


def check_run(tokens):
    positional, given = arguments(tokens)
    files = config_stack(given["config_file"])
    assert [file for file in files if not file.is_file()] == []
    config = ConfigParser()
    config.read_config([str(file) for file in files])
    check_stack(config.get())
    assert [name for name in positional or ["run"] if name not in config] == []
    assert [name for name in given if name not in OF_MONAI and name not in config] == []


def lines_of_prdit(line):
    """MONAI's commands that a `prdit` command stands for; none for one that runs nothing of MONAI."""
    words = shlex.split(line)[1:]
    if not words or words[0] in ("doctor", "plan") and len(words) == 1 or "--help" in words or "COMMAND" in words:
        return []
    printed = io.StringIO()
    with redirect_stdout(printed):
        run([*words, "--show"])
    return printed.getvalue().splitlines()


@pytest.mark.parametrize("line", ALL)
def test_every_command_can_be_typed(line):
    if line.split()[0] == "prdit":
        for one in lines_of_prdit(line):
            check_run(shlex.split(one.partition("monai.bundle run ")[2]))
        return
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
