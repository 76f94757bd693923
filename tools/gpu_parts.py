"""What `gpu_check.py` measures on a GPU: its parts in order of value, and at which sizes."""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Callable, NamedTuple, Optional

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "bundle"), str(ROOT / "benchmarks")]

TOLERANCES = {"float32": 1e-4, "tf32": 1e-2, "bf16": 5e-2}  # rms of the difference over that of a CPU's float32


@dataclass(frozen=True)
class Scale:
    """Sizes of what is measured: those that matter on a card."""

    device: str = "cuda"
    preset: str = "PRDiT-B/4"
    grids: tuple[int, ...] = (64, 128, 256)
    refined: int = 256  # with a refiner over half the grid
    batches: tuple[int, ...] = (1, 4)
    steps: int = 10
    calls: tuple[int, ...] = (20, 1000)
    product: int = 8192
    copied: int = 2**31  # bytes
    tokens: tuple[int, ...] = (512, 4096, 32768)
    memory: tuple[str, ...] = ("PRDiT-XS/4", "PRDiT-S/4", "PRDiT-B/4", "PRDiT-B/12", "PRDiT-L/4", "PRDiT-XL/12")
    training: tuple[tuple[str, int, int], ...] = (("PRDiT-B/4", 64, 16), ("PRDiT-B/4", 128, 4), ("PRDiT-XL/4", 128, 4))
    local_batch: int = 64
    short: dict[str, Any] = field(default_factory=lambda: {"num_phantoms": 128})  # a minute of each stage
    short_steps: tuple[int, int] = (400, 400)
    recipe: dict[str, Any] = field(default_factory=dict)  # as the shipped weights were trained


TINY = {
    "grid": [16, 16, 16], "hidden_size": 24, "num_heads": 4, "patch_size": 6, "stride": 4, "local_patch_size": 4,
    "local_stride": 2, "num_phantoms": 8, "num_validation_phantoms": 2, "batch_size": 4, "num_validation_times": 3,
    "num_pictures": 0, "device": "$torch.device('cpu')", "bf16": False,
}  # fmt: skip
TOY = Scale(
    "cpu", "PRDiT-XS/1", (16,), 32, (1, 2), 1, (2, 3), 128, 2**20, (64,), ("PRDiT-XS/1",), (("PRDiT-XS/1", 16, 2),), 2,
    TINY, (4, 4), {**TINY, "max_steps": 4},
)  # fmt: skip

Row = Callable[[str, Callable[[], dict[str, Any]]], None]  # a number's name, and what measures it


class Part(NamedTuple):
    """What is measured, and the seconds it may take; None is the rest of the time."""

    measure: Callable[[Scale, Row, Path], None]
    seconds: Optional[float]


# what is measured


def floors(scale: Scale, row: Row, work: Path) -> None:
    """What the card does at best: large matrix products, and a copy within its memory (bytes read and written)."""
    import torch
    from sampling import product_rate

    from scripts.inferers import use_tf32

    device = torch.device(scale.device)
    for name, dtype in (("bf16", torch.bfloat16), ("tf32", torch.float32), ("float32", torch.float32)):
        use_tf32(device, name == "tf32")
        row(f"product in {name}", lambda: {"TFLOP/s": product_rate(device, dtype, scale.product) / 1e12})
    here = torch.zeros(scale.copied, dtype=torch.uint8, device=device)
    there = torch.empty_like(here)
    row("copy", lambda: {"GB/s": 2 * scale.copied / seconds(lambda: there.copy_(here), scale) / 1e9})


def parity(scale: Scale, row: Row, work: Path) -> None:
    """Predictions and gradients on the card against float32 on the CPU: both published norms, and high resolution."""
    import torch
    from forward import fill_zero_layers

    from scripts.inferers import inference_network, use_tf32
    from scripts.networks import build_high_resolution, build_network, preset_settings

    def outcome(make: Callable[[], torch.nn.Module], device: str, precision: str) -> tuple[torch.Tensor, torch.Tensor]:
        torch.manual_seed(0)
        network = make()
        fill_zero_layers(network)
        x, time = torch.randn(1, 1, *[scale.grids[0]] * 3), torch.tensor([500.0])
        network, x, time = network.to(device), x.to(device), time.to(device)
        use_tf32(device, precision == "tf32")
        with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=precision == "bf16"):
            network(x, time).float().square().mean().backward()
        slopes = [one.grad.flatten().cpu() for one in network.parameters() if one.grad is not None]
        with torch.no_grad():
            prediction = inference_network(network, device, precision == "bf16")(x, time)
        return prediction.float().cpu(), torch.cat(slopes)

    settings = preset_settings(scale.preset)
    networks: dict[str, Callable[[], torch.nn.Module]] = {
        "LayerNorm": lambda: build_network(**settings),
        "RMSNorm": lambda: build_network(**settings, norm="rms"),
        "high resolution": lambda: build_high_resolution(settings, 2),
    }
    for name, make in networks.items():
        expected = outcome(make, "cpu", "float32")
        for precision, tolerance in TOLERANCES.items():

            def agreement() -> dict[str, Any]:
                found = outcome(make, scale.device, precision)
                errors = [float((a - b).norm() / b.norm()) for a, b in zip(found, expected)]
                numbers = {"prediction": errors[0], "gradient": errors[1], "tolerance": tolerance}
                return {**numbers, "agrees": max(errors) < tolerance}

            row(f"{name}, {precision}", agreement)


