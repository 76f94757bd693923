"""What the bundle adds to a plain PyTorch loop, for PRDiT and its rivals. Run by hand, minutes:

    python benchmarks/overhead.py
    python benchmarks/overhead.py --systems HA-GAN --steps 5

The networks, batches and settings are those of baselines.py, on phantoms of 32^3. In training, steps of the bundle's trainer
and of the plain loop take turns: all that the trainer does from one step to the next (reading, noise, loss, both passes, guard,
optimiser, average, logs) against noise, loss, both passes and Adam, on a copy of the network. Validation and checkpoints are
not counted. In sampling, batches of volumes take turns, with as many network calls. Seconds are of the processor, so that other
work on the machine counts little; the ratio is that of the medians.
"""

from __future__ import annotations

import argparse
import math
import statistics
import tempfile
import time
from copy import deepcopy
from pathlib import Path
from typing import Any, Callable

import torch
import torch.nn.functional as F
from baselines import CPU, SYSTEMS, Stage, generator_of, parsed, write_data
from baselines_table import positive
from ignite.engine import Engine, Events
from torch import Tensor, nn

from scripts.inferers.generator import Item  # baselines.py has made the package known
from scripts.networks import network_from_checkpoint
from scripts.networks.ha_gan import SHRINK, SLABS
from scripts.networks.high_resolution import downsample_nearest

WARM_UP = 2  # steps and rounds that are not counted
BATCH = 8  # volumes at once in sampling
Step = Callable[[Tensor], None]


def alphas(name: str, times: int) -> Tensor:
    """alpha of x_t = alpha x_0 + sqrt(1 - alpha^2) eps at 0 to times - 1."""
    steps = (torch.arange(times + 1, dtype=torch.float64) / times).float()
    if name == "cosine_sine":
        return torch.cos(0.5 * math.pi * steps[:-1])
    if name == "ddpm_linear":
        return (1 - torch.linspace(1e-4, 0.02, times)).cumprod(0).sqrt()
    return (torch.cos((steps + 0.008) / 1.008 * 0.5 * math.pi) / math.cos(0.008 / 1.008 * 0.5 * math.pi))[1:].clamp(
        1e-4
    )


def column(values: Tensor) -> Tensor:
    return values.view(-1, 1, 1, 1, 1)


