"""Fits times, p and memory of `multistep` for few network calls, for weights trained on phantoms. Run by hand, hours:

    python benchmarks/fit_steps.py --work DIR --calls 6 8 10                        # writes DIR/schedules.json
    python benchmarks/fit_steps.py --work DIR --calls 6 8 10 --write_card          # and into the JSON of the weights

Six numbers are fitted for each number of calls, by Nelder and Mead's simplex (SciPy) on `distance` of quality.py, of the same seeds
each time: two of the spacing u = 1 - (1 - s^a)^b, p at the first and at the last step, memory at both; between them they run
linearly. What was found is reported on other seeds, beside the default with as many calls. Every evaluation is kept, and a fit that was
broken off takes them from there. `--start` gives the six numbers that it starts from; with `--evaluations 0` these are reported, and
written, as they are. p of the last step and memory of the first only set the line between both ends: the
last step injects nothing, and before the first nothing was predicted.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from pathlib import Path
from typing import Any, Optional, Sequence

import numpy as np
import torch
from baselines_table import positive
from pydantic import ValidationError
from quality import DISTANCE, LIKENESS, Scale
from scipy.optimize import minimize

from scripts.files import write_json  # quality.py has made the package known
from scripts.inferers import Item, build_generator, computed_in, inference_network
from scripts.networks import guidance_of, load_network, read_card, space_of
from scripts.networks.card import Card, description_path
from scripts.pages import formatted
from scripts.schedulers import build_scheduler, sampler_settings

SHIPPED = Path(__file__).resolve().parents[1] / "bundle" / "models" / "model.pt"
# a, b: denser at noise than two_sided; p: 1 in the first step, which then injects no noise; memory
START = [2.0, 2.0, 1.0, 8.0, 1.5, 1.0]
STEPS = np.array([0.3, 0.2, 0.5, 4.0, 0.3, 0.3])  # of the first simplex
LEAST, MOST = np.array([0.5, 0.5, 1.0, 1.0, 0.0, 0.0]), np.array([4.0, 4.0, 20.0, 20.0, 2.0, 2.0])


def schedule_of(numbers: Sequence[float], calls: int) -> dict[str, list[float]]:
    """The six numbers as a schedule of so many steps."""
    a, b, first_ratio, last_ratio, first_memory, last_memory = np.clip(numbers, LEAST, MOST).tolist()
    left = np.arange(calls, 0, -1) / calls
    lists = {
        "positions": 1 - (1 - left**a) ** b,
        "predictor_ratios": np.linspace(first_ratio, last_ratio, calls),
        "memories": np.linspace(first_memory, last_memory, calls),
    }
    return {name: [round(float(value), 6) for value in values] for name, values in lists.items()}


class Fit:
    """Draws and measures volumes of a schedule.

    Args:
        args: of the command line.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.card = args, read_card(args.ckpt_path, required=["data", "process"])
        self.network = inference_network(load_network(self.card), "cpu", args.bf16)
        data = self.card.data
        self.scale = Scale(args.num_phantoms, args.num_samples, data.grid, data.field_of_view_mm)
        self.path = args.work / f"evaluations_{self.drawn_by()}_{args.num_samples}_{args.num_phantoms}.json"
        self.known: dict[str, dict[str, Optional[float]]] = (
            json.loads(self.path.read_text()) if self.path.is_file() else {}
        )

    def drawn_by(self) -> str:
        """Of all that decides the volumes beside the steps. The JSON changes with `--write_card`, so its hash would not do."""
        offset, precision = self.own().get("random_offset"), computed_in("cpu", self.args.bf16, False)["precision"]
        parts = json.dumps([self.card.sha256, self.card.guidance, offset, precision])
        return hashlib.sha256(parts.encode()).hexdigest()[:12]

    def own(self) -> dict[str, Any]:
        """What the weights are made for, without steps."""
        return {name: value for name, value in self.card.sampling.items() if name == "random_offset"}

    def measured(self, calls: int, schedule: Optional[dict[str, list[float]]], seed: int) -> dict[str, Optional[float]]:
        """`distance`, likeness and all else of quality.py; without a schedule of the default sampler."""
        key = json.dumps([calls, schedule, seed])
        if key not in self.known:
            settings = sampler_settings(self.own(), num_inference_steps=calls, schedule=schedule)
            generator = self.generator(settings)
            seeds, batch = range(seed, seed + self.args.num_samples), self.args.batch_size
            parts = [seeds[i : i + batch] for i in range(0, len(seeds), batch)]
            volumes = torch.cat([generator.sample([Item(one) for one in part]) for part in parts])[:, 0].numpy()
            self.known[key] = {name: one.value for name, one in self.scale.measure(volumes).items()}
            write_json(self.path, self.known)
        return self.known[key]

    def generator(self, settings: dict[str, Any]) -> Any:
        number, offset = settings.pop("num_inference_steps"), settings.pop("random_offset")
        scheduler, guidance = build_scheduler(self.card.process, **settings), guidance_of(self.card)
        space = space_of(self.card)
        return build_generator(self.network, scheduler, number, self.card.data.grid, space, 1, guidance, offset)

    def fitted(self, calls: int) -> dict[str, list[float]]:
        """The best schedule that was found on the first seeds."""

        def distance(numbers: np.ndarray) -> float:
            outside = np.abs(numbers - np.clip(numbers, LEAST, MOST)).sum()
            schedule = schedule_of(numbers, calls)
            falls = max(np.diff(schedule["positions"])) < 0  # of many steps some may fall together
            measured = self.measured(calls, schedule, self.args.first_seed)[DISTANCE] if falls else None
            found = np.inf if measured is None else measured  # of volumes without a body there is none
            print(f"{calls} calls: {found:.4f} {np.round(numbers, 3).tolist()}", flush=True)
            return found + float(outside)

        start = np.array(self.args.start)
        if self.args.evaluations == 0:
            return schedule_of(start, calls)
        simplex = np.vstack([start, start + np.diag(STEPS)])
        options = {"maxfev": self.args.evaluations, "initial_simplex": simplex, "xatol": 1e-3, "fatol": 1e-4}
        return schedule_of(minimize(distance, start, method="Nelder-Mead", options=options).x, calls)


