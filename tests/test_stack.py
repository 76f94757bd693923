"""Which config files go together: an order that makes no sense is one line that names the right one."""

import itertools
import sys

import pytest
import yaml
from bundle_runs import CONFIGS, assert_refused, config_files, run
from monai.bundle import ConfigParser

from scripts.errors import bundle_root
from scripts.stack import MARK, check_stack

NAMES = sorted(path.stem for path in CONFIGS.glob("*.yaml"))
MARKS = {name: yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())[f"{MARK}{name}"] for name in NAMES}
GOOD = [
    ["train"], ["train", "train_global"], ["train", "finetune"], ["train", "train_new_local"],
    ["train", "train_wavelet"], ["train", "train_gan"], ["train", "train_autoencoder"], ["train", "train_latent"], ["inference", "ddpm_sampler"],
    ["train", "train_high_resolution"], ["train", "train_high_resolution", "finetune_high_resolution"],
    ["train", "train_global", "flow_matching", "paper_128", "mlflow", "multi_gpu"], ["train", "paper_128"],
    ["train", "train_without_local", "paper_128", "paper_64"], ["train", "train_global", "paper_128", "paper_rad_128", "mlflow"],
    ["train", "train_high_resolution", "paper_up_128", "paper_up_256", "multi_gpu"],
    ["train", "train_high_resolution", "finetune_high_resolution", "paper_finetune_256"],
    ["train", "train_global", "paper_128", "route_tokens", "muon", "mlflow", "multi_gpu"], ["train", "finetune", "drop_tokens", "random_offset"], ["train", "distill", "muon", "random_offset"],
    ["train", "finetune", "flow_matching"], ["inference", "flow_matching", "multi_gpu"],
    ["inference", "inference_high_resolution", "paper_sampler", "multi_gpu"], ["evaluate", "wscore", "sampling_sweep"],
    ["evaluate", "totalsegmentator", "sampling_sweep"], ["evaluate", "multi_gpu"], ["preprocess"], ["export"],
    ["export_dicom"], ["import_official"], ["tables"], ["view"], ["review"], ["review_score"],
]  # fmt: skip
ORDERS = [
    (["train_global", "train"], "train.yaml, train_global.yaml"),
    (["finetune", "train"], "train.yaml, finetune.yaml"),
    (["train", "paper_128", "train_global"], "train.yaml, train_global.yaml, paper_128.yaml"),
    (["multi_gpu", "inference"], "inference.yaml, multi_gpu.yaml"),
    (["flow_matching", "inference"], "inference.yaml, flow_matching.yaml"),
    (["train", "multi_gpu", "paper_128"], "train.yaml, paper_128.yaml, multi_gpu.yaml"),
    (["evaluate", "sampling_sweep", "wscore"], "evaluate.yaml, wscore.yaml, sampling_sweep.yaml"),
]
EXCLUDED = [
    ["train", "train_global", "finetune"], ["train", "inference"], ["evaluate", "wscore", "totalsegmentator"],
    ["train", "distill", "drop_tokens"], ["train", "train_gan", "muon"], ["train", "train_latent", "random_offset"],
    ["train", "train_wavelet", "flow_matching"], ["train", "train_high_resolution", "route_tokens"],
    ["train", "finetune", "paper_128"], ["train", "train_new_local", "drop_tokens"],
]  # fmt: skip
ALONE = [
    (["train_global"], "train.yaml"), (["multi_gpu"], "train.yaml or inference.yaml or evaluate.yaml"),
    (["train", "finetune_high_resolution"], "train_high_resolution.yaml"), (["inference", "train_global"], "train.yaml"),
    (["evaluate", "flow_matching"], "train.yaml or inference.yaml"), (["preprocess", "multi_gpu"], "train.yaml or"),
]  # fmt: skip


def check(stack, **settings):
    config = ConfigParser()
    config.read_config(config_files(*stack))
    config.update(settings)  # as of the command line
    check_stack(config.get())


@pytest.fixture(autouse=True)
def one_process(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setattr(sys, "path", [sys.path[0], bundle_root(), *sys.path[1:]])


def test_every_config_has_a_mark_and_is_in_a_good_stack():
    for name in NAMES:
        content = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())
        (mark,) = [key for key in content if key.startswith(MARK)]
        assert mark == f"{MARK}{name}"
        assert ("over" in content[mark]) == (content[mark]["layer"] > 0)
        assert "processes" in content[mark] or content[mark]["layer"] > 0
    assert {name for stack in GOOD for name in stack} == set(NAMES)


