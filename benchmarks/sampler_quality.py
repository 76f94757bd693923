"""Quality against sampler, network calls and injected noise, for weights trained on phantoms. Run by hand, hours:

    python benchmarks/sampler_quality.py --work_dir DIR                        # all samplers, 10 to 1000 calls
    python benchmarks/sampler_quality.py --work_dir DIR --calls 10 20 50 --samplers multistep euler "ddim eta=1"
    python benchmarks/sampler_quality.py --work_dir DIR --report_only          # table and plot of what is there

Every setting samples the same seeds with inference.yaml into a folder of its own and is measured as in quality.py
against the same phantoms; `distance` of quality.py ranks, and its parts say why. A run that is broken off continues
where it was, volume by volume. The tables have one line per sampler and one column per number of calls; guidance is
that of the weights where the name says nothing.

Choose settings on one set of seeds (the default, from 1000 on) and report them on another (`--first_seed 2000`), with 32
volumes or more where the choice is close: what is best of many on the same few volumes is flattered.
"""

from __future__ import annotations

import argparse
import json
import pickle
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any, Iterator

import matplotlib
from gaussian_samplers import OTHER_SPACINGS
from monai.bundle import run
from quality import DISTANCE, PARTS, Scale, load_generated

from scripts.metrics import Estimate
from scripts.networks import read_card  # quality.py has made the package known
from scripts.pages import number
from scripts.schedulers import SPACINGS, build_scheduler

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

SPACINGS.update(OTHER_SPACINGS)
ROOT = Path(__file__).resolve().parents[1] / "bundle"
SAMPLERS: dict[str, dict[str, Any]] = {
    "euler": {"solver": "euler"},
    "euler noise": {"solver": "euler", "prediction": "noise"},
    "predictor_corrector p=1.5": {"solver": "predictor_corrector", "predictor_ratio": 1.5},
    "predictor_corrector p=2": {"solver": "predictor_corrector", "predictor_ratio": 2.0},
    "predictor_corrector p=3": {"solver": "predictor_corrector", "predictor_ratio": 3.0},
    "predictor_corrector p=2 noise": {"solver": "predictor_corrector", "predictor_ratio": 2.0, "prediction": "noise"},
    "ddim eta=0": {"solver": "ddim", "eta": 0.0},
    "ddim eta=1": {"solver": "ddim", "eta": 1.0},
    "euler quadratic": {"solver": "euler", "spacing": "quadratic"},
    "predictor_corrector p=2 quadratic": {
        "solver": "predictor_corrector", "predictor_ratio": 2.0, "spacing": "quadratic",
    },
    "predictor_corrector p=3 quadratic": {
        "solver": "predictor_corrector", "predictor_ratio": 3.0, "spacing": "quadratic",
    },
    "adams_bashforth quadratic": {"solver": "adams_bashforth", "spacing": "quadratic"},
    "dpm_solver quadratic": {"solver": "dpm_solver", "spacing": "quadratic"},
    "heun quadratic": {"solver": "heun", "spacing": "quadratic"},
    "rk4 quadratic": {"solver": "rk4", "spacing": "quadratic"},
    "multistep": {"solver": "multistep", "predictor_ratio": 1.0},
    "multistep p=2": {"solver": "multistep", "predictor_ratio": 2.0},
    "multistep quadratic": {"solver": "multistep", "predictor_ratio": 1.0, "spacing": "quadratic"},
    "multistep p=1.5 quadratic": {"solver": "multistep", "predictor_ratio": 1.5, "spacing": "quadratic"},
    "multistep p=2 quadratic": {"solver": "multistep", "predictor_ratio": 2.0, "spacing": "quadratic"},
    "multistep p=3 quadratic": {"solver": "multistep", "predictor_ratio": 3.0, "spacing": "quadratic"},
    "multistep p=3": {"solver": "multistep", "predictor_ratio": 3.0},
    "multistep two_sided": {"solver": "multistep", "predictor_ratio": 1.0, "spacing": "two_sided"},
    "multistep p=1.5 two_sided": {"solver": "multistep", "predictor_ratio": 1.5, "spacing": "two_sided"},
    "multistep p=2 two_sided": {"solver": "multistep", "predictor_ratio": 2.0, "spacing": "two_sided"},
    "multistep p=3 two_sided": {"solver": "multistep", "predictor_ratio": 3.0, "spacing": "two_sided"},
    "multistep p=2 cosine": {"solver": "multistep", "predictor_ratio": 2.0, "spacing": "cosine"},
    "multistep p=3 cosine": {"solver": "multistep", "predictor_ratio": 3.0, "spacing": "cosine"},
    "predictor_corrector p=2 no guidance": {"solver": "predictor_corrector", "predictor_ratio": 2.0, "guidance": 0.0},
}  # fmt: skip
DEFAULT = SAMPLERS["multistep p=3 two_sided"]
GUIDANCE: dict[str, dict[str, Any]] = {
    "no guidance": {"guidance": 0.0},
    "guidance 0.25": {"guidance": 0.25},
    "guidance 1": {"guidance": 1.0},
    "guidance 0.5 below 0.3": {"guidance": 0.5, "guidance_below": 0.3},
    "guidance 0.5 below 0.7": {"guidance": 0.5, "guidance_below": 0.7},
    "guidance 0.5 everywhere": {"guidance": 0.5, "guidance_below": 1.0},
    **{f"guidance 0.5 block {i}": {"guidance": 0.5, "guidance_block": i} for i in (0, 1, 2, 3, 4, 5)},
}
SAMPLERS |= {name: {**DEFAULT, **given} for name, given in GUIDANCE.items()}
PLOTTED = (DISTANCE, "likeness", "HU-Wasserstein (HU)", "log10 spectrum error")
Results = dict[str, dict[int, dict[str, Estimate]]]  # of each sampler and number of calls


