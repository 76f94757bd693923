"""What a sampling run says before it starts and when it is done."""

from __future__ import annotations

import math
import time
from typing import Any, NoReturn, Optional, Sequence, Sized, Union

import ignite.distributed as idist
import torch
from ignite.engine import Engine

from ..hardware import CPU_ONLY, GB, PROGRAM, device_name, idle_gpu, resident_bytes, tell_needs
from ..networks.card import Card
from ..networks.checkpoint import space_of
from ..output import VolumeStore
from ..words import count, duration
from .generator import DiffusionGenerator
from .memory import Sampling

WORTH_A_PROBE = 40  # network calls; three of them are made to tell how long all will take


@idist.one_rank_only()
def tell_sampling(
    store: VolumeStore,
    seeds: Sized,
    missing: Sized,
    generator: DiffusionGenerator,
    voxels: str,
    batch_size: int,
    device: Union[str, torch.device],
    precision: str,
) -> None:
    """Prints what is about to be made, on what, how long it will take by a short probe, and where it goes.

    Args:
        store: the output folder.
        seeds: of all volumes.
        missing: of those that are still to be made.
        generator: that makes them, on its device.
        voxels: see `voxels_in_words`.
        batch_size: volumes at a time.
        device: where it runs.
        precision: see `computed_in`.
    """
    if not len(missing):
        return
    if idle_gpu():
        print(f"warning: {CPU_ONLY}")
    size = sum(parameter.numel() for parameter in generator.parameters()) / 1e6
    done = len(seeds) - len(missing)
    there = f" ({done} of {len(seeds)} {'is' if done == 1 else 'are'} there already)" if done else ""
    calls = generator.calls_per_volume
    fitted = " with fitted steps" if generator.fitted else ""
    seconds = expected_seconds(generator, math.ceil(len(missing) / idist.get_world_size()), batch_size)
    print(
        f"samples {count(len(missing), 'volume')}{there} of {voxels}, {count(calls, 'network call')} each{fitted}, "
        f"{batch_size} at a time\n{size:.1f} million parameters, in {precision} on {device_name(device)}"
        + ("" if seconds is None else f"; about {duration(seconds)}")
        + f"; -> {store.folder}/"
    )


@torch.no_grad()
def expected_seconds(generator: DiffusionGenerator, num_volumes: int, batch_size: int) -> Optional[float]:
    """How long sampling will take, from three network calls; None where it is not worth them, or must be compiled first."""
    calls = generator.calls()
    batches = math.ceil(num_volumes / batch_size)
    if batches * len(calls) < WORTH_A_PROBE or any("predict" in vars(one) for one in generator.modules()):
        return None
    device = next(generator.parameters()).device
    sample = torch.zeros(batch_size, *generator.shape, device=device)
    calls[0](sample)  # what the first call alone has to do
    seconds = [_timed(call, sample) for call in (calls[0], calls[-1])]  # the second one guided, where there is guidance
    return batches * len(calls) * sum(seconds) / 2


def _timed(call: Any, sample: torch.Tensor) -> float:
    _wait(sample)
    start = time.monotonic()
    call(sample)
    _wait(sample)
    return time.monotonic() - start


def _wait(sample: torch.Tensor) -> None:
    if sample.device.type == "cuda":
        torch.cuda.synchronize(sample.device)


@idist.one_rank_only()
def tell_volumes(store: VolumeStore, seeds: Sized, missing: Sized, engine: Engine, voxels: str) -> None:
    """Prints what is there now, and how long it took.

    Args:
        store: the output folder.
        seeds: of all volumes.
        missing: of those that this run has made.
        engine: that made them.
        voxels: see `voxels_in_words`.
    """
    if not len(missing):
        print(
            f"{len(seeds)} of {count(len(seeds), 'volume')} {'is' if len(seeds) == 1 else 'are'} in {store.folder} already, "
            f"made with these settings; --overwrite True makes {'it' if len(seeds) == 1 else 'them'} again"
        )
        return
    seconds = engine.state.times.get("COMPLETED") or 0.0
    picture = next((path for name in ("view.html", "preview.png") if (path := store.folder / name).is_file()), None)
    print(
        f"{len(missing)} of {count(len(seeds), 'volume')} written to {store.folder} ({voxels}, HU) in {duration(seconds)}"
        + (f"; look at {picture}" if picture else "")
    )


def end_plan(
    store: VolumeStore,
    card: Card,
    grid: Sequence[int],
    memory: dict[str, int],
    num_calls: int,
    precision: str,
    guided: bool,
    device: Union[str, torch.device],
) -> NoReturn:
    """Prints what sampling needs of memory and disk, both calculated, and ends the process.

    Args:
        store: the output folder, that has looked for its volumes.
        card: of the weights.
        grid: of a volume.
        memory: see `memory_plan`.
        num_calls: network calls per volume.
        precision: see `computed_in`.
        guided: with layer-skip guidance.
        device: where it would run.
    """
    batch, chunk = memory["batch_size"], memory["chunk_tokens"]
    held = resident_bytes()
    peak = Sampling(card.network, precision == "bf16", num_calls, guided, space_of(card)).peak_gb(grid, batch, chunk)
    tell_needs(
        device, {"weights and activations": peak * GB}, {PROGRAM: held}, store.most_bytes(math.prod(grid)), store.folder
    )
    raise SystemExit(0)
