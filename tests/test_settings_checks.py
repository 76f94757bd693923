"""Every setting of every command: described, checked before anything is built, and used."""

import importlib.util
import sys

import monai.bundle
import pytest
import torch
import yaml
from bundle_runs import CONFIGS, config_files
from monai.bundle import ConfigParser

from scripts.errors import root_cause
from scripts.output.writers import WRITERS
from scripts.schedulers import PROCESSES, SOLVERS, SPACINGS
from scripts.schedulers.process import TRAINING_TIMES
from scripts.settings import choices
from scripts.settings.checks import convert_settings
from scripts.settings.description import SETTINGS
from scripts.settings.kinds import (
    FILE,
    FILE_OR_HUB,
    FOLDER,
    INPUT,
    INPUT_FILE,
    INPUT_FOLDER,
    INPUT_WEIGHTS,
    INPUTS,
    NAME,
    NEW_WEIGHTS,
    READERS,
    SWITCH,
    TEXT,
    WINDOW,
    choice,
    lengths,
    maybe,
    named,
    number,
    only,
    several,
    sides,
    whole,
)
from scripts.settings.reach import described_settings, reached
from scripts.spaces import SPACES

ALONE = (
    "train", "inference", "evaluate", "preprocess", "export", "export_dicom", "import_official", "tables", "view", "review", "review_score"
)  # fmt: skip
STACKS = (
    *((name,) for name in ALONE),
    ("train", "train_global"),
    ("train", "train_global", "route_tokens", "muon"),
    ("train", "finetune", "drop_tokens", "random_offset"),
    ("train", "distill", "muon"),
    ("train", "finetune"),
    ("train", "train_new_local"),
    ("train", "train_wavelet"),
    ("train", "train_gan"),
    ("inference", "ddpm_sampler"),
    ("train", "train_high_resolution"),
    ("train", "train_high_resolution", "finetune_high_resolution"),
    ("train", "train_without_local", "paper_128", "paper_rad_128"),
    ("train", "train_high_resolution", "paper_up_128", "paper_up_256"),
    ("train", "train_high_resolution", "finetune_high_resolution", "paper_finetune_256"),
    ("train", "train_global", "flow_matching", "paper_128", "mlflow", "multi_gpu"),
    ("inference", "inference_high_resolution"),
    ("inference", "paper_sampler"),
    ("evaluate", "totalsegmentator"),
    ("evaluate", "wscore"),
    ("evaluate", "wscore", "sampling_sweep"),
)
NEEDED = {
    "ckpt_path",
    "output_path",
    "official_ckpt",
    "source_dir",
    "dataset_dir",
    "residual_ckpt",
    "backbone_ckpt",
    "finetune_from",
    "distill_from",
    "output_dir",
    "answers",
    "key_file",
}  # null, to be given
STRUCTURE = {"initialize", "imports", "dataset_dir"}  # inference's dataset_dir is MONAI's


def merged(stack):
    parser = ConfigParser()
    parser.read_config(config_files(*stack))
    return parser


def test_names_to_choose_from_are_those_that_there_are():
    there = {
        "SOLVERS": SOLVERS,
        "SPACINGS": SPACINGS,
        "PROCESSES": PROCESSES,
        "TRAINING_TIMES": TRAINING_TIMES,
        "ENCODINGS": (*SPACES, "latents"),
    }
    for name, names in {**there, "WRITERS": WRITERS}.items():
        assert getattr(choices, name) == tuple(names)


def is_literal(value):
    if isinstance(value, list):
        return all(map(is_literal, value))
    return not isinstance(value, dict) and not (isinstance(value, str) and value.startswith(("$", "@")))


@pytest.mark.parametrize("name", sorted(path.stem for path in CONFIGS.glob("*.yaml")))
def test_every_setting_of_a_config_file_is_described(name):
    config = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())
    known = {setting for described in SETTINGS.values() for setting in described}
    literal = {key for key, value in config.items() if is_literal(value) and not key.startswith("+")}
    assert literal - known - STRUCTURE == set()