def settings_of(args: argparse.Namespace) -> Iterator[tuple[str, int, int, dict[str, Any]]]:
    """Sampler, calls as asked, calls as the solver can make them, and the settings of inference.yaml."""
    chosen = args.samplers or list(SAMPLERS)
    for calls in args.calls:
        for name in (name for name in SAMPLERS if name in chosen):
            of_scheduler = {key: value for key, value in SAMPLERS[name].items() if not key.startswith("guidance")}
            per_step = len(build_scheduler({"name": "cosine_sine"}, **of_scheduler).solver.offsets)
            if calls >= per_step:
                yield name, calls, calls - calls % per_step, SAMPLERS[name]


def sample_and_measure(
    args: argparse.Namespace, folder: Path, calls: int, settings: dict[str, Any], scale: Any
) -> dict[str, Estimate]:
    """The numbers of one setting, from its folder where they are."""
    made_of = {name: getattr(args, name) for name in ("num_samples", "first_seed", "num_phantoms")}
    made_of["weights"] = read_card(args.ckpt_path).sha256
    path = folder / f"metrics_{args.first_seed}.json"
    if path.is_file():
        stored = json.loads(path.read_text())
        if stored["made_of"] == made_of:
            return {name: Estimate(**one) for name, one in stored["metrics"].items()}
    run(
        "run", config_file=str(ROOT / "configs" / "inference.yaml"), logging_file=False, ckpt_path=str(args.ckpt_path),
        output_dir=str(folder), num_samples=args.num_samples, seed=args.first_seed, num_inference_steps=calls,
        batch_size=args.batch_size, **{"spacing": "uniform", **settings},
    )  # fmt: skip
    metrics = scale().measure(load_generated(folder, args.first_seed)[: args.num_samples])
    stored = {"made_of": made_of, "metrics": {name: asdict(one) for name, one in metrics.items()}}
    path.write_text(json.dumps(stored))
    return metrics