@pytest.mark.parametrize("stack", GOOD, ids="-".join)
def test_good_stacks_are_taken(stack):
    check(stack, seed=1)


@pytest.mark.parametrize(
    ("stack", "right"), ORDERS, ids=lambda value: "-".join(value) if isinstance(value, list) else ""
)
@pytest.mark.filterwarnings("ignore:Can't merge entry")
def test_the_line_about_a_wrong_order_has_the_right_one(stack, right, one_line):
    with pytest.raises(ValueError) as raised:
        check(stack)
    one_line(raised, f"the order must be {right}")


@pytest.mark.parametrize("stack", EXCLUDED, ids="-".join)
def test_files_that_exclude_each_other_are_refused(stack, one_line):
    with pytest.raises(ValueError) as raised:
        check(stack)
    one_line(raised, "exclude each other", *[f"{name}.yaml" for name in stack[-2:]])


def test_no_file_quietly_replaces_what_another_sets_up():
    contents = {name: yaml.safe_load((CONFIGS / f"{name}.yaml").read_text()) for name in NAMES}
    for base, key in [
        ("train", "objective"),
        ("train", "process_name"),
        ("train", "optimizer"),
        ("inference", "solver"),
    ]:
        setting = [name for name in NAMES if key in contents[name] and base in MARKS[name].get("over", [])]
        for pair in itertools.combinations(setting, 2):
            with pytest.raises(ValueError, match="exclude each other"):
                check(sorted([base, *pair], key=lambda name: MARKS[name]["layer"]))


@pytest.mark.parametrize(
    ("stack", "bases"), ALONE, ids=lambda value: "-".join(value) if isinstance(value, list) else ""
)
@pytest.mark.filterwarnings("ignore:Can't merge entry")
def test_an_overlay_without_its_base_is_refused(stack, bases, one_line):
    with pytest.raises(ValueError) as raised:
        check(stack)
    one_line(raised, f"{stack[-1]}.yaml is an overlay of", bases)


@pytest.mark.parametrize(
    "name", [name for name in NAMES if MARKS[name]["layer"] and name not in ("mlflow", "distill", "random_offset")]
)  # MONAI refuses what adds to a part of its base
@pytest.mark.filterwarnings("ignore:Can't merge entry")
def test_an_overlay_alone_runs_into_the_line_about_its_base(name):
    with assert_refused(f"{name}.yaml is an overlay of"):
        over = MARKS[name]["over"]
        run("training" if isinstance(over, str) and "train" in over else "run", [name])


@pytest.mark.parametrize("stack", [["train"], ["train", "train_global"], ["inference"], ["evaluate"]], ids="-".join)
def test_many_processes_need_their_overlay(stack, monkeypatch, one_line):
    monkeypatch.setenv("WORLD_SIZE", "1")
    check(stack)
    monkeypatch.setenv("WORLD_SIZE", "2")
    check([*stack, "multi_gpu"])
    with pytest.raises(ValueError) as raised:
        check(stack)
    one_line(raised, "2 processes", "multi_gpu.yaml last")


@pytest.mark.parametrize("name", ["WORLD_SIZE", "LOCAL_WORLD_SIZE"])
def test_numbers_of_processes_that_are_none_are_told(name, monkeypatch, one_line):
    monkeypatch.setenv(name, "x")
    with pytest.raises(ValueError) as raised:
        check(["preprocess"])
    one_line(raised, f"{name} in the environment", "'x'")


def test_what_shares_its_work_by_itself_or_not_at_all(monkeypatch, one_line):
    monkeypatch.setenv("WORLD_SIZE", "2")
    check(["preprocess"])
    for stack in (["export"], ["import_official"], ["evaluate", "wscore"], ["evaluate", "wscore", "multi_gpu"]):
        with pytest.raises(ValueError) as raised:
            check(stack)
        one_line(raised, "one process", f"{stack[-1]}.yaml")


def test_code_of_another_bundle_is_noticed(tmp_path, monkeypatch, one_line):
    monkeypatch.setattr(sys, "path", ["", str(tmp_path), *sys.path])
    check(["train"])  # the config is a copy without code beside it
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts" / "__init__.py").touch()
    with pytest.raises(ValueError) as raised:
        check(["train"])
    one_line(raised, str(tmp_path), bundle_root())
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "scripts").symlink_to(f"{bundle_root()}/scripts")
    monkeypatch.setattr(sys, "path", ["", str(tmp_path / "linked")])
    check(["train"])


def test_a_config_of_the_users_own_is_left_alone():
    check_stack({"run": [], "grid": 3})