def plain_denoising(content: Any) -> Step:
    """Of whole volumes; PRDiT's stage 1 sees a block of patches of each."""
    objective = content("objective")
    network, optimizer = copied(objective.network)
    space, name = objective.space, objective.process.name
    table, window = alphas(name, objective.process.num_train_timesteps), getattr(objective, "window", 0)

    def step(hu: Tensor) -> None:
        x = space.encode(hu)
        halo = 0
        if window:
            halo, stride = objective.halo, objective.stride
            starts = torch.randint((x.shape[-1] // stride) - window + 1, (len(x), 3)) * stride
            side = window * stride + 2 * halo
            padded = F.pad(x, [halo] * 6, mode="reflect")
            x = torch.stack(
                [one[:, a : a + side, b : b + side, c : c + side] for one, (a, b, c) in zip(padded, starts)]
            )
        noise, times = torch.randn_like(x), torch.randint(len(table), (len(x),))
        alpha = column(table[times])
        noisy = alpha * x + (1 - alpha**2).sqrt() * noise
        found = network.forward_local_padded(noisy, times) if window else network(noisy, times)
        inner = slice(halo, x.shape[-1] - halo)
        x, noise = (one[..., inner, inner, inner] for one in (x, noise))
        if name == "cosine_sine":
            loss = 2 * F.mse_loss(found, torch.cat([noise, x], 1))
        else:
            loss = F.mse_loss(found, x) if name == "ddpm_linear" else F.l1_loss(found, noise)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def copied(network: nn.Module) -> tuple[nn.Module, torch.optim.Optimizer]:
    copy = deepcopy(network)
    return copy, torch.optim.Adam([one for one in copy.parameters() if one.requires_grad], lr=1.0e-4)


def plain_gan(content: Any) -> Step:
    """Each player's own backward pass; the generator has one forward pass for both."""
    objective = content("objective")
    (generator, first), (discriminator, second) = copied(objective.network), copied(objective.discriminator)

    def step(hu: Tensor) -> None:
        x = objective.space.encode(hu)
        start = SHRINK * int(torch.randint(objective.discriminator.last_start // SHRINK + 1, ()))
        low, slab = generator.both(torch.randn(len(x), generator.latent_size), start)
        real = discriminator(downsample_nearest(x, SHRINK), x[..., start : start + x.shape[-1] // SLABS], start)
        generated = discriminator(low.detach(), slab.detach(), start)
        second.zero_grad()
        (_verdict(real, 1) + _verdict(generated, 0)).backward()
        second.step()
        first.zero_grad()
        _verdict(discriminator(low, slab, start), 1).backward()
        first.step()

    return step


def _verdict(logits: Tensor, wanted: float) -> Tensor:
    return F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, wanted))


def plain_autoencoder(content: Any) -> Step:
    """With both discriminators, each player's own backward pass."""
    objective = content("objective")
    (network, first), (players, second) = copied(objective.network), copied(objective.discriminators)

    def step(hu: Tensor) -> None:
        x = objective.space.encode(hu)
        found, commitment = network(x)
        slices = torch.randint(x.shape[-1], (len(x),)).tolist()
        flat, real_flat = (torch.stack([one[..., k] for one, k in zip(both, slices)]) for both in (found, x))
        loss = 4 * F.l1_loss(found, x) + commitment
        pairs = ((players.volumes, found, x), (players.slices, flat, real_flat))
        second_loss = torch.zeros(())
        for player, fake, real in pairs:
            *features, fooled = player(fake)
            *wanted, of_real = player(real)
            distance = sum(F.l1_loss(one, other.detach()) for one, other in zip(features, wanted))
            loss = loss - fooled.mean() + 4 * distance
            second_loss = second_loss + F.relu(1 - of_real).mean() + F.relu(1 + player(fake.detach())[-1]).mean()
        first.zero_grad()
        loss.backward(inputs=[one for one in network.parameters() if one.requires_grad])
        first.step()
        second.zero_grad()
        second_loss.backward()
        second.step()

    return step


PLAIN = {"gan": plain_gan, "autoencoder": plain_autoencoder}


class Turns:
    """Seconds of a trainer's steps and of plain ones, which run between them.

    Args:
        plain: step.
        volumes: (B, 1, X, Y, Z) in HU, of a plain step.
    """

    def __init__(self, plain: Step, volumes: Tensor) -> None:
        self.plain, self.volumes = plain, volumes
        self.seconds: dict[str, list[float]] = {"bundle": [], "plain": []}

    def attach(self, trainer: Engine) -> None:
        """After everything else that a step does."""
        trainer.add_event_handler(Events.STARTED, self.start)
        trainer.add_event_handler(Events.ITERATION_COMPLETED, self.turn)

    def start(self, engine: Engine) -> None:
        self.since = time.process_time()

    def turn(self, engine: Engine) -> None:
        now = time.process_time()
        self.plain(self.volumes)
        after = time.process_time()
        self.seconds["bundle"].append(now - self.since)
        self.seconds["plain"].append(after - now)
        self.since = time.process_time()


def tell(name: str, seconds: dict[str, list[float]]) -> None:
    """A row of the table."""
    bundle, plain = (statistics.median(seconds[one][WARM_UP:]) for one in ("bundle", "plain"))
    print(f"| {name} | {1000 * bundle:.0f} | {1000 * plain:.0f} | {bundle / plain:.2f} |", flush=True)


def train(stage: Stage, folder: Path, data: Path, before: str, steps: int) -> dict[str, list[float]]:
    """Seconds of the steps; the folder then has the stage's weights."""
    settings = {**stage.on(data, before), **stage.at(stage.rates[1]), "ckpt_dir": str(folder), "device": CPU}
    settings |= {"max_epochs": 1, "epoch_length": steps + WARM_UP}
    if stage.late_players is not None:
        settings["discriminator_start"] = 0
    parser = parsed(["train", *stage.overlays], settings)
    content, trainer = parser.get_parsed_content, parser.get_parsed_content("train::trainer")
    volumes = torch.stack([content("train::dataset")[index]["image"] for index in range(stage.batch_size)])
    turns = Turns(PLAIN.get(stage.name, plain_denoising)(content), volumes)
    content("ema").attach(trainer)
    turns.attach(trainer)
    trainer.run()
    return turns.seconds


def plain_sampler(weights: str, calls: int, generator: Any) -> Callable[[list[Item]], Tensor]:
    network, space = network_from_checkpoint(weights).eval(), generator.space

    @torch.no_grad()
    def sample(items: list[Item]) -> Tensor:
        if calls == 1:
            return space.decode(network(torch.randn(len(items), *generator.shape)))
        table = alphas(generator.scheduler.name, generator.scheduler.num_train_timesteps)
        times = torch.linspace(len(table) - 1, 0, calls).long().tolist()
        x = torch.randn(len(items), *generator.shape)
        for now, after in zip(times, [*times[1:], None]):
            found = network(x, torch.tensor([now]))
            alpha, sigma = table[now], (1 - table[now] ** 2).sqrt()
            if generator.scheduler.name == "ddpm_cosine":
                found = (x - sigma * found) / alpha.clamp(min=0.01)
            signal = space.constrain(found[:, -x.shape[1] :])
            if after is not None:
                x = table[after] * signal + (1 - table[after] ** 2).sqrt() * torch.randn_like(x)
        return space.decode(signal)

    return sample


def sample(weights: str, calls: int, rounds: int) -> dict[str, list[float]]:
    """Seconds of each batch of volumes."""
    generator = generator_of(weights, calls, device=CPU, bf16=False, compile=False)
    plain = plain_sampler(weights, calls, generator)
    seconds: dict[str, list[float]] = {"bundle": [], "plain": []}
    for number in range(rounds + WARM_UP):
        items = [Item(number * BATCH + index) for index in range(BATCH)]
        for name, run in (("bundle", generator.sample), ("plain", plain)):
            start = time.process_time()
            run(items)
            seconds[name].append(time.process_time() - start)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--systems", nargs="+", default=list(SYSTEMS)[:4], choices=list(SYSTEMS))
    parser.add_argument("--steps", type=positive, default=10, help="of training that are timed, of each kind")
    parser.add_argument("--rounds", type=positive, default=3, help="of sampling that are timed, of each kind")
    args = parser.parse_args()
    if len(set(args.systems)) < len(args.systems):
        parser.error("--systems: one is named twice")
    torch.set_num_threads(1)
    print("| | bundle (ms) | plain loop (ms) | ratio |\n|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as name:
        work, weights = Path(name), ""
        write_data(work / "data", max(stage.batch_size for one in args.systems for stage in SYSTEMS[one].stages), 1)
        for system in args.systems:
            for stage in SYSTEMS[system].stages:
                seconds = train(stage, work / system, work / "data", weights, args.steps)
                tell(f"{system}: a step of {stage.batch_size}, `{stage.name}`", seconds)
                weights = str(work / system / f"{stage.name}.pt")
            calls = SYSTEMS[system].calls
            tell(f"{system}: {BATCH} volumes, {calls} call{'s' * (calls > 1)}", sample(weights, calls, args.rounds))


if __name__ == "__main__":
    main()