def stored_scale(args: argparse.Namespace) -> Scale:
    """The phantoms' numbers, drawn once."""
    data = read_card(args.ckpt_path).data
    path = args.work_dir / f"phantoms_{args.num_phantoms}_{args.num_samples}.pkl"
    if not path.is_file():
        scale = Scale(args.num_phantoms, args.num_samples, data.grid, data.field_of_view_mm)
        path.write_bytes(pickle.dumps(scale))
    return pickle.loads(path.read_bytes())


def table(results: Results, metric: str, calls: list[int]) -> str:
    """Markdown: a line per sampler, a column per number of calls."""
    lines = [f"| {metric} | " + " | ".join(str(n) for n in calls) + " |", "|---" * (len(calls) + 1) + "|"]
    for name, row in results.items():
        cells = [number(asdict(row[n][metric])) if n in row else "" for n in calls]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def plot(results: Results, floor: dict[str, Estimate], path: Path) -> None:
    ticks = sorted({n for row in results.values() for n in row})
    figure, axes = plt.subplots(2, 2, figsize=(12, 8), constrained_layout=True)
    for axis, metric in zip(axes.flat, PLOTTED):
        for i, (name, row) in enumerate(results.items()):
            found = sorted((n, metrics[metric].value) for n, metrics in row.items())
            points = [point for point in found if point[1] is not None]
            if points:
                axis.loglog(
                    *zip(*points), marker=".", label=name, color=plt.cm.tab20(i % 20), linestyle="-" if i < 20 else "--"
                )
        axis.axhline(floor[metric].value, color="black", linestyle=":", label="other phantoms (floor)")
        axis.set(title=metric, xlabel="network calls")
        axis.set_xticks(ticks, [str(n) for n in ticks])
        axis.minorticks_off()
        axis.grid(alpha=0.3, which="both")
    figure.legend(*axes[0, 1].get_legend_handles_labels(), loc="outside right upper", fontsize=8)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work_dir", type=Path, required=True)
    parser.add_argument("--ckpt_path", type=Path, default=ROOT / "models" / "model.pt")
    parser.add_argument("--calls", type=int, nargs="+", default=[10, 20, 50, 100, 250, 1000])
    parser.add_argument("--samplers", nargs="+", choices=SAMPLERS, metavar="NAME", help="default all")
    parser.add_argument("--num_samples", type=int, default=16)
    parser.add_argument("--first_seed", type=int, default=1000)
    parser.add_argument("--num_phantoms", type=int, default=128)
    parser.add_argument("--batch_size", type=int, default=1)
    parser.add_argument("--report_only", action="store_true")
    args = parser.parse_args()
    args.work_dir.mkdir(parents=True, exist_ok=True)
    scale = cache(lambda: stored_scale(args))
    results: Results = {}
    for name, asked, calls, settings in settings_of(args):
        folder = args.work_dir / f"{name.replace(' ', '_')}_{calls}"
        if args.report_only and not (folder / f"metrics_{args.first_seed}.json").is_file():
            continue
        metrics = results.setdefault(name, {})[asked] = sample_and_measure(args, folder, calls, settings, scale)
        print(f"{name}, {calls} calls:", *(f"{key} {number(asdict(metrics[key]))}" for key in (DISTANCE, *PARTS)))
        report(results, scale().floor, args)


def report(results: Results, floor: dict[str, Estimate], args: argparse.Namespace) -> None:
    """Writes the tables and the plot of what has been measured so far."""
    calls = [n for n in args.calls if any(n in row for row in results.values())]
    tables = [table(results, metric, calls) for metric in floor]
    numbers = "".join(f"\n- {name}: {number(asdict(one))}" for name, one in floor.items())
    text = f"{args.num_samples} volumes each; floor (other phantoms, mean and range):\n{numbers}\n\n"
    (args.work_dir / "sampler_quality.md").write_text(text + "\n\n".join(tables) + "\n")
    plot(results, floor, args.work_dir / "sampler_quality.png")


if __name__ == "__main__":
    main()
