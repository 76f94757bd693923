"""What the overlays of faster training bring: validation loss of stage 2 against FLOPs and time, on phantoms of 32^3. Run by hand:

    python benchmarks/faster_training.py --work DIR                       # 20 hours of one core or more; a GPU takes minutes for each arm
    python benchmarks/faster_training.py --work DIR --arms plain routed --seeds 0
    python benchmarks/faster_training.py --work DIR --report_only         # table and picture of what is there

Each arm trains stage 2 at half and at the whole of the budget, with every seed, on one stage 1 for each seed; `best together` are the
overlays of `--together`. FLOPs of a step are those of `prdit plan`, of the optimiser none; seconds are of runs that were not
broken off. One run at a time; what is done is in DIR/state.json and not done again, and a run that was broken off continues from its checkpoints.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from baselines import parsed, write_data
from baselines_table import FIELD_OF_VIEW_MM, GRID, bundle, positive
from quality import load_generated, phantoms

from scripts.metrics import gradient_profile, seam_ratio  # baselines.py has made the package known

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

FINISH = 0.2  # share of the FLOPs after dropped tokens, on all of them
EPOCHS = 8
# overlays, and settings beside them
ARMS: dict[str, tuple[list[str], dict[str, Any]]] = {
    "plain": ([], {}),
    "routed": (["route_tokens"], {}),
    "dropped": (["drop_tokens"], {}),
    "muon": (["muon"], {}),
    "offset": (["random_offset"], {}),
    "logit-normal times": ([], {"training_times": "logit_normal"}),
    "more noise": ([], {"time_power": 0.7}),
}
LAYERS = ("route_tokens", "drop_tokens", "muon", "random_offset")  # in their order in a stack


class Runs:
    """Trainings and what came of them.

    Args:
        work: folder.
        args: of the command line.
    """

    def __init__(self, work: Path, args: argparse.Namespace) -> None:
        self.work, self.args, self.path = work, args, work / "state.json"
        work.mkdir(parents=True, exist_ok=True)
        self.done: dict[str, Any] = json.loads(self.path.read_text()) if self.path.is_file() else {}

    def shared(self, seed: int, folder: Path) -> dict[str, Any]:
        return {
            "dataset_dir": str(self.work / "data"),
            "seed": seed,
            "ckpt_dir": str(folder),
            "num_pictures": 0,
            "keep_last": True,
        }

    def stage_1(self, seed: int) -> Path:
        folder = self.work / f"local_{seed}"
        if not (name := f"local, seed {seed}") in self.done:
            given = {"grid": GRID, "field_of_view_mm": FIELD_OF_VIEW_MM, "max_steps": self.args.local_steps}
            self.store(name, bundle("training", ["train"], **self.shared(seed, folder), **given))
        return folder / "local.pt"

    def store(self, name: str, value: Any) -> None:
        self.done[name] = value
        part = self.path.with_suffix(".part")
        part.write_text(json.dumps(self.done, indent=1))
        part.rename(self.path)

    def train(self, arm: str, seed: int, share: float) -> None:
        """An arm at a share of the budget; its steps, TFLOP, seconds, validations and seams."""
        if (name := f"{arm}, seed {seed}, {share:g}") in self.done:
            return
        print(name, flush=True)
        folder = self.work / f"{arm} {seed} {share:g}".replace(" ", "_")
        overlays, settings = ARMS[arm]
        given = {**self.shared(seed, folder), "local_ckpt": str(self.stage_1(seed)), **settings}
        parts = [(overlays, 1.0)]
        if "drop_tokens" in overlays:
            parts = [(overlays, 1 - FINISH), ([one for one in overlays if one != "drop_tokens"], FINISH)]
        steps, tflop, seconds, broken = 0, [0.0], 0.0, (folder / "model_losses.csv").is_file()
        for number, (stack, part) in enumerate(parts, 1):
            files = ["train", "train_global", *stack]
            probe = parsed(files, given).get_parsed_content("probe")
            cost = probe.needs(probe.batch_size)["tflop"]
            length = max(1, round(1000 * self.args.budget * share * part / cost / EPOCHS))
            last = number == len(parts)
            epochs = EPOCHS * number  # the second part goes on where the first one ended
            seconds += bundle("training", files, max_epochs=epochs, epoch_length=length, val_interval=1,
                              lr_decay_to=0.0 if last else 1.0, **given)  # fmt: skip
            steps += EPOCHS * length
            tflop += [tflop[-1] + (epoch + 1) * length * cost for epoch in range(EPOCHS)]
        with open(folder / "model_losses.csv") as file:
            losses = [float(row["val_loss"]) for row in csv.DictReader(file)]
        volumes = folder / "volumes"
        bundle("run", ["inference"], ckpt_path=folder / "model.pt", output_dir=volumes, num_samples=self.args.num_samples,
               batch_size=8, writers=["nifti"])  # fmt: skip
        time = None if broken else seconds
        self.store(
            name, {"steps": steps, "tflop": tflop[1:], "seconds": time, "losses": losses, "seams": seams(volumes)}
        )


def seams(folder: Path) -> float:
    """Of generated volumes at the transformer's stride; 1 is none."""
    return seams_of(load_generated(folder))