def with_schedules(weights: Path, schedules: dict[str, dict[str, list[float]]]) -> dict[str, Any]:
    """The JSON of the weights with these schedules among those that it has.

    Raises:
        ValueError: where they do not go with the sampler that the weights are made for.
    """
    read_card(weights)
    content = json.loads(description_path(weights).read_text())
    sampling = content.get("sampling") or {}
    content["sampling"] = {**sampling, "schedules": {**sampling.get("schedules", {}), **schedules}}
    try:
        Card.model_validate(content)
    except ValidationError as error:
        raise ValueError(f"{weights} takes no fitted steps: {error.errors()[0]['ctx']['error']}") from None
    return content


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--ckpt_path", type=Path, default=SHIPPED)
    parser.add_argument("--calls", type=positive, nargs="+", default=[6, 8, 10])
    parser.add_argument("--evaluations", type=int, default=60, help="for each number of calls")
    parser.add_argument("--start", type=float, nargs=6, default=START, metavar=("A", "B", "P", "P", "MEMORY", "MEMORY"))
    parser.add_argument("--num_samples", type=positive, default=16)
    parser.add_argument("--num_phantoms", type=positive, default=128)
    parser.add_argument("--first_seed", type=int, default=1000)
    parser.add_argument("--report_seed", type=int, default=2000)
    parser.add_argument("--batch_size", type=positive, default=4)
    parser.add_argument(
        "--bf16", action=argparse.BooleanOptionalAction, help="where none is given, if it is faster here"
    )
    parser.add_argument("--write_card", action="store_true", help="into the JSON of the weights")
    args = parser.parse_args()
    if args.evaluations < 0:
        parser.error(f"--evaluations must be 0 or more, got {args.evaluations}")
    if min(args.calls) < 2 or max(args.calls) > 1000:
        parser.error("--calls must be 2 to 1000; with one call there is nothing to fit")
    if not all(low <= one <= high for low, one, high in zip(LEAST, args.start, MOST)):
        parser.error(f"--start must be from {LEAST.tolist()} to {MOST.tolist()}, got {args.start}")
    args.work.mkdir(parents=True, exist_ok=True)
    try:
        if args.write_card:  # hours before it is written
            with_schedules(args.ckpt_path, {str(calls): schedule_of(args.start, calls) for calls in args.calls})
        fit = Fit(args)
    except ValueError as error:
        parser.error(f"--ckpt_path: {error}")
    schedules = {str(calls): fit.fitted(calls) for calls in args.calls}
    write_json(args.work / "schedules.json", schedules)
    print("| calls | sampler | distance | likeness | on the seeds of the fit |\n|---|---|---|---|---|")
    known = True
    for calls in args.calls:
        for name, schedule in (("default", None), ("fitted", schedules[str(calls)])):
            there, here = (fit.measured(calls, schedule, seed) for seed in (args.report_seed, args.first_seed))
            shown = [
                "none" if one is None else formatted(one) for one in (there[DISTANCE], there[LIKENESS], here[DISTANCE])
            ]
            known = known and there[DISTANCE] is not None
            print(f"| {calls} | {name} | " + " | ".join(shown) + " |")
    if args.write_card and not known:
        print("warning: steps are written though not every distance could be measured", file=sys.stderr)
    if args.write_card:
        write_json(description_path(args.ckpt_path), with_schedules(args.ckpt_path, schedules))


if __name__ == "__main__":
    main()
