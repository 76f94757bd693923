"""Kills commands at their file operations, repeats them, and compares all files with those of an unkilled run.

    python tests/kills.py train_1 export [--every 3]

An operation is whatever makes, renames, removes or flushes a file in the folder of the run. Each run is a child of one
process that has imported everything, so that a kill costs no more than the run itself.
"""

import argparse
import importlib
import itertools
import json
import os
import shutil
import signal
import sys
import tempfile
import traceback
from datetime import datetime
from pathlib import Path

import torch

sys.path[:0] = [str(Path(__file__).resolve().parents[1] / name) for name in ("bundle", "tests", "tools")]

from bundle_runs import DATA, bytes_of, run, training  # noqa: E402
from review_studies import answer, make_study, score, write_answers  # noqa: E402

from scripts.data import chest_phantom  # noqa: E402
from scripts.networks import build_prdit, save_weights  # noqa: E402
from scripts.output import save_volume  # noqa: E402
from scripts.review import study  # noqa: E402

CPU = "$torch.device('cpu')"
VOLUMES = {"grid": [16, 16, 16], "field_of_view_mm": 320.0, "hu_window": [-1000.0, 1000.0]}


# commands, each in a folder that holds what `template` made


def _train(stage, folder, **settings):
    stack, given = training(
        stage, folder, max_epochs=3, val_interval=2, batch_size=2, num_validation_times=1, **settings
    )
    run("training", stack, **given, dataset_dir=folder / "real", lr_decay_to=1.0)


def _rival(overlay, folder, **settings):
    given = {"max_epochs": 2, "val_interval": 1, "batch_size": 2, "num_phantoms": 2, "num_validation_phantoms": 1}
    given |= {"num_pictures": 0, "local_window": 0, "ckpt_dir": folder / "ckpt", "device": CPU}
    run("training", ["train", overlay], **given, **settings)


def _evaluate(stack, folder, **settings):
    run(
        "run",
        stack,
        real_dir=folder / "real",
        generated_dir=folder / "generated",
        output_dir=folder / "out",
        device=CPU,
        **settings,
    )


def _review(folder):
    class Now(datetime):
        """The key says when it was made."""

        @classmethod
        def now(cls, zone=None):
            return cls(2026, 1, 2, tzinfo=zone)

    study.datetime = Now
    make_study(folder, "study", num_cases=2, readers=["Ana", "Ben"], title="study")


def _release(folder):
    tool = importlib.import_module("release")
    tool.released_files = lambda commit: {"configs/metadata.json": b'{"version": "1", "changelog": {"1": ""}}'}
    tool.build(folder / "out")


COMMANDS = {
    "train_1": lambda folder: _train(1, folder),
    "train_2": lambda folder: _train(2, folder),
    "gan": lambda folder: _rival("train_gan", folder, grid=[32] * 3, channels=16, latent_size=8),
    "autoencoder": lambda folder: _rival("train_autoencoder", folder, grid=[16] * 3, channels=16, factor=2, num_codes=64),
    "student": lambda folder: _rival("distill", folder, distill_from=folder / "model.pt", num_validation_times=1),
    "inference": lambda folder: run("run", ["inference"], ckpt_path=folder / "model.pt", output_dir=folder / "out", num_samples=2, num_inference_steps=2, device=CPU),
    "export": lambda folder: run("run", ["export"], ckpt_path=folder / "model.pt", output_path=folder / "out" / "m.pt"),
    "import_official": lambda folder: run("run", ["import_official"], official_ckpt=DATA / "official_prdit_tiny.pt", ckpt_path=folder / "out" / "m.pt", grid=[8, 8, 8], num_heads=4, norm="layer"),
    "evaluate": lambda folder: _evaluate(["evaluate"], folder, metrics=["HU", "FID"], num_bootstrap=2, num_slices=1),
    "wscore": lambda folder: _evaluate(["evaluate", "wscore"], folder, real_section="all", num_steps=2, checkpoint_interval=1, batch_size=2, critic_channels=[2, 4], num_seeds=2, cache_gb=0.1),
    "preprocess": lambda folder: run("run", ["preprocess"], source_dir=folder / "real", dataset_dir=folder / "out", spacing=20.0, size=16, center="volume", salt_file=folder / "key", mapping_file=folder / "map.csv"),
    "pictures": lambda folder: _train(1, folder, num_pictures=1),
    "writers": lambda folder: run("run", ["inference"], ckpt_path=folder / "model.pt", output_dir=folder / "out", num_samples=1, num_inference_steps=2, device=CPU, writers=["nifti", "dicom"]),
    "view": lambda folder: run("run", ["view"], source_dir=folder / "generated", beside_dir=folder / "real", output_dir=folder / "out"),
    "export_dicom": lambda folder: run("run", ["export_dicom"], source_dir=folder / "generated" / "10.nii.gz", output_dir=folder / "out", synthetic=True),
    "review": _review,
    "review_score": lambda folder: score(folder / "answers", folder / "study.key.json", folder / "out"),
    "release": _release,
}  # fmt: skip