def end_to_end(scale: Scale, row: Row, work: Path) -> None:
    """Both stages trained for a minute, and volumes sampled, by the commands that a user types."""
    folder = work / "end_to_end"
    shared = {**scale.short, "ckpt_dir": folder}
    row("stage 1", lambda: trained(folder, "local", ["train"], max_steps=scale.short_steps[0], **shared))
    stack = ["train", "train_global"]
    row("stage 2", lambda: trained(folder, "model", stack, max_steps=scale.short_steps[1], **over_stage_1(shared)))
    place = {"ckpt_path": folder / "model.pt", "output_dir": folder / "out", "overwrite": True, "num_samples": 4}
    place["device"] = f"$torch.device('{scale.device}')"
    calls = scale.calls[0]
    row("4 volumes", lambda: {"seconds": bundle("run", ["inference"], num_inference_steps=calls, **place)})


def sampling_steps(scale: Scale, row: Row, work: Path) -> None:
    """A step of sampling: eager, compiled, as a CUDA graph; and the kernels of attention alone."""
    import torch
    from sampling import measure

    from scripts.inferers import network as compiling

    def step(grid: int, batch: int, variant: str, factor: int) -> dict[str, Any]:
        args = argparse.Namespace(device=scale.device, preset=scale.preset, ckpt_path=None, factor=factor)
        args.steps, args.chunk_tokens = scale.steps, 0
        torch.compiler.reset()
        return measure(args, grid, batch, variant)

    sizes = [(grid, 1) for grid in scale.grids] + [(scale.refined, 2)]
    wanted = [
        (*size, batch, variant) for batch in scale.batches for variant in ("bundle", "compiled") for size in sizes
    ]
    wanted.sort(key=lambda one: one[3] == "compiled")  # compiling takes longest
    for grid, factor, batch, variant in wanted:
        name = {"bundle": "eager", "compiled": "CUDA graph"}[variant]
        row(f"{'↑' * (factor > 1)}{grid}³, batch {batch}, {name}", partial(step, grid, batch, variant, factor))
    for tokens in scale.tokens:
        row(f"attention over {tokens} tokens (ms)", partial(attention_kernels, tokens, scale))
    graph = compiling._compiled
    compiling._compiled = lambda function, device: torch.compile(function, dynamic=False)
    grid = scale.grids[len(scale.grids) // 2]
    row(f"{grid}³, batch 1, compiled", lambda: step(grid, 1, "compiled", 1))
    compiling._compiled = graph


def attention_kernels(tokens: int, scale: Scale) -> dict[str, Any]:
    """Milliseconds of each kernel that takes 12 heads of 64 in bf16."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.nn.functional import scaled_dot_product_attention

    q, k, v = torch.randn(3, 1, 12, tokens, 64, device=scale.device, dtype=torch.bfloat16)
    found: dict[str, Any] = {}
    for name in ("FLASH_ATTENTION", "CUDNN_ATTENTION", "EFFICIENT_ATTENTION", "MATH"):
        try:
            with sdpa_kernel(getattr(SDPBackend, name)):
                found[name] = 1000 * seconds(lambda: scaled_dot_product_attention(q, k, v), scale)
        except RuntimeError as error:  # not for this device, or not enough memory
            found[name] = str(error).splitlines()[0][:60]
    try:
        from xformers.ops import memory_efficient_attention

        rows = [one.transpose(1, 2).contiguous() for one in (q, k, v)]
        found["xformers"] = 1000 * seconds(lambda: memory_efficient_attention(*rows), scale)
    except ImportError:
        found["xformers"] = "not installed"
    return found


def volume(scale: Scale, row: Row, work: Path) -> None:
    """A whole volume, from its seed to HU."""
    import torch
    from sampling import steps_of

    from scripts.inferers import inference_network
    from scripts.networks import build_network, preset_settings

    device, grid = torch.device(scale.device), scale.grids[len(scale.grids) // 2]
    for compile in (False, True):
        network = inference_network(build_network(**preset_settings(scale.preset)), device, compile=compile)
        for calls in scale.calls:

            def one_volume() -> dict[str, Any]:
                steps_of("bundle", network, grid, 1, 3, device)()  # what the first calls alone have to do
                return {"seconds": seconds(steps_of("bundle", network, grid, 1, calls, device), scale, 1)}

            row(f"{grid}³, {calls} calls, {'CUDA graph' if compile else 'eager'}", one_volume)


def memory(scale: Scale, row: Row, work: Path) -> None:
    """The peak that a memory plan calculates against what was allocated, for each size."""
    from sampling import measure

    for preset in scale.memory:
        for grid in scale.grids:
            args = argparse.Namespace(
                device=scale.device, preset=preset, ckpt_path=None, factor=1, chunk_tokens=0, steps=1
            )

            def peak() -> dict[str, Any]:
                found = measure(args, grid, 1, "bundle")
                numbers = {"calculated (GB)": found["calculated (GB)"], "measured (GB)": found["memory (GB)"]}
                return {**numbers, "measured / calculated": found["memory (GB)"] / found["calculated (GB)"]}

            row(f"{preset}, {grid}³", peak)


def training_steps(scale: Scale, row: Row, work: Path) -> None:
    """Steps of both stages with the optimiser and the average, alone, and then with data, in the trainer of the configs."""
    for preset, grid, batch in scale.training:
        name = f"{preset}, {grid}³, batch"
        row(
            f"stage 1 of {name} {scale.local_batch}",
            partial(one_step, scale, preset, grid, scale.local_batch, True, False),
        )
        for again in (False, True):
            how = ", activation checkpointing" if again else ""
            row(f"stage 2 of {name} {batch}{how}", partial(one_step, scale, preset, grid, batch, False, again))
    shared = {**scale.short, "num_pictures": 0, "max_epochs": 1, "epoch_length": 30 if scale.device == "cuda" else 2}
    folder = work / "with_data"
    row("stage 1 with data", lambda: with_data(["train"], scale, **shared, ckpt_dir=str(folder)))
    row(
        "stage 2 with data",
        lambda: with_data(["train", "train_global"], scale, **over_stage_1(shared), ckpt_dir=str(folder)),
    )


def one_step(scale: Scale, preset: str, grid: int, batch: int, local: bool, again: bool) -> dict[str, Any]:
    import torch
    from sampling import memory_gb, product_rate

    from scripts.inferers import has_fast_bf16
    from scripts.networks import build_network, preset_settings
    from scripts.schedulers import build_scheduler
    from scripts.spaces import HUWindow
    from scripts.training import AveragedWeights, TrainingStep, local_denoising, parameters_to_train

    device = torch.device(scale.device)
    cuda = device.type == "cuda"
    if cuda:
        torch.cuda.reset_peak_memory_stats(device)
    before = memory_gb(device)
    settings = {**preset_settings(preset), "local_patch_size": 8, "local_stride": 4, "activation_checkpointing": again}
    network = build_network(**{**settings, **({"depth": 0} if local else {})}).to(device)
    objective = local_denoising(network, build_scheduler({"name": "cosine_sine"}), HUWindow(), 4 if local else 0)
    for part in () if local else (network.time, network.local):
        part.requires_grad_(False)  # as stage 2 has them
    average = AveragedWeights(network, 0.99)
    optimizer = torch.optim.AdamW(parameters_to_train(network), lr=1e-4, fused=cuda)
    step = TrainingStep(objective, [grid] * 3, batch, device)
    volumes = step.batch(batch)

    def whole_step() -> None:
        step.run(volumes)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        torch._foreach_lerp_(list(average.ema_model.parameters()), [*network.parameters()], 0.01)

    taken = seconds(whole_step, scale, 5)
    used, needs = memory_gb(device) - before, step.needs(batch)
    fast = has_fast_bf16(device)
    rate = product_rate(device, torch.bfloat16 if fast else torch.float32, scale.product)
    return {
        "ms": 1000 * taken,
        "samples/s": batch / taken,
        "share of peak": needs["tflop"] * 1e12 / taken / rate,
        "measured (GB)": used,
        "calculated (GB)": needs["gb"],
    }


def with_data(stack: list[str], scale: Scale, **settings: Any) -> dict[str, Any]:
    """The trainer of the configs, with its loader and all its handlers: waits for data, and for the GPU."""
    import warnings

    import torch
    from ignite.engine import Events
    from monai.bundle import ConfigWorkflow

    files = [str(ROOT / "bundle" / "configs" / f"{name}.yaml") for name in stack]
    workflow = ConfigWorkflow(files, run_id="training", logging_file=False, workflow_type=None, **settings)
    workflow.initialize()
    trainer = workflow.parser.get_parsed_content("train::trainer")
    marks: dict[str, list[float]] = {"waited": [], "began": [], "ended": []}
    waits: list[int] = []
    for name, event in (
        ("waited", Events.GET_BATCH_STARTED),
        ("began", Events.ITERATION_STARTED),
        ("ended", Events.ITERATION_COMPLETED),
    ):
        trainer.add_event_handler(event, lambda _, kept: kept.append(time.monotonic()), marks[name])
    if scale.device == "cuda":
        trainer.add_event_handler(Events.ITERATION_STARTED, lambda: torch.cuda.set_sync_debug_mode("warn"))
        trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda: torch.cuda.set_sync_debug_mode("default"))
        trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda: waits.append(len(seen)))
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("ignore")
        warnings.filterwarnings("always", message=".*synchronizing CUDA operation")
        workflow.run()
    places = sorted({f"{Path(one.filename).name}:{one.lineno}" for one in seen})
    skipped = min(5, len(marks["ended"]) - 1)
    steps = [b - a for a, b in zip(marks["waited"][skipped:], marks["ended"][skipped:])]
    loading = [b - a for a, b in zip(marks["waited"][skipped:], marks["began"][skipped:])]
    return {
        "ms": 1000 * statistics.median(steps),
        "samples/s": len(steps) * workflow.parser.get_parsed_content("volumes_a_step") / sum(steps),
        "share of waiting for data": sum(loading) / sum(steps),
        "waits for the GPU a step": (waits[-1] - waits[skipped]) / max(1, len(waits) - 1 - skipped) if waits else "-",
        "where": ", ".join(places) or "-",
    }


def recipe(scale: Scale, row: Row, work: Path) -> None:
    """The recipe of the shipped weights, at full speed; the best weights of both stages are handed out."""
    folder = work / "recipe"
    shared = {**scale.recipe, "ckpt_dir": folder}
    row("stage 1", lambda: trained(folder, "local", ["train"], **shared))
    row("stage 2", lambda: trained(folder, "model", ["train", "train_global"], **over_stage_1(shared)))


PARTS = {
    "floors": Part(floors, 45),
    "parity": Part(parity, 120),
    "end_to_end": Part(end_to_end, 240),
    "sampling_steps": Part(sampling_steps, 360),
    "volume": Part(volume, 90),
    "memory": Part(memory, 90),
    "training_steps": Part(training_steps, 180),
    "recipe": Part(recipe, None),
}


# what measures


def seconds(call: Callable[[], object], scale: Scale, rounds: int = 10) -> float:
    """Median time of a call that was made once before; of the only one where there is one round."""
    import torch

    def wait() -> None:
        if scale.device == "cuda":
            torch.cuda.synchronize()

    times = []
    with torch.no_grad():
        for _ in range(rounds + (rounds > 1)):
            wait()
            start = time.perf_counter()
            call()
            wait()
            times.append(time.perf_counter() - start)
    return statistics.median(times[1:] or times)


def bundle(run_id: str, stack: list[str], **settings: Any) -> float:
    """Seconds of a command of the bundle, as a user types it."""
    files = str([str(ROOT / "bundle" / "configs" / f"{name}.yaml") for name in stack])
    command = [sys.executable, "-W", "ignore", "-m", "monai.bundle", "run", run_id, "--config_file", files]
    start = time.monotonic()
    given = [part for name, value in settings.items() for part in (f"--{name}", str(value))]
    subprocess.run(command + given, check=True, cwd=ROOT)
    return time.monotonic() - start


def trained(folder: Path, name: str, stack: list[str], **settings: Any) -> dict[str, Any]:
    """Time and losses of a training that goes on where it was cut."""
    import csv

    workers = {"train::dataset::num_workers": os.cpu_count()}  # make phantoms first
    taken = bundle("training", stack, **settings, **workers)
    with open(folder / f"{name}_losses.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    best = json.loads((folder / f"{name}.json").read_text())["training"]["val_loss"]
    losses = {"first loss": float(rows[0]["train_loss"]), "last loss": float(rows[-1]["train_loss"])}
    return {"seconds": taken, "steps": int(rows[-1]["step"]), **losses, "best val_loss": best}


def over_stage_1(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings of stage 2, which has its network and grid from stage 1."""
    of_network = ("hidden_size", "num_heads", "patch_size", "stride", "local_patch_size", "local_stride", "grid")
    depth = {"depth": 1} if "hidden_size" in settings else {}
    return {**{name: value for name, value in settings.items() if name not in of_network}, **depth}
