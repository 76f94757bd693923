"""Quality and time against network calls, of weights and of those tuned for few calls (distill.yaml). Run by hand, an hour or more:

    python benchmarks/few_calls.py --work DIR --weights "20 calls=bundle/models/model.pt" "student=S/model.pt"

Each number of calls draws the same seeds with inference.yaml, by the sampler that the weights are made for, into a folder of
its own, and is measured as in quality.py. Writes DIR/table.md and DIR/quality.png; a run that is broken off continues.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from baselines import generator_of
from baselines_table import bundle, positive
from quality import DISTANCE, LIKENESS, Scale, load_generated

from scripts.files import sha256_of  # quality.py has made the package known
from scripts.inferers import Item
from scripts.metrics import Estimate
from scripts.networks import read_card
from scripts.networks.card import description_path
from scripts.pages import number

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

COLUMNS = [
    DISTANCE, LIKENESS, "HU-Wasserstein (HU)", "log10 spectrum error", "grain (HU)", "seams, stride 8", "lung vessels (%)",
    "ribs per side", "vertebrae",
]  # fmt: skip
SECONDS = "seconds a volume"
ROUNDS = 3


def seconds_of_volume(weights: Path, calls: int) -> float:
    """Median time of one volume in this process, start-up apart."""
    generator = generator_of(str(weights), calls)
    times = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        generator.sample([Item(0)])
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def measured(folder: Path, weights: Path, calls: int, args: argparse.Namespace, scale: Scale) -> dict[str, Any]:
    """The numbers of quality.py as values with their intervals, and the time, kept in the folder.

    They are known by the JSON of the weights, which has the hash of these and the sampler that they are made for.
    """
    card = sha256_of(description_path(weights))[:12]
    path = folder / f"measured_{card}_{args.seed}_{args.num_samples}_{args.num_phantoms}.json"
    volumes = folder / f"volumes_{card}"
    if not path.is_file():
        bundle("run", ["inference"], ckpt_path=weights, num_inference_steps=calls, output_dir=volumes,
               num_samples=args.num_samples, seed=args.seed, batch_size=8, writers=["nifti"])  # fmt: skip
        found = scale.measure(load_generated(volumes, args.seed)[: args.num_samples])
        seconds = Estimate(seconds_of_volume(weights, calls))
        path.write_text(json.dumps({name: asdict(one) for name, one in {**found, SECONDS: seconds}.items()}))
    return json.loads(path.read_text())


def named_weights(word: str) -> tuple[str, Path]:
    name, _, path = word.partition("=")
    if not name or not Path(path).is_file():
        raise argparse.ArgumentTypeError(f"must be NAME=PATH of weights that are there, got {word!r}")
    return name, Path(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--weights", nargs="+", required=True, metavar="NAME=PATH", type=named_weights)
    parser.add_argument("--calls", type=positive, nargs="+", default=[1, 2, 4, 8, 20, 50])
    parser.add_argument("--num_samples", type=positive, default=32)
    parser.add_argument("--num_phantoms", type=positive, default=128)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    weights = dict(args.weights)
    if len({name.replace(" ", "_") for name in weights}) < len(args.weights):
        parser.error("--weights: two have one name")
    try:
        data = [read_card(path, required=["data"]).data for path in weights.values()][0]
    except ValueError as error:
        parser.error(f"--weights: {error}")
    scale = Scale(args.num_phantoms, args.num_samples, data.grid, data.field_of_view_mm)
    rows = {
        (name, calls): measured(args.work / f"{name} {calls}".replace(" ", "_"), path, calls, args, scale)
        for name, path in weights.items()
        for calls in args.calls
    }
    write_report(args.work, rows, scale)


def write_report(work: Path, rows: dict[tuple[str, int], dict[str, Any]], scale: Scale) -> None:
    """`table.md` and `quality.png`."""
    columns = [*COLUMNS, SECONDS]
    lines = ["| weights | calls | " + " | ".join(columns) + " |", "|" + "---|" * (len(columns) + 2)]
    lines += [
        f"| {name} | {calls} | " + " | ".join(number(row[one]) for one in columns) + " |"
        for (name, calls), row in rows.items()
    ]
    lines.append("| other phantoms | | " + " | ".join(number(asdict(scale.floor[one])) for one in COLUMNS) + " | |")
    (work / "table.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))
    shown = [DISTANCE, LIKENESS, "ribs per side", "seams, stride 8"]
    figure, axes = plt.subplots(1, len(shown), figsize=(3.4 * len(shown), 3.2), layout="constrained")
    for axis, column in zip(axes, shown):
        for name in dict.fromkeys(name for name, _ in rows):
            calls = [one for weights, one in rows if weights == name]
            found = np.array(
                [[rows[name, one][column][part] for part in ("value", "low", "high")] for one in calls], float
            ).T
            axis.errorbar(
                calls, found[0], abs(found[1:] - found[0]), marker="o", capsize=2, label=name
            )  # nan is not drawn
        axis.axhline(scale.floor[column].value, color="grey", linestyle=":", label="phantoms")
        axis.set(xscale="log", xlabel="network calls", title=column)
        ticks = sorted({calls for _, calls in rows})
        axis.set_xticks(ticks, [str(one) for one in ticks])
        axis.minorticks_off()
    axes[0].legend()
    figure.savefig(work / "quality.png", dpi=100)


if __name__ == "__main__":
    main()