def test_what_is_described_is_a_setting():
    for name, described in SETTINGS.items():
        config = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())
        assert set(described) - set(config) == set(), name
        assert all(setting.sentence and setting.kind.words for setting in described.values())


@pytest.mark.parametrize("stack", STACKS, ids="+".join)
def test_defaults_are_allowed_and_have_an_effect(stack, tmp_path, monkeypatch):
    """What the config files say passes their own description; what nothing refers to is a setting of another stack."""
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "high_resolution.pt").touch()  # where training leaves them
    monkeypatch.chdir(tmp_path)
    parser = merged(stack)
    described = described_settings(parser.config)
    plain = {name: one for name, one in described.items() if is_literal(parser[name])}
    plain = {name: one for name, one in plain.items() if parser[name] is not None or name not in NEEDED}
    before = {name: parser[name] for name in plain}
    convert_settings(parser, plain)
    assert {name: parser[name] for name in plain} == before
    if stack in [(name,) for name in ALONE]:
        assert set(described) - reached(parser.config) == set()


OTHER_READ = {
    "export": "ckpt_path",
    "export_dicom": "source_dir",
    "preprocess": "source_dir",
    "import_official": "official_ckpt",
}


@pytest.mark.parametrize("stack", STACKS, ids="+".join)
def test_what_is_read_has_to_be_there(stack):
    parser = merged(stack)
    read = [*parser.config.get("places", {}).get("read", []), OTHER_READ.get(stack[0])]
    read = parser["read_places"] if "read_places" in parser else read
    described = described_settings(parser.config)
    names = set(read) & set(described) - {"local_ckpt"}  # which stage 1 makes, as its error says
    assert names
    for name in names:
        with pytest.raises(ValueError):
            described[name].kind.convert("nowhere")


WRONG = ("x", "", [], {}, [[]], float("nan"), float("inf"), -(10**31), 10**31, {"a": [1]}, object())