def template(command, folder):
    """What a command needs: volumes, weights, stage 1."""
    for name, first in (("real", 0), ("generated", 10)):
        for seed in range(first, first + 4):
            affine = torch.diag(torch.tensor([20.0, 20.0, 20.0, 1.0])).double().numpy()
            (folder / name).mkdir(parents=True, exist_ok=True)
            save_volume(chest_phantom(seed, (16, 16, 16), (320, 320, 320)), affine, folder / name / f"{seed}.nii.gz")
    torch.manual_seed(0)
    process = {"name": "cosine_sine", "num_train_timesteps": 1000, "noise_std": 1.0}
    settings = {"stage": "model", "process": process, "data": VOLUMES}
    save_weights(
        build_prdit(24, 4, 1, patch_size=6, stride=4, local_patch_size=4, local_stride=2), folder / "model.pt", settings
    )
    (folder / "key").write_text("secret\n")
    if command == "train_2":
        _train(1, folder)
    if command == "review_score":
        _review(folder)
        key = json.loads((folder / "study.key.json").read_text())
        write_answers(folder / "answers", key, lambda _, index, synthetic, case: answer(case, synthetic))


# killing


def _count_operations(folder, kill_at, count):
    """Counts what is done to files in `folder` from now on, and kills this process before operation `kill_at`."""

    def concerns(path):
        return not isinstance(path, (str, os.PathLike)) or (
            os.path.abspath(path).startswith(f"{folder}{os.sep}") and f"{os.sep}logs" not in str(path)
        )

    def wrap(module, name, is_counted):
        original = getattr(module, name)

        def counted(*args, **kwargs):
            if is_counted(*args, **kwargs) and concerns(args[0]):
                count[0] += 1
                if count[0] == kill_at:
                    os.kill(os.getpid(), signal.SIGKILL)
            return original(*args, **kwargs)

        setattr(module, name, counted)

    for name in ("replace", "rename", "unlink", "remove", "link", "mkdir", "fsync"):
        wrap(os, name, lambda *args, **kwargs: True)
    wrap(os, "open", lambda path, flags=0, *args, **kwargs: bool(flags & os.O_CREAT) and concerns(path))
    for module in (importlib.import_module("builtins"), importlib.import_module("io")):
        wrap(
            module,
            "open",
            lambda path, mode="r", *args, **kwargs: isinstance(path, (str, os.PathLike)) and mode[0] in "wax",
        )


def in_child(action, folder, kill_at=0):
    """Runs `action(folder)` in a child; returns 'killed', 'failed' or the number of operations."""
    counted = folder.with_name("operations")
    child = os.fork()
    if child == 0:
        log = os.open(folder.with_name("log"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(log, 1), os.dup2(log, 2)
        try:
            count = [0]
            _count_operations(folder, kill_at, count)
            action(folder)
            counted.write_text(str(count[0]))
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return "killed"
    return int(counted.read_text()) if os.WEXITSTATUS(status) == 0 else "failed"


def contents(folder):
    """All files but TensorBoard's, which hold times; leftovers and locks included."""
    paths = [path for path in folder.rglob("*") if path.is_file() and "logs" not in path.parts]
    return {str(path.relative_to(folder)): bytes_of(path) for path in paths}


def kill_all(command, work, every=1, first=1):
    """Kills a command before its operations `first`, `first + every`, ...; returns (operations, kills, differences)."""
    source, folder, action = work / "template", work / "run", COMMANDS[command]
    source.mkdir()
    assert in_child(lambda folder: template(command, folder), source) != "failed", (work / "log").read_text()

    def fresh():
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(source, folder)

    fresh()
    operations = in_child(action, folder)
    assert operations != "failed", (work / "log").read_text()
    expected, kills, differences = contents(folder), 0, []
    for kill_at in range(first, operations + 1, every):
        fresh()
        kills += in_child(action, folder, kill_at) == "killed"
        repeated = in_child(action, folder)
        found = contents(folder)
        names = sorted({*expected, *found})
        wrong = [name for name in names if expected.get(name) != found.get(name)]
        if repeated == "failed":
            wrong.append((work / "log").read_text().strip().splitlines()[-1])
        differences += [f"kill {kill_at}: {name}" for name in wrong]
    return operations, kills, differences


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("commands", nargs="*", choices=[*COMMANDS, []], default=[])
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("--first", type=int, default=1)
    given = parser.parse_args()
    failed = False
    for command in given.commands or COMMANDS:
        with tempfile.TemporaryDirectory() as work:
            operations, kills, differences = kill_all(command, Path(work).resolve(), given.every, given.first)
        print(f"{command}: {operations} file operations, {kills} kills, {len(differences)} differences", flush=True)
        print("".join(f"  {line}\n" for line in itertools.islice(differences, 20)), end="", flush=True)
        failed |= bool(differences)
    sys.exit(failed)


if __name__ == "__main__":
    sys.modules["kills"] = sys.modules["__main__"]
    main()
