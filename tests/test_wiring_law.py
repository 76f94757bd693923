"""The law of wiring: in every stack, changing a setting changes what is built, or the setting is refused there."""

import importlib
import inspect

import monai.bundle.config_item
import pytest
import yaml
from monai.bundle import ConfigParser
from test_settings_checks import CONFIGS, STACKS, is_literal, merged

from scripts.settings.kinds import COMPONENT
from scripts.settings.reach import RUN_IDS, described_settings, reached

OTHERS = (
    3, 7, 0.5, 0.125, 0, True, False, [3, 3, 3], [-3, 3], [0.25, 0.5], "another", ["another"], "rms", "none", "HU", ["HU"], ["nifti"],
    "meta", "sdpa", "euler", "uniform", "quadratic", "noise", "logit_normal", "flow_matching", "cosine_sine", "float32", "layer", "local",
    [3], ["FID"], ["head"], {"a": "b"}, "validation", "training", "lung",
)  # fmt: skip


class Built:
    """What stands for an object: how it was built, or got from another one, in words."""

    def __init__(self, words):
        self.words = words

    def __repr__(self):
        return self.words

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return Built(f"{self}.{name}")

    def __call__(self, *args, **kwargs):
        return Built(f"{self}({args}, {kwargs})")

    def __getitem__(self, key):
        return Built(f"{self}[{key}]")

    def __add__(self, other):
        return Built(f"({self} + {other})")

    def __radd__(self, other):
        return Built(f"({other} + {self})")

    def __mul__(self, other):
        return Built(f"({self} * {other})")

    __rmul__ = __sub__ = __rsub__ = __truediv__ = __rtruediv__ = __mul__

    def __len__(self):
        return 5

    def __iter__(self):
        return iter([Built(f"{self}[0]")])

    def __ge__(self, other):
        return True

    __gt__ = __le__ = __lt__ = __ge__
    __hash__ = object.__hash__


def built(parser):
    """What the run builds, in words, without building it."""
    return "\n".join(repr(parser.get_parsed_content(name)) for name in RUN_IDS if name in parser.config)


def other_value(kind, now):
    """A value that a setting might have instead."""
    if kind is COMPONENT:
        return {"_target_": "another.one"}
    value = next((value for value in OTHERS if kind.allows(value) and value != now), "another")
    return str(value) if kind.verbatim and not kind.many else value


@pytest.mark.parametrize("stack", STACKS, ids="+".join)
def test_changing_a_setting_changes_what_is_built(stack, monkeypatch):
    monkeypatch.setattr(monai.bundle.config_item, "instantiate", lambda path, mode, /, **args: Built(f"{path}({args})"))
    config = merged(stack).config
    for name, value in {"RANK": 0, "WORLD_SIZE": 2, "LOCAL_RANK": 0}.items():
        monkeypatch.setenv(name, str(value))
    unchanged = built(ConfigParser({**config}))
    assert built(ConfigParser({**config})) == unchanged and "Built object" not in unchanged
    used = reached(config)
    for name, setting in described_settings(config).items():
        if name in used:
            changed = built(ConfigParser({**config, name: other_value(setting.kind, config[name])}))
            assert changed != unchanged, name


def components(value):
    """Every component of ours in a config."""
    if isinstance(value, dict) and str(value.get("_target_", "")).startswith("scripts."):
        yield value
    for one in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from components(one)


@pytest.mark.parametrize("name", sorted(path.stem for path in CONFIGS.glob("*.yaml")))
def test_a_default_is_the_same_in_config_and_code_or_has_no_effect_there(name):
    config, neutral = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text()), (None, False, 0, 1)
    for component in components(config):
        module, _, target = component["_target_"].rpartition(".")
        parameters = inspect.signature(getattr(importlib.import_module(module), target)).parameters
        for argument, value in component.items():
            setting = value[1:] if isinstance(value, str) and value.startswith("@") else None
            if argument in parameters and setting in config and is_literal(config[setting]):
                default = parameters[argument].default
                default = list(default) if isinstance(default, tuple) else default
                told = f"{setting} is {config[setting]} in {name}.yaml, {default} in {target}"
                assert default in (inspect.Parameter.empty, config[setting], *neutral), told
