"""PRDiT and its three rivals at equal training FLOPs, on phantoms of 32^3. Run by hand, for hours to days:

    python benchmarks/baselines.py --work DIR --budget 0.4

For each system: a search of learning rates, three for each stage at a share of the budget, chosen by the stage's own
validation loss (HA-GAN, whose losses rank nothing: FID to the validation volumes, on the features of `evaluate.yaml`); the
training at the best rate; volumes of the same seeds. Then `table.md` and `samples.png` of all (baselines_table.py). All by the
bundle's own commands. What is done is kept in DIR/BUDGET/SYSTEM/state.json and not done again; a training that was broken off
continues from its checkpoints. `--systems` takes some of them, so that two processes can share the work; `--jobs 3` runs so
many trainings of a system at once, which a GPU has room for. What a step and a volume cost is measured on the CPU, wherever
the trainings run.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Callable, Optional

import numpy as np
import torch
from monai.bundle import ConfigParser
from torch.utils.flop_counter import FlopCounterMode

BUNDLE = Path(__file__).resolve().parents[1] / "bundle"
sys.path.insert(0, str(BUNDLE))
from baselines_table import (  # noqa: E402
    FIELD_OF_VIEW_MM,
    GRID,
    Row,
    bundle,
    config_files,
    positive,
    write_phantoms,
    write_report,
)
from quality import load_generated  # noqa: E402

from scripts.data.hounsfield import check_hu  # noqa: E402
from scripts.data.training.datalist import FIRST_VALIDATION_PHANTOM  # noqa: E402
from scripts.files import write_json  # noqa: E402
from scripts.inferers.generator import Item  # noqa: E402

CPU = "$torch.device('cpu')"
EPOCHS = 8  # of a run: as many checkpoints
FIRST_SEED_OF_SEARCH = 1_000_000
# the published 1e-4 belongs to runs a thousand times as long, and was behind at 0.06 PFLOP
LONG_RATES = (3.0e-4, 1.0e-3, 3.0e-3)
SHORT = {
    "warmup": 0.05,
    "lr_decay_to": 0.0,
    "max_grad_norm": 1.0,
    "ema_decay": 0.99,
}  # PRDiT's, for rivals' short runs, too


@dataclass(frozen=True)
class Stage:
    """A training.

    Attributes:
        name: of the weights.
        overlays: of train.yaml.
        share: of the system's budget.
        batch_size: at most, volumes a step.
        rates: to search among.
        settings: that are not the overlay's.
        stands_on: setting that takes the weights of the stage before.
        late_players: share of the steps before the discriminators play.
        other_rates: settings that are so many times the rate.
        has_val_loss: whether its loss ranks weights.
    """

    name: str
    overlays: list[str]
    share: float
    batch_size: int
    rates: tuple[float, float, float] = LONG_RATES
    settings: dict[str, Any] = field(default_factory=dict)
    stands_on: Optional[str] = None
    late_players: Optional[float] = None
    other_rates: dict[str, float] = field(default_factory=dict)
    has_val_loss: bool = True

    def on(self, data: Path, start: Optional[str]) -> dict[str, Any]:
        """Settings of a training on a data set, and on the weights of the stage before, if it stands on them."""
        settings = {**self.settings, "batch_size": self.batch_size, "bf16": False, "tf32": True, "num_pictures": 0}
        settings |= {"dataset_dir": str(data), "num_validation_times": 2}
        return settings | (
            {self.stands_on: start} if self.stands_on else {"grid": GRID, "field_of_view_mm": FIELD_OF_VIEW_MM}
        )

    def at(self, rate: float) -> dict[str, float]:
        """Settings of all its learning rates."""
        return {"lr": rate, **{name: factor * rate for name, factor in self.other_rates.items()}}


@dataclass(frozen=True)
class System:
    """A generator: its stages, and calls of the network for a volume, by the same sampler for all."""

    stages: list[Stage]
    calls: int


def wavelet(channels: int) -> System:
    settings = {"channels": channels, "multipliers": [1, 2, 2], **SHORT}
    return System([Stage("wavelet", ["train_wavelet"], 1.0, 16, settings=settings)], 20)


def gan(channels: int) -> System:
    rates, settings = {"discriminator_lr": 4.0}, {"channels": channels}
    return System(
        [Stage("gan", ["train_gan"], 1.0, 16, LONG_RATES, settings, other_rates=rates, has_val_loss=False)], 1
    )


# The first four are sizes that take many steps; two have the published widths (3D-LDM has them already). PRDiT's stage 1, whose
# volumes are blocks of 4^3 patches, has the share of FLOPs that the shipped recipe's 920 and 1,488 steps give it at 32^3.
PRDIT = [
    Stage("local", [], 0.18, 64, (6.0e-4, 2.0e-3, 6.0e-3)),
    Stage("model", ["train_global"], 0.82, 32, (1.0e-3, 3.0e-3, 1.0e-2), {"ema_decay": 0.99}, "local_ckpt"),
]
CODEC = {"factor": 2, "num_codes": 512, **SHORT, "ema_decay": 1.0e-9}
LATENT = [
    Stage("autoencoder", ["train_autoencoder"], 0.5, 8, settings=CODEC, late_players=0.75),
    Stage("latent", ["train_latent"], 0.5, 32, settings=SHORT, stands_on="autoencoder_ckpt"),
]
SYSTEMS = {
    "PRDiT": System(PRDIT, 20),
    "WDM-3D": wavelet(32),
    "HA-GAN": gan(16),
    "3D-LDM without perceptual loss": System(LATENT, 20),
    "WDM-3D, published width": wavelet(64),
    "HA-GAN, published width": gan(32),
}


def write_data(folder: Path, num_training: int, num_validation: int) -> None:
    """The data set that all systems see.

    Raises:
        SystemExit: in one line, when the folder has another number of volumes.
    """
    path, asked = folder / "dataset.json", {"training": num_training, "validation": num_validation}
    if path.is_file():
        there = {section: len(items) for section, items in json.loads(path.read_text()).items()}
        if there != asked:
            raise SystemExit(f"error: {folder} has {there} phantoms, asked for were {asked}; choose another --work")
        return
    firsts = {"training": 0, "validation": FIRST_VALIDATION_PHANTOM}
    lists = {
        section: [{"image": name} for name in write_phantoms(folder, firsts[section], count)]
        for section, count in asked.items()
    }
    write_json(path, lists)


class Work:
    """What is done for one system, and its folder.

    Args:
        folder: of the whole comparison, with the data.
        system: see `SYSTEMS`.
        budget: PFLOP of training.
        search_share: of it, that each tried rate has.
        jobs: trainings at once.
    """

    def __init__(self, folder: Path, system: str, budget: float, search_share: float, jobs: int = 1) -> None:
        self.data, self.folder, self.system = folder / "data", folder / f"{budget:g}" / system, SYSTEMS[system]
        self.budget, self.search_budget = budget, budget * search_share
        self.folder.mkdir(parents=True, exist_ok=True)
        self.path = self.folder / "state.json"
        self.done: dict[str, Any] = json.loads(self.path.read_text()) if self.path.is_file() else {}
        self.jobs, self.writing = jobs, threading.Lock()

    def once(self, name: str, make: Callable[[], Any]) -> Any:
        """What `make` gave when this was done first."""
        if name not in self.done:
            print(f"{time.strftime('%H:%M:%S')} {self.folder.name}/{name}", flush=True)
            value = make()
            with self.writing:
                self.done[name] = value
                part = self.path.with_suffix(".part")
                part.write_text(json.dumps(self.done, indent=1))
                part.rename(self.path)
        return self.done[name]

    def train(self) -> list[dict[str, Any]]:
        """The records of the stages at the whole budget, each at the best rate of its search.

        A stage is searched on the best of the search before it, so that with several jobs it is trained beside the search of
        the next one.
        """
        finals: list[Future[dict[str, Any]]] = []
        start: Optional[str] = None
        with ThreadPoolExecutor(self.jobs) as pool:
            for stage in self.system.stages:
                self.cost_of_step(stage, start)
                tried = list(pool.map(partial(self._trained, "search", stage, start), stage.rates))
                best = min(tried, key=lambda one: (not np.isfinite(one["validation"]), one["validation"]))
                finals.append(pool.submit(self._final, stage, best["rate"], finals[-1] if finals else None))
                start = best["weights"]
        return [one.result() for one in finals]

    def _final(self, stage: Stage, rate: float, before: Optional[Future[dict[str, Any]]]) -> dict[str, Any]:
        return self._trained("final", stage, before.result()["weights"] if before else None, rate)

    def _trained(self, part: str, stage: Stage, start: Optional[str], rate: float) -> dict[str, Any]:
        name = f"{part}/{stage.name} at {rate:g}"
        budget = self.budget if part == "final" else self.search_budget
        return self.once(name, lambda: self._train(self.folder / name, stage, rate, budget, start))

    def cost_of_step(self, stage: Stage, start: Optional[str]) -> dict[str, float]:
        """'tflop' and 'core_seconds' of a training step."""
        settings = {**stage.on(self.data, start), "device": CPU}
        return self.once(
            f"a step of {stage.name}", lambda: cost_of_step(["train", *stage.overlays], settings, stage.late_players)
        )

    def _train(self, folder: Path, stage: Stage, rate: float, budget: float, start: Optional[str]) -> dict[str, Any]:
        settings = {**stage.on(self.data, start), **stage.at(rate), "ckpt_dir": str(folder)}
        cost = self.cost_of_step(stage, start)
        epoch = max(1, round(1000 * budget * stage.share / cost["tflop"] / EPOCHS))
        if stage.late_players is not None:
            settings["discriminator_start"] = round(stage.late_players * EPOCHS * epoch)
        settings["val_interval"] = EPOCHS // 4 if budget == self.budget else EPOCHS
        stack = ["train", *stage.overlays]
        seconds = bundle("training", stack, max_epochs=EPOCHS, epoch_length=epoch, **settings)
        total = {name: EPOCHS * epoch * one for name, one in cost.items()}
        weights = folder / f"{stage.name}.pt"
        run = {"rate": rate, "steps": EPOCHS * epoch, "batch_size": stage.batch_size, "weights": str(weights), **total}
        return {**run, "wall_seconds": seconds, "validation": self._validated(weights, stage)}

    def _validated(self, weights: Path, stage: Stage) -> float:
        if stage.has_val_loss:
            return float(json.loads(weights.with_suffix(".json").read_text())["training"]["val_loss"])
        generated, report = weights.parent / "volumes", weights.parent / "report"
        count = len(json.loads((self.data / "dataset.json").read_text())["validation"])
        self._sample(weights, generated, count, FIRST_SEED_OF_SEARCH)
        sets = {"real_dir": self.data, "real_section": "validation", "generated_dirs": {"GAN": str(generated)}}
        try:
            for volume in load_generated(generated, FIRST_SEED_OF_SEARCH):
                check_hu(torch.from_numpy(volume), str(generated))
        except ValueError as error:  # evaluate.yaml would refuse them: this rate is none
            print(error, flush=True)
            return float("inf")
        bundle("run", ["evaluate"], metrics=["FID"], output_dir=report, **sets)
        return float(json.loads((report / "metrics.json").read_text())["distances"]["GAN"]["FID"]["value"])

    def _sample(self, weights: Path, folder: Path, count: int, seed: int = 0) -> None:
        how = {"num_inference_steps": self.system.calls, "batch_size": 8, "bf16": False, "writers": ["nifti"]}
        bundle("run", ["inference"], ckpt_path=weights, output_dir=folder, num_samples=count, seed=seed, **how)

    def sample(self, weights: str, count: int) -> Path:
        """The folder of the volumes of the seeds from 0 on."""
        folder = self.folder / "volumes"
        self.once(f"{count} volumes", lambda: self._sample(Path(weights), folder, count))
        return folder

    def cost_of_volume(self, weights: str) -> dict[str, float]:
        """'tflop' and 'core_seconds' of a volume, and 'parameters' of its network in millions."""
        return self.once("a volume", lambda: self._cost_of_volume(weights))

    def _cost_of_volume(self, weights: str) -> dict[str, float]:
        generator = generator_of(weights, self.system.calls, device=CPU, bf16=False, compile=False)
        found = counted(lambda: generator.sample([Item(0)]))
        return {**found, "parameters": sum(one.numel() for one in generator.parameters()) / 1e6}


def parsed(stack: list[str], settings: dict[str, Any]) -> ConfigParser:
    parser = ConfigParser()
    parser.read_config(config_files(stack))
    parser.update(settings)
    return parser


def generator_of(weights: str, calls: int, **settings: Any) -> Any:
    """That of inference.yaml. Its output folder, which stays empty, is one that no other process has."""
    with tempfile.TemporaryDirectory() as folder:
        given = {"ckpt_path": weights, "num_inference_steps": calls, "output_dir": folder, **settings}
        return parsed(["inference"], given).get_parsed_content("generator")


def counted(run: Callable[[], Any]) -> dict[str, float]:
    """'tflop', as PyTorch counts them, and 'core_seconds', seconds of the processor, of the second and third run of three."""
    run()
    with FlopCounterMode(display=False) as counter:
        run()
    start = time.process_time()
    run()
    return {"tflop": counter.get_total_flops() / 1e12, "core_seconds": time.process_time() - start}


def cost_of_step(stack: list[str], settings: dict[str, Any], late_players: Optional[float] = None) -> dict[str, float]:
    """Of a training step, forward and backward: the mean of those without and with discriminators, where these come late."""
    if late_players is not None:
        parts = [cost_of_step(stack, {**settings, "discriminator_start": start}) for start in (10**9, 0)]
        return {name: late_players * parts[0][name] + (1 - late_players) * parts[1][name] for name in parts[0]}
    probe = parsed(stack, settings).get_parsed_content("probe")
    batch = probe.batch(probe.batch_size)
    return counted(lambda: probe.run(batch))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--budget", type=float, default=0.4, help="PFLOP of training a system, without the search")
    parser.add_argument("--search_share", type=float, default=0.16, help="of the budget, for each rate that is tried")
    parser.add_argument("--num_phantoms", type=positive, default=512, help="of training")
    parser.add_argument("--num_validation_phantoms", type=positive, default=32)
    parser.add_argument("--num_samples", type=positive, default=64)
    parser.add_argument("--systems", nargs="+", default=list(SYSTEMS), choices=list(SYSTEMS))
    parser.add_argument("--jobs", type=positive, default=1, help="trainings at once")
    parser.add_argument("--critic_steps", type=int, default=100, help="of the W-score; 0 leaves it out")
    args = parser.parse_args()
    if len(set(args.systems)) < len(args.systems):
        parser.error("--systems: one is named twice")
    if args.budget <= 0 or args.search_share <= 0:
        parser.error("--budget and --search_share must be more than 0")
    write_data(args.work / "data", args.num_phantoms, args.num_validation_phantoms)
    rows = {}
    for system in args.systems:
        work = Work(args.work, system, args.budget, args.search_share, args.jobs)
        stages = work.train()
        weights = stages[-1]["weights"]
        rows[system] = Row(stages, work.sample(weights, args.num_samples), work.cost_of_volume(weights))
    write_report(args.work / f"{args.budget:g}", rows, args.num_samples, args.critic_steps)


if __name__ == "__main__":
    main()
