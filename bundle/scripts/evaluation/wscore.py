"""Trains the critics of the W-score, one per seed, and writes wscore.json."""

from __future__ import annotations

import json
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
from ..metrics.critic import CriticPairs, critic_losses, critic_network, held_out, w_scores
from ..networks.checkpoint import load_strictly, load_tensors, save_tensors
from ..stops import stoppable_engine
from .volume_sets import VolumeSet, generators

PENALTY_WEIGHT = 10.0  # lambda of Gulrajani et al. (2017)
BETAS = (0.5, 0.999)


class WScore:
    """W-scores of several generators.

    Args:
        sets: 'real' and the generators' sets.
        volumes: data set of all volumes, the sets one after the other, scaled to [-1, 1].
        grid: of the volumes.
        output_dir: of wscore.json and the critics' checkpoints; a run that was broken off continues.
        anchor: generator that ratios are taken to; None for the first.
        num_steps: of a critic.
        batch_size: real and as many fake volumes per step.
        lr: of Adam.
        channels: of the critic's convolutions.
        num_seeds: critics to train.
        held_out_share: volumes of each set that the critic is not trained on, but measured with.
        checkpoint_interval: steps.
        num_workers: of the loader.
        device: of the critic.

    Raises:
        ValueError: in one line, for an unknown anchor, too few volumes, or checkpoints of other settings.
    """

    def __init__(
        self,
        sets: dict[str, VolumeSet],
        volumes: Dataset,
        grid: Sequence[int],
        output_dir: str,
        anchor: Optional[str],
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
        self.folder, self.volumes = require_writable(output_dir, "output_dir"), volumes
        require_own(self.folder / "wscore.json", '"log_ratio"', "output_dir")
        hold(self.folder, "output_dir")
        remove_leftovers(self.folder)
        self.grid, self.channels, self.lr = list(grid), list(channels), lr
        self.num_steps, self.batch_size, self.num_seeds = num_steps, batch_size, num_seeds
        self.checkpoint_interval, self.num_workers, self.device = checkpoint_interval, num_workers, device
        self.parts = _split(sets, held_out_share)
        self.settings = {
            "sets": {name: one.sha256 for name, one in sets.items()},
            "grid": self.grid,
            "num_steps": num_steps,
            "batch_size": batch_size,
            "lr": lr,
            "channels": self.channels,
            "held_out_share": held_out_share,
        }

    def run(self) -> None:
        """Trains what is not yet trained, measures, writes and prints."""
        distances: dict[str, list[float]] = {name: [] for name in self.models}
        for seed in range(self.num_seeds):
            critic = self._trained_critic(seed)
            means = {name: self._mean_score(critic, self.parts[name][1]) for name in ("real", *self.models)}
            for name in self.models:
                distances[name].append(means["real"] - means[name])
        counts = {name: {"training": len(a), "held_out": len(b)} for name, (a, b) in self.parts.items()}
        results = {"anchor": self.anchor, "num_volumes": counts, "settings": self.settings, "per_seed": distances}
        results.update(w_scores(distances, self.anchor))
        write_json(self.folder / "wscore.json", results)
        release(self.folder)
        print(_summary(results))

    def checkpoint_path(self, seed: int) -> Path:
        return self.folder / f"critic_seed{seed}.pt"

    def _trained_critic(self, seed: int) -> nn.Module:
        critic, optimizer, step = self._resume(seed)
        if step < self.num_steps:
            pairs = CriticPairs(
                self.volumes,
                self.parts["real"][0],
                [self.parts[name][0] for name in self.models],
                self.num_steps * self.batch_size,
                step * self.batch_size,
                seed,
            )
            self._train(critic, optimizer, pairs, seed, step)
        return critic

    def _train(self, critic: nn.Module, optimizer: torch.optim.Adam, pairs: CriticPairs, seed: int, done: int) -> None:
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
                self._save(critic, optimizer, seed, step)

        trainer.add_event_handler(Events.ITERATION_COMPLETED, save)
        of_all = f"of {self.num_steps} of critic {seed + 1} of {self.num_seeds}; the same command continues"
        stoppable_engine(trainer, lambda: f"at step {done + trainer.state.iteration} {of_all}")
        ProgressBar(desc=f"critic {seed + 1}/{self.num_seeds}").attach(trainer, output_transform=lambda output: output)
        trainer.run()

    def _save(self, critic: nn.Module, optimizer: torch.optim.Adam, seed: int, step: int) -> None:
        state = {
            "critic": critic.state_dict(),
            "optimizer": optimizer.state_dict(),
            "step": step,
            "settings": json.dumps(self.settings, sort_keys=True),
        }
        save_tensors(state, self.checkpoint_path(seed))

    def _resume(self, seed: int) -> tuple[nn.Module, torch.optim.Adam, int]:
        """A critic, its optimiser and the steps that it is trained already; a damaged checkpoint is set aside."""
        critic = critic_network(self.grid, self.channels, seed).to(self.device)
        optimizer = torch.optim.Adam(critic.parameters(), self.lr, betas=BETAS)
        path, settings = self.checkpoint_path(seed), json.dumps(self.settings, sort_keys=True)
        if not path.is_file():
            return critic, optimizer, 0
        try:
            state = load_tensors(path)
            theirs, step = str(state["settings"]), int(state["step"])
            if theirs == settings:
                load_strictly(critic, state["critic"], path)
                optimizer.load_state_dict(state["optimizer"])
        except (ValueError, LookupError, TypeError, AttributeError):
            print(f"{path} is damaged and set aside as {set_aside(path).name}; this critic is trained anew")
            return self._resume(seed)
        if theirs != settings:
            raise ValueError(f"{path} is of other volumes or settings; choose another output_dir")
        return critic, optimizer, step

    @torch.no_grad()
    def _mean_score(self, critic: nn.Module, indices: Sequence[int]) -> float:
        scores = [critic(self.volumes[i]["image"].as_tensor()[None].to(self.device)).item() for i in indices]
        return sum(scores) / len(scores)


def _split(sets: dict[str, VolumeSet], share: float) -> dict[str, tuple[list[int], list[int]]]:
    """Indices of each set's training and held-out volumes in the list of all volumes."""
    parts, first = {}, 0
    for name, one in sets.items():
        if len(set(one.hashes)) < 2:
            raise ValueError(f"{name} has fewer than 2 different volumes, the least that the W-score needs of each set")
        kept = held_out(one.hashes, share)
        places = range(first, first + len(one))
        parts[name] = ([i for i, k in zip(places, kept) if not k], [i for i, k in zip(places, kept) if k])
        first += len(one)
    return parts


def _summary(results: dict[str, Any]) -> str:
    def text(entry: Optional[dict[str, Any]]) -> str:
        if entry is None:
            return "undefined"
        return f"{entry['mean']:.4g}" + (f" ± {entry['std']:.2g}" if entry["std"] is not None else "")

    names = list(results["distance"])
    lines = [f"W-score, ratio to {results['anchor']}; mean ± standard deviation over seeds; N held out"]
    lines += [
        f"  {name:20s} W1 {text(results['distance'][name]):20s} ratio {text(results['ratio'][name]):18s} "
        f"N {results['num_volumes'][name]['held_out']}"
        for name in names
    ]
    lines.append("log ratio of row over column: below 0, the row is nearer to the real volumes")
    lines += [
        f"  {name:20s}" + "".join(f"{text(results['log_ratio'][name][other]):>20s}" for other in names)
        for name in names
    ]
    return "\n".join(lines)