def seams_of(volumes: np.ndarray) -> float:
    profiles = [gradient_profile(torch.from_numpy(one).float()) for one in volumes]
    return float(seam_ratio(torch.stack(profiles).mean(0), GRID, 8))


def cell(values: list[Any]) -> str:
    """Mean and range over seeds."""
    found = [value for value in values if value is not None and math.isfinite(value)]
    if not found:
        return "not yet measured"
    return f"{np.mean(found):.4g}" + (f" [{min(found):.4g}, {max(found):.4g}]" if len(found) > 1 else "")


def report(runs: Runs, args: argparse.Namespace) -> None:
    """`table.md` and `losses.png`."""
    aims = [runs.done.get(f"plain, seed {seed}, 1") for seed in args.seeds]
    aim = float(np.mean([one["losses"][-1] for one in aims if one])) if any(aims) else math.nan
    heads = ("steps", "TFLOP", "seconds", "validation loss", "FLOPs until the loss of `plain`, as a share", "seams")
    lines = [f"| arm, share of {args.budget:g} PFLOP | {' | '.join(heads)} |", "|" + "---|" * (len(heads) + 1)]
    figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    for number, arm in enumerate(args.arms):
        for share in (0.5, 1.0):
            found = [one for seed in args.seeds if (one := runs.done.get(f"{arm}, seed {seed}, {share:g}"))]
            until = [next((t for t, loss in zip(one["tflop"], one["losses"]) if loss <= aim), None) for one in found]
            parts = [None if one is None else one / (1000 * args.budget) for one in until]
            columns = [[one[name] for one in found] for name in ("steps", "seconds", "seams")]
            ends = [[one["tflop"][-1] for one in found], [one["losses"][-1] for one in found]]
            values = (columns[0], ends[0], columns[1], ends[1], parts, columns[2])
            lines.append(f"| {arm}, {share:g} | " + " | ".join(cell(value) for value in values) + " |")
            for one in found:
                style = "-" if share == 1 else ":"
                axes.plot(one["tflop"], one["losses"], style, color=f"C{number}", label=arm if style == "-" else None)
    lines.append(f"| phantoms | | | | | | {seams_of(phantoms(16, GRID, FIELD_OF_VIEW_MM)):.3g} |")
    (runs.work / "table.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))
    axes.set(xlabel="training TFLOP", ylabel="validation loss", yscale="log")
    handles = {label: handle for handle, label in zip(*axes.get_legend_handles_labels())}  # one for an arm
    axes.legend(handles.values(), handles.keys())
    figure.savefig(runs.work / "losses.png", dpi=100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--budget", type=float, default=0.06, help="PFLOP of stage 2")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--arms", nargs="+", default=[*ARMS, "best together"], choices=[*ARMS, "best together"])
    parser.add_argument("--together", nargs="*", default=[], choices=LAYERS, help="overlays of 'best together'")
    parser.add_argument("--local_steps", type=positive, default=460)
    parser.add_argument("--num_phantoms", type=positive, default=512)
    parser.add_argument("--num_validation_phantoms", type=positive, default=16)
    parser.add_argument("--num_samples", type=positive, default=16)
    parser.add_argument("--report_only", action="store_true")
    args = parser.parse_args()
    ARMS["best together"] = (sorted(args.together, key=LAYERS.index), {})
    if not args.together:
        args.arms = [arm for arm in args.arms if arm != "best together"]
    if args.budget <= 0:
        parser.error("--budget must be more than 0")
    if args.report_only and not (args.work / "state.json").is_file():
        parser.error(f"--report_only: there is no state.json in {args.work}")
    runs = Runs(args.work, args)
    if not args.report_only:
        write_data(args.work / "data", args.num_phantoms, args.num_validation_phantoms)
    for seed in args.seeds if not args.report_only else []:
        for arm in args.arms:
            for share in (0.5, 1.0):
                runs.train(arm, seed, share)
    report(runs, args)


if __name__ == "__main__":
    main()
