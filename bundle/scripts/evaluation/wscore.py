"""Trains the critics of the W-score, one per seed, and writes wscore.json."""

from __future__ import annotations

import hashlib
import json
import sys
import time
from itertools import product
from pathlib import Path
from typing import Any, Optional, Sequence

import torch
from ignite.engine import Engine, Events
from ignite.handlers import ProgressBar
from monai.data import DataLoader, Dataset
from monai.engines import SupervisedTrainer
from torch import Tensor, nn

from ..errors import require_writable
from ..files import hold, release, remove_leftovers, require_own, set_aside, write_json
from ..hardware import device_name
from ..metrics.critic import CriticPairs, critic_losses, critic_network, held_out, mixes, w_ratio
from ..networks.checkpoint import load_strictly, load_tensors, save_tensors
from ..stops import stoppable_engine
from ..words import count, duration
from .volume_sets import VolumeSet, generators

PENALTY_WEIGHT = 10.0  # lambda of Gulrajani et al. (2017)
BETAS = (0.5, 0.999)
FEW_HELD_OUT = 20


class WScore:
    """W-scores of several generators.

    Args:
        sets: 'real', the generators' sets, and perhaps 'training', which no real volume may be of.
        volumes: data set of all volumes, the sets one after the other, scaled to [-1, 1].
        scaling: what the volumes depend on besides their files: 'grid' (X, Y, Z), 'field_of_view_mm', 'hu_window'.
        output_dir: of wscore.json and the critics' checkpoints; a run that was broken off continues, and critics that
            are there already, of the same volumes and settings, are taken.
        anchor: generator that ratios are taken to; None for the first.
        critics: which generators share a critic, see `mixes`.
        num_steps: of a critic.
        batch_size: real and as many fake volumes per step.
        lr: of Adam.
        channels: of the critic's convolutions.
        num_seeds: evaluations, each with critics of its own.
        held_out_share: volumes of each set that the critic is not trained on, but measured with.
        checkpoint_interval: steps.
        num_workers: of the loader.
        device: of the critic.

    Raises:
        ValueError: in one line, for an unknown anchor, too few volumes, or real volumes that a generator was trained on.
    """

    def __init__(
        self,
        sets: dict[str, VolumeSet],
        volumes: Dataset,
        scaling: dict[str, Any],
        output_dir: str,
        anchor: Optional[str],
        critics: str,
        num_steps: int,
        batch_size: int,
        lr: float,
        channels: Sequence[int],
        num_seeds: int,
        held_out_share: float,
        checkpoint_interval: int,
        num_workers: int,
        device: torch.device,
    ) -> None:
        self.models = generators(sets)
        self.anchor = self.models[0] if anchor is None else anchor
        if self.anchor not in self.models:
            raise ValueError(f"anchor must be one of {', '.join(self.models)}, not {self.anchor}")
        self.parts, self.hashes = _split(sets, held_out_share), [one for each in sets.values() for one in each.hashes]
        self.folder, self.volumes = require_writable(output_dir, "output_dir"), volumes
        require_own(self.folder / "wscore.json", '"log_ratio"', "output_dir")
        hold(self.folder, "output_dir")
        remove_leftovers(self.folder)
        self.critics, self.mixes = critics, mixes(self.models, self.anchor, critics)
        self.grid, self.channels, self.lr = list(scaling["grid"]), list(channels), lr
        self.num_steps, self.batch_size, self.num_seeds = num_steps, batch_size, num_seeds
        self.checkpoint_interval, self.num_workers, self.device = checkpoint_interval, num_workers, device
        self.settings = {
            **scaling,
            "num_steps": num_steps,
            "batch_size": batch_size,
            "lr": lr,
            "channels": self.channels,
        }
        self.results: dict[str, Any] = {
            "anchor": self.anchor,
            "critics": critics,
            "sets": {name: one.sha256 for name, one in sets.items()},
            "num_volumes": {n: {"training": len(a), "held_out": len(b)} for n, (a, b) in self.parts.items()},
            "settings": {**self.settings, "num_seeds": num_seeds, "held_out_share": held_out_share},
        }

    def run(self) -> None:
        """Trains what is not yet trained, measures, writes and prints."""
        print(
            f"trains {len(self.mixes)} x {self.num_seeds} critics of {self.num_steps} steps, each on real volumes against "
            f"those of {' and '.join(self.mixes[0])}{', and so on' if len(self.mixes) > 1 else ''}, on "
            f"{device_name(self.device)}; about {duration(self._seconds())} if none of them is there; -> {self.folder}/"
        )
        few = [f"{name} ({len(kept)})" for name, (_, kept) in self.parts.items() if len(kept) < FEW_HELD_OUT]
        if few:
            note = f"chance rules W1 of few volumes: fewer than {FEW_HELD_OUT} held out of {', '.join(few)}"
            print(f"warning: {note}", file=sys.stderr)
        found = []
        for mix in self.mixes:
            distances: dict[str, list[float]] = {name: [] for name in mix}
            for seed in range(self.num_seeds):
                critic = self._trained_critic(mix, seed)
                means = {name: self._mean_score(critic, self.parts[name][1]) for name in ("real", *mix)}
                for name in mix:
                    distances[name].append(means["real"] - means[name])
            found.append(distances)
        self.results.update(_scores(found, self.models, self.anchor))
        if few:
            self.results["notes"].append(note)
        write_json(self.folder / "wscore.json", self.results)
        release(self.folder)
        print(_summary(self.results))

    def _seconds(self) -> float:
        """Of all critics, from steps of one volume on another critic; loading volumes not counted."""
        critic, volume = critic_network(self.grid, self.channels, 0).to(self.device), torch.zeros(1, 1, *self.grid)
        volume, mix, times = volume.to(self.device), torch.full((1,), 0.5, device=self.device), []
        for _ in range(2):  # the first has more to do
            start = time.monotonic()
            critic_losses(critic, volume, volume, mix, PENALTY_WEIGHT)["loss"].backward()
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
            times.append(time.monotonic() - start)
        return times[-1] * self.batch_size * self.num_steps * self.num_seeds * len(self.mixes)

    def _trained_critic(self, mix: Sequence[str], seed: int) -> nn.Module:
        mix = sorted(mix, key=self._content)  # a critic is one of its volumes, whatever they are called
        critic, optimizer, step = self._resume(mix, seed)
        if step < self.num_steps:
            pairs = CriticPairs(
                self.volumes,
                self.parts["real"][0],
                [self.parts[name][0] for name in mix],
                self.num_steps * self.batch_size,
                step * self.batch_size,
                seed,
            )
            self._train(critic, optimizer, pairs, mix, seed, step)
        return critic

    def _content(self, name: str) -> list[str]:
        """What a critic sees of a set."""
        return [self.hashes[index] for index in self.parts[name][0]]

    def checkpoint_path(self, mix: Sequence[str], seed: int) -> Path:
        """Of the critic of these volumes and settings, so that others may lie beside it."""
        seen = [self._content("real"), *sorted(map(self._content, mix)), self.settings]
        key = hashlib.sha256(json.dumps(seen, sort_keys=True).encode()).hexdigest()
        return self.folder / f"critic_{key[:16]}_seed{seed}.pt"

    def _train(
        self,
        critic: nn.Module,
        optimizer: torch.optim.Adam,
        pairs: CriticPairs,
        mix: Sequence[str],
        seed: int,
        done: int,
    ) -> None:
        def update(engine: SupervisedTrainer, batch: dict[str, Tensor]) -> dict[str, float]:
            step = done + engine.state.iteration
            generator = torch.Generator().manual_seed(step * 1009 + seed)
            mix = torch.rand(len(batch["image"]), generator=generator).to(self.device)
            real, fake = (batch[name].to(self.device) for name in ("image", "label"))
            losses = critic_losses(critic, real, fake, mix, PENALTY_WEIGHT)
            optimizer.zero_grad(set_to_none=True)
            losses["loss"].backward()
            optimizer.step()
            return {name: float(value.detach()) for name, value in losses.items()}

        trainer = SupervisedTrainer(
            device=self.device,
            max_epochs=1,
            train_data_loader=DataLoader(pairs, batch_size=self.batch_size, num_workers=self.num_workers),
            network=critic,
            optimizer=optimizer,
            loss_function=critic_losses,
            iteration_update=update,
        )

        def save(engine: Engine) -> None:
            step = done + engine.state.iteration
            if step % self.checkpoint_interval == 0 or step == self.num_steps:
                self._save(critic, optimizer, self.checkpoint_path(mix, seed), step)

        trainer.add_event_handler(Events.ITERATION_COMPLETED, save)
        name = f"critic of {' and '.join(mix)}, seed {seed + 1} of {self.num_seeds}"
        of_all = f"of {self.num_steps} of the {name}; the same command continues"
        stoppable_engine(trainer, lambda: f"at step {done + trainer.state.iteration} {of_all}")
        ProgressBar(desc=name).attach(trainer, output_transform=lambda output: output)
        trainer.run()

    def _save(self, critic: nn.Module, optimizer: torch.optim.Adam, path: Path, step: int) -> None:
        save_tensors({"critic": critic.state_dict(), "optimizer": optimizer.state_dict(), "step": step}, path)

    def _resume(self, mix: Sequence[str], seed: int) -> tuple[nn.Module, torch.optim.Adam, int]:
        """A critic, its optimiser and the steps that it is trained already; a damaged checkpoint is set aside."""
        critic = critic_network(self.grid, self.channels, seed).to(self.device)
        optimizer = torch.optim.Adam(critic.parameters(), self.lr, betas=BETAS)
        path = self.checkpoint_path(mix, seed)
        if not path.is_file():
            return critic, optimizer, 0
        try:
            state = load_tensors(path)
            step = int(state["step"])
            load_strictly(critic, state["critic"], path)
            optimizer.load_state_dict(state["optimizer"])
        except (ValueError, LookupError, TypeError, AttributeError):
            print(f"{path} is damaged and set aside as {set_aside(path).name}; this critic is trained anew")
            return self._resume(mix, seed)
        return critic, optimizer, step

    @torch.no_grad()
    def _mean_score(self, critic: nn.Module, indices: Sequence[int]) -> float:
        scores = [critic(self.volumes[i]["image"].as_tensor()[None].to(self.device)).item() for i in indices]
        return sum(scores) / len(scores)


