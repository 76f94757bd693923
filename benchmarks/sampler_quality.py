"""Quality against sampler, network calls and injected noise, for weights trained on phantoms. Run by hand, hours:

    python benchmarks/sampler_quality.py --work_dir DIR                        # all samplers, 10 to 1000 calls
    python benchmarks/sampler_quality.py --work_dir DIR --calls 10 20 50 --samplers multistep euler "ddim eta=1"
    python benchmarks/sampler_quality.py --work_dir DIR --report_only          # table and plot of what is there

Every setting samples the same seeds with inference.yaml into a folder of its own and is measured as in quality.py
against the same phantoms. A run that is broken off continues where it was, volume by volume. The table has one line per
sampler and one column per number of calls; guidance is that of the weights where the name says nothing. 'distance' sums
up a line of numbers as the mean of |ln(number / floor)|, the floor being what other phantoms measure: 0 is as good as
phantoms. A sample without soft tissue has no grain: nan.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any, Iterator

import matplotlib
from monai.bundle import run
from quality import FIRST_REFERENCE, load_generated, measure, phantoms

from scripts.networks import read_settings  # quality.py has made the package known
from scripts.schedulers import build_scheduler

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

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
    "predictor_corrector p=2 no guidance": {"solver": "predictor_corrector", "predictor_ratio": 2.0, "guidance": 0.0},
}  # fmt: skip
DEFAULT = SAMPLERS["multistep p=3 quadratic"]
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
PLOTTED = ("distance", "HU-Wasserstein", "log10 spectrum error", "grain (HU)")


def settings_of(args: argparse.Namespace) -> Iterator[tuple[str, int, int, dict[str, Any]]]:
    """Sampler, calls as asked, calls as the solver can make them, and the settings of inference.yaml."""
    chosen = args.samplers or list(SAMPLERS)
    for calls in args.calls:
        for name in (name for name in SAMPLERS if name in chosen):
            of_scheduler = {key: value for key, value in SAMPLERS[name].items() if not key.startswith("guidance")}
            per_step = len(build_scheduler({"name": "cosine_sine"}, **of_scheduler).solver.offsets)
            if calls >= per_step:
                yield name, calls, calls - calls % per_step, SAMPLERS[name]


def sample_and_measure(args: argparse.Namespace, folder: Path, calls: int, settings: dict[str, Any], reference) -> dict:
    """The numbers of one setting, from its folder where they are."""
    weights = read_settings(args.ckpt_path)
    sha256, fov = weights["sha256"], weights["data"]["field_of_view_mm"]
    path = folder / "metrics.json"
    if path.is_file():
        stored = json.loads(path.read_text())
        if (stored["weights_sha256"], stored["num_samples"]) == (sha256, args.num_samples):
            return stored["metrics"]
    run(
        "run", config_file=str(ROOT / "configs" / "inference.yaml"), logging_file=False, ckpt_path=str(args.ckpt_path),
        output_dir=str(folder), num_samples=args.num_samples, num_inference_steps=calls, batch_size=args.batch_size,
        **{"spacing": "uniform", **settings},
    )  # fmt: skip
    metrics = measure(load_generated(folder)[: args.num_samples], reference(), fov)
    path.write_text(json.dumps({"weights_sha256": sha256, "num_samples": args.num_samples, "metrics": metrics}))
    return metrics


def distance(metrics: dict[str, float], floor: dict[str, float]) -> float:
    return sum(abs(math.log(metrics[name] / floor[name])) for name in floor) / len(floor)


def table(results: dict[str, dict[int, dict[str, float]]], metric: str, calls: list[int]) -> str:
    """Markdown: a line per sampler, a column per number of calls."""
    lines = [f"| {metric} | " + " | ".join(str(n) for n in calls) + " |", "|---" * (len(calls) + 1) + "|"]
    for name, row in results.items():
        cells = [f"{row[n][metric]:.3g}" if n in row else "" for n in calls]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def plot(results: dict[str, dict[int, dict[str, float]]], floor: dict[str, float], path: Path) -> None:
    ticks = sorted({n for row in results.values() for n in row})
    figure, axes = plt.subplots(2, 2, figsize=(12, 8), constrained_layout=True)
    for axis, metric in zip(axes.flat, PLOTTED):
        for i, (name, row) in enumerate(results.items()):
            points = sorted((n, metrics[metric]) for n, metrics in row.items() if math.isfinite(metrics[metric]))
            if points:
                axis.loglog(
                    *zip(*points), marker=".", label=name, color=plt.cm.tab20(i % 20), linestyle="-" if i < 20 else "--"
                )
        if metric in floor:
            axis.axhline(floor[metric], color="black", linestyle=":", label="other phantoms (floor)")
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
    parser.add_argument("--num_phantoms", type=int, default=64)
    parser.add_argument("--batch_size", type=int, default=1)
    parser.add_argument("--report_only", action="store_true")
    args = parser.parse_args()
    data = read_settings(args.ckpt_path)["data"]
    args.work_dir.mkdir(parents=True, exist_ok=True)
    cache: list = []

    def reference():
        if not cache:
            cache.append(phantoms(args.num_phantoms, data["grid"], data["field_of_view_mm"]))
        return cache[0]

    path = args.work_dir / f"floor_{args.num_samples}_{args.num_phantoms}.json"
    if not path.is_file():
        others = phantoms(args.num_samples, data["grid"], data["field_of_view_mm"], FIRST_REFERENCE + 1000)
        path.write_text(json.dumps(measure(others, reference(), data["field_of_view_mm"])))
    floor = json.loads(path.read_text())
    results: dict[str, dict[int, dict[str, float]]] = {}
    for name, asked, calls, settings in settings_of(args):
        folder = args.work_dir / f"{name.replace(' ', '_')}_{calls}"
        if args.report_only and not (folder / "metrics.json").is_file():
            continue
        metrics = sample_and_measure(args, folder, calls, settings, reference)
        results.setdefault(name, {})[asked] = {"distance": distance(metrics, floor), **metrics}
        print(f"{name}, {calls} calls:", {key: round(value, 4) for key, value in results[name][asked].items()})
        report(results, floor, args)


def report(results: dict[str, dict[int, dict[str, float]]], floor: dict[str, float], args: argparse.Namespace) -> None:
    """Writes the tables and the plot of what has been measured so far."""
    calls = [n for n in args.calls if any(n in row for row in results.values())]
    tables = [table(results, metric, calls) for metric in ("distance", *floor)]
    numbers = ", ".join(f"{name} {value:.3g}" for name, value in floor.items())
    text = f"{args.num_samples} volumes each; floor (other phantoms): {numbers}\n\n" + "\n\n".join(tables) + "\n"
    (args.work_dir / "sampler_quality.md").write_text(text)
    plot(results, floor, args.work_dir / "sampler_quality.png")


if __name__ == "__main__":
    main()