@pytest.mark.parametrize(
    ("kind", "right", "wrong"),
    [
        (
            SWITCH,
            {"false": False, "no": False, "off": False, "True": True, "yes": True, 0: False, True: True},
            [2, None],
        ),
        (whole(1, 9), {1: 1, 9: 9, "3": 3, 4.0: 4}, [0, 10, 1.5, True, False, None, "1.5", [1]]),
        (number(0, 1), {0: 0.0, 1: 1.0, "1e-4": 1e-4, 0.5: 0.5}, [-0.1, 1.1, True, None, [0.5], "half"]),
        (number(above=0, below=1), {0.5: 0.5}, [0, 1]),
        (number(above=0), {1e30: 1e30}, [0, 1e31, "2" * 300]),
        (
            sides(1, 99),
            {16: [16] * 3, (1, 2, 3): [1, 2, 3]},
            [0, 100, [16, 16], [16.5] * 3, [1] * 4, True, None, "64x64"],
        ),
        (lengths(1, 500), {320: 320.0, (1, 2, 3.5): [1, 2, 3.5]}, [0, 0.9, -1, 501, [1, 2], [1, 2, 0], True, None]),
        (
            READERS,
            {3: 3, "3": 3, "x": ["x"], "['Ana','Ben']": ["Ana", "Ben"], ("a", 2): ["a", "2"]},
            [0, "0", 101, True, 1.5, None, [""]],
        ),
        (
            WINDOW,
            {(-1000, 1000): [-1000, 1000], (0, 10): [0, 10]},
            [[1000, -1000], [0, 0], [0, 9.9], [0], 1000, [-1, 0, 1], [True, 200], None],
        ),
        (choice("a", "b"), {"a": "a"}, ["c", "A", 1, None, ["a"]]),
        (several(whole(2, 9)), {4: [4], (4, 8): [4, 8]}, [1, [4, 1], None, True]),
        (maybe(whole(1, 9)), {None: None, "null": None, 2: 2}, [0, "None"]),
        (TEXT, {"x": "x", 2025: "2025"}, [True, None, 1.5, "  ", "a\0b", "a\nb", ["x"]]),
        (FOLDER, {2025: "2025", "a b": "a b", "ü": "ü", "~": str}, [True, None, 1.5, "  ", "a\0b", "a::b", ["x"]]),
        (
            INPUTS,
            {".": ["."], "[., /]": [".", "/"], (__file__, "."): [__file__, "."]},
            [[], None, "none", [".", "none"]],
        ),
        (INPUT_WEIGHTS, {".": "."}, ["none.pt", __file__, "/dev/null", "", None]),
        (INPUT_FILE, {__file__: __file__, ".": "."}, ["none", "", None]),  # what lies in a folder is told later
        (INPUT, {".": ".", __file__: __file__}, ["none", "", None]),
        (INPUT_FOLDER, {".": "."}, ["none", __file__, "", None]),
        (FILE_OR_HUB, {"hub": "hub", __file__: __file__}, ["none", "Hub"]),
        (NAME, {"local": "local", 7: "7", "a.b-c": "a.b-c"}, ["a/b", "a\\b", ".hidden", "n" * 101, "", None]),
        (only(0, "0"), {0: 0}, [1, -1, None, True]),
        (FILE, {"a.pt": "a.pt"}, [True, None, {}]),
        (NEW_WEIGHTS, {"a.pt": "a.pt"}, ["a", "a.json", ".", None]),
        (
            named(FOLDER, "{'a': 'b'}"),
            {"{'a': x/b.pt}": {"a": "x/b.pt"}},
            ["{'a': ", "a", {}, {"b": None}, {"a": ""}, ["a"]],
        ),
    ],
    ids=lambda value: getattr(value, "words", None),
)
def test_a_kind_takes_what_is_right_alone(kind, right, wrong):
    for given, taken in right.items():
        result = kind.convert(list(given) if isinstance(given, tuple) else given)
        assert (result == taken and type(result) is type(taken)) if taken is not str else not result.startswith("~")
    names = ("x", 10**31, -(10**31)) if kind in (TEXT, FILE, FOLDER, NAME) else ("x",) if kind is READERS else ()
    for given in [*wrong, *(value for value in WRONG if not (isinstance(value, (str, int)) and value in names))]:
        with pytest.raises(ValueError):
            kind.convert(given)


def run(stack, monkeypatch, *words, **settings):
    """As `python -m monai.bundle run --config_file STACK WORDS`, where Fire has read the words as `settings`."""
    monkeypatch.setattr(sys, "argv", ["monai.bundle", "run", *words])
    monai.bundle.run("training" if stack[0] == "train" else "run", config_file=config_files(*stack), **settings)


def refusal(stack, monkeypatch, *words, **settings):
    with pytest.raises((RuntimeError, ValueError)) as raised:
        run(stack, monkeypatch, *words, **settings)
    line = str(root_cause(raised.value))
    assert isinstance(root_cause(raised.value), ValueError) and "\n" not in line
    return line