def _split(sets: dict[str, VolumeSet], share: float) -> dict[str, tuple[list[int], list[int]]]:
    """Indices of each set's training and held-out volumes in the list of all volumes, in the order of their content."""
    parts, first = {}, 0
    _require_unseen(sets)
    for name, one in sets.items():
        hashes, places = one.hashes, range(len(one))
        first, start = first + len(one), first
        if name == "training":
            continue
        if len(set(hashes)) < 2:
            more = "; --real_section all takes those of training, too" if name == "real" and one.folder else ""
            raise ValueError(
                f"{name} has {count(len(set(hashes)), 'different volume')}, the W-score needs 2 and more of each set: to "
                f"train a critic, and held out{more}"
            )
        kept = held_out(hashes, share)
        order = sorted(places, key=lambda i: hashes[i])
        parts[name] = ([start + i for i in order if not kept[i]], [start + i for i in order if kept[i]])
    return parts


def _require_unseen(sets: dict[str, VolumeSet]) -> None:
    seen = set(sets["real"].hashes) & set(sets["training"].hashes) if "training" in sets else ()
    if seen:
        raise ValueError(
            f"{count(len(seen), 'real volume')} of the W-score lie in training_dir, too: give real_dir, or real_section, "
            "volumes that no generator was trained on"
        )


