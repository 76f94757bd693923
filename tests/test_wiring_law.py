"""The law of wiring: in every stack, changing a setting changes what is built, or the setting is refused there."""

import monai.bundle.config_item
import pytest
from monai.bundle import ConfigParser
from test_settings_checks import STACKS, merged

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