@pytest.mark.parametrize(
    ("stack", "settings", "words"),
    [
        (("inference",), {"solvr": "heun"}, ["no setting solvr", "did you mean solver?"]),
        (("train",), {"remove_table": True}, ["no setting remove_table"]),
        (("train",), {"max_epoch": 1}, ["no setting max_epoch", "max_epochs"]),
        (("evaluate", "wscore"), {"metrics": ["FID"]}, ["metrics has no effect with evaluate.yaml + wscore.yaml"]),
        (("train", "train_high_resolution"), {"depth": 4}, ["depth has no effect"]),
        (("inference",), {"dataset_dir": "x"}, ["dataset_dir has no effect"]),
        (("inference",), {"num_samples": "four"}, ["num_samples must be a whole number from 1", "'four'"]),
        (
            ("train",),
            {"hu_window": [1000, -1000]},
            ["hu_window must be two numbers, the lower one first", "[1000, -1000]"],
        ),
        (("train",), {"seed": "abc"}, ["seed must be a whole number", "'abc'"]),
        (("train", "train_gan"), {"discriminator_lr": 0}, ["discriminator_lr must be a number more than 0"]),
        (("train",), {"max_grad_norm": 0}, ["max_grad_norm must be a number more than 0", "got 0"]),
        (("train",), {"lr_decay_to": -1}, ["lr_decay_to must be a number at least 0", "got -1"]),
        (("train",), {"betas": 0.9}, ["betas must be two numbers", "0.9"]),
        (("export",), {"dtype": "int8"}, ["dtype must be one of float32, bfloat16, float16", "int8"]),
        (("export",), {}, ["ckpt_path is needed: give --ckpt_path, a file that exists"]),
        (
            ("preprocess",),
            {"source_dir": "x", "dataset_dir": "y", "size": 1.5},
            ["size must be one or three whole numbers from 8", "1.5"],
        ),
        (
            ("train", "finetune"),
            {"local_window": 2, "finetune_from": "."},
            ["local_window must be 0 in this stage", "got 2"],
        ),
        (("evaluate", "sampling_sweep"), {"checkpoints": "$None"}, ["checkpoints is needed"]),
        (("wscore",), {"lr": 1.0}, ["wscore.yaml is an overlay of evaluate.yaml"]),
        (("train",), {"max_steps": 9, "max_epochs": 2}, ["max_steps has no effect beside max_epochs"]),
        (("inference",), {"output_dir": "@x"}, ["output_dir '@x' cannot be evaluated", "./"]),
        (("inference",), {"seed": "$1/0"}, ["seed '$1/0' cannot be evaluated (ZeroDivisionError)"]),
        (("train",), {"num_phantoms": 9, "dataset_dir": "/"}, ["num_phantoms has no effect beside dataset_dir"]),
        (("evaluate",), {"num_phantoms": 9, "real_dir": "/"}, ["num_phantoms has no effect beside real_dir"]),
        (("train",), {"hu_window": [1, 2]}, ["hu_window must be", "10 apart or more", "[1, 2]"]),
        (("train",), {"ckpt_dir": "~nobody_here/x"}, ["ckpt_dir must be the name of a folder, got '~nobody_here/x'"]),
        (("train",), {"init_id": "a.yaml"}, ["a.yaml is no init_id of the config", "several config files"]),
    ],
)
def test_what_is_wrong_is_one_line_before_anything_is_built(stack, settings, words, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    line = refusal(stack, monkeypatch, **settings)
    assert [word for word in words if word not in line] == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "read", "folder"),
    [
        (["--output_dir", "2025"], 2025, "2025"),
        (["--output_dir=1e3"], 1000.0, "1e3"),
        (["--output-dir", "a,b"], ("a", "b"), "a,b"),
        (["--output_dir", "out#2"], "out", "out#2"),
        (["--output_dir", "x/out#1 @b"], "x/out#1 @b", "x/out#1 @b"),
        (["--output_dir", "'5'"], "5", "5"),
        (["--output_dir", "[1]"], [1], "[1]"),
        (["--output_dir", "--overwrite"], True, None),
        (["--output_dir", ""], "", None),
        ([], "from/python#1", "from/python#1"),
    ],
)
def test_paths_are_the_text_that_was_typed(words, read, folder, monkeypatch, tmp_path, capsys):
    """Fire makes numbers and lists of words, and MONAI '::' of '#'."""
    monkeypatch.chdir(tmp_path)
    show = ["$print('taken:', repr(@output_dir))"]
    settings = {"output_dir": read, "run": [{"_target_": "scripts.settings.checks.check_settings"}, *show]}
    if folder is None:
        assert "output_dir must be the name of a folder" in refusal(("inference",), monkeypatch, *words, **settings)
        return
    run(("inference",), monkeypatch, *words, **settings)
    assert f"taken: {folder!r}" in capsys.readouterr().out