def _scores(found: Sequence[dict[str, list[float]]], models: Sequence[str], anchor: str) -> dict[str, Any]:
    """What wscore.json holds of W1 of each critic's generators, by seed."""
    pairs = {(a, b): w_ratio(one[a], one[b]) for one in found for a, b in product(one, one)}
    notes = [
        f"the critic of {' and '.join(one)} sees no distance (W1 <= 0) of {name} with seed {', '.join(map(str, blind))} of "
        f"{len(one[name])}, which its ratios leave out: train it longer, or with more volumes"
        for one in found
        for name in one
        if (blind := [seed for seed, distance in enumerate(one[name]) if not distance > 0])
    ]
    return {
        "per_critic": [{"models": list(one), "distance": one} for one in found],
        "ratio": {name: pairs[name, anchor]["ratio"] for name in models if (name, anchor) in pairs},
        "log_ratio": {a: {b: pairs[a, b]["log_ratio"] for b in models if (a, b) in pairs} for a in models},
        "notes": notes,
    }


def _summary(results: dict[str, Any]) -> str:
    def text(entry: Optional[dict[str, Any]]) -> str:
        if entry is None:
            return "-"
        if entry["mean"] is None:
            return "undefined"
        seeds, left_out = entry["num_seeds"], entry["num_undefined"]
        spread = f" ± {entry['std']:.2g}" if entry["std"] is not None else ""
        return f"{entry['mean']:.4g}{spread}" + (f" ({seeds} of {seeds + left_out})" if left_out else "")

    ratios, logs, counts = results["ratio"], results["log_ratio"], results["num_volumes"]
    lines = [
        f"W-score, W1 over that of {results['anchor']}: above 1, further from the real volumes; mean ± std over seeds"
    ]
    lines += [f"  {name:20s} {text(one):26s} N {counts[name]['held_out']} held out" for name, one in ratios.items()]
    lines.append("log ratio: above 0, the row is nearer to the real volumes than the column")
    lines.append(f"  {'':20s}" + "".join(f"{name:>26.24s}" for name in logs))
    lines += [f"  {name:20s}" + "".join(f"{text(row.get(other)):>26s}" for other in logs) for name, row in logs.items()]
    return "\n".join(lines + [f"note: {note}" for note in results["notes"]])