def test_tables_of_paths_are_the_text_that_was_typed(monkeypatch, tmp_path, capsys):
    """In the names, too; what Fire reads of them is changed in place by MONAI."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x#1").mkdir()
    checks = {"_target_": "scripts.settings.checks.check_settings"}
    words = ["--generated_dirs", "{'a#1':'x#1','b@c':'x#1'}"]
    read = {"a#1": "x#1", "b@c": "x#1"}
    run(
        ("evaluate",), monkeypatch, *words, generated_dirs=dict(read), run=[checks, "$print('taken:', @generated_dirs)"]
    )
    assert f"taken: {read}\n" in capsys.readouterr().out


def test_the_word_null_is_null(monkeypatch, tmp_path, capsys):
    """As the messages say it; Fire and MONAI know None alone."""
    monkeypatch.chdir(tmp_path)
    show = [{"_target_": "scripts.settings.checks.check_settings"}, "$print('taken:', @eta, @grid, @predictor_ratio)"]
    run(("inference", "paper_sampler"), monkeypatch, eta="null", grid="null", run=show)
    assert "taken: None None 2.0\n" in capsys.readouterr().out
    assert several(maybe(number(0, 1))).convert(["null", 1]) == [None, 1.0]


def test_words_for_switches_and_one_number_for_a_grid_reach_what_is_built(monkeypatch, tmp_path):
    parser = merged(("train",))
    parser.config |= {"grid": "16", "compile": "off", "lr": "1e-4", "device": "cpu", "ckpt_dir": "~/c", "log_dir": "l"}
    monkeypatch.setenv("HOME", str(tmp_path))
    described = described_settings(parser.config)
    convert_settings(parser, {name: one for name, one in described.items() if name != "log_dir"})
    assert parser["grid"] == [16, 16, 16] and parser["compile"] is False and parser["lr"] == 1e-4
    assert parser["device"] == torch.device("cpu") and parser["ckpt_dir"] == str(tmp_path / "c")


@pytest.mark.parametrize(
    ("stack", "typed", "expected"),
    [
        (("inference", "paper_sampler"), {"eta": 0.5}, "0.5 None"),
        (("inference", "paper_sampler"), {"eta": 0.5, "predictor_ratio": "$None"}, "0.5 None"),
        (("inference", "paper_sampler"), {"eta": "$None"}, "None 2.0"),
        (("inference", "paper_sampler"), {"eta": 0.5, "predictor_ratio": 3}, "0.5 3.0"),  # which the solver refuses
        (("evaluate", "sampling_sweep"), {"eta": [0.25, 0.5]}, "[0.25, 0.5] [None]"),
    ],
)
def test_a_setting_that_was_typed_takes_the_place_of_the_recipe_s(
    stack, typed, expected, monkeypatch, tmp_path, capsys
):
    monkeypatch.chdir(tmp_path)
    checks = {"_target_": "scripts.settings.checks.check_settings"}
    run(stack, monkeypatch, **typed, run=[checks, "$print('taken:', @eta, @predictor_ratio)"])
    assert f"taken: {expected}\n" in capsys.readouterr().out


def test_help_lists_the_settings_and_starts_nothing(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        run(("evaluate", "wscore"), monkeypatch, help=True)
    printed = capsys.readouterr().out
    assert ended.value.code == 0 and list(tmp_path.iterdir()) == []
    assert "--num_steps" in printed and "5000" in printed and "of each critic" in printed
    assert "--num_bootstrap" not in printed  # has no effect there


def test_the_page_of_settings_is_made_from_the_description():
    spec = importlib.util.spec_from_file_location("settings_page", CONFIGS.parents[1] / "tools" / "settings_page.py")
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    assert tool.PAGE.read_text() == tool.page(), "run: python tools/settings_page.py"
