"""Milliseconds per sampling step, share of the floor, and memory, for presets x grids x batches. Run by hand:

    python benchmarks/sampling.py                                      # PRDiT-B/4 at 64^3 and 128^3
    python benchmarks/sampling.py --device cuda --batch 1 4 --compile
    python benchmarks/sampling.py --preset PRDiT-XS/1 --grid 16 --steps 2     # seconds; does the script work?
    python benchmarks/sampling.py --ckpt_path bundle/models/model.pt --grid 64
    python benchmarks/sampling.py --factor 2 --grid 256 --chunk_tokens 4096   # a refiner on PRDiT-B/4 at 128^3

Each measurement is a process of its own, so that its memory is its own; the variants take turns, and a row holds the
medians of `--rounds`. 'plain' is the eager network in MONAI's `DiffusionInferer.sample`; 'bundle' is what
inference.yaml runs; 'guided' the same with layer-skip guidance in every step (inference.yaml has it in the last ones);
'compiled' is 'bundle' through torch.compile. A variant is warmed up by one call and timed over
`--steps`; memory is the largest of one call, without what the process had before it had a network, and beside it what
`scripts.inferers.Sampling` calculates. The floor is the floating-point work of one call at the rate of a large matrix
product of the same precision, measured in the same process.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Callable, Optional

import torch
from monai.inferers import DiffusionInferer
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "bundle"))

from scripts.inferers import DiffusionGenerator, Item, Sampling, inference_network  # noqa: E402
from scripts.inferers.inferer import has_fast_bf16  # noqa: E402
from scripts.networks import (  # noqa: E402
    DenoisingNetwork,
    Guidance,
    build_high_resolution,
    build_network,
    guided,
    network_from_checkpoint,
    preset_settings,
)
from scripts.networks.guidance import num_blocks  # noqa: E402
from scripts.schedulers import CosineSineScheduler  # noqa: E402

VARIANTS = ("plain", "bundle", "guided", "compiled")
SKIPPED = 1  # block that 'guided' leaves out, or the only one


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def memory_gb(device: torch.device) -> float:
    """Largest memory so far: of the GPU's tensors, or resident in the host."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def forward_flop(
    settings: dict[str, Any],
    grid: int,
    batch: int = 1,
    part: Optional[Callable[[nn.Module], nn.Module]] = None,
    guided: bool = False,
) -> float:
    """Floating-point operations of one call, or of the part that makes one of the network; on tensors without memory."""
    with torch.device("meta"):
        network = build_network(**settings).eval()
        x = torch.empty(batch, network.settings["in_channels"], grid, grid, grid)
        time = torch.empty(1) if part is None else torch.empty(1, settings["hidden_size"])
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        if guided:
            network.at_times(time, [grid] * 3, [(min(SKIPPED, num_blocks(settings) - 1), 0.5)])[0](x)
        else:
            (network if part is None else part(network))(x, time)
    return float(counter.get_total_flops())


def product_rate(device: torch.device, dtype: torch.dtype, size: int) -> float:
    """FLOP/s of a square matrix product."""
    a = torch.randn(size, size, device=device).to(dtype)
    best = float("inf")
    for _ in range(6):
        synchronise(device)
        start = time.perf_counter()
        a @ a
        synchronise(device)
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


def steps_of(
    variant: str, network: DenoisingNetwork, grid: int, batch: int, steps: int, device: torch.device
) -> Callable[[], object]:
    """What takes all steps of `batch` volumes, with the scheduler's injected noise; what is done once per run is done."""
    scheduler = CosineSineScheduler(predictor_ratio=2.0)
    channels = network.settings["in_channels"]
    if variant != "plain":
        block = min(SKIPPED, num_blocks(network.settings) - 1)
        guidance = Guidance(0.5, block, math.inf) if variant == "guided" else None
        sampled = guided(network, guidance, scheduler.path)
        generator = DiffusionGenerator(sampled, scheduler, steps, [grid] * 3, in_channels=channels)
        generator.calls()
        return lambda: generator.sample([Item(seed) for seed in range(batch)])
    scheduler.generator = [torch.Generator(device).manual_seed(seed) for seed in range(batch)]
    noise = scheduler.initial_noise((batch, channels, grid, grid, grid), device)
    return torch.no_grad()(lambda: DiffusionInferer(scheduler).sample(noise, network, verbose=False))


def make_network(args: argparse.Namespace) -> DenoisingNetwork:
    """The network of the weights or of the preset; with a factor, a refiner on top of the preset."""
    if args.ckpt_path:
        return network_from_checkpoint(args.ckpt_path, chunk_tokens=args.chunk_tokens)
    settings = preset_settings(args.preset, chunk_tokens=args.chunk_tokens)
    if args.factor == 1:
        return build_network(**settings)
    return build_high_resolution(settings, args.factor, chunk_tokens=args.chunk_tokens)


def measure(args: argparse.Namespace, grid: int, batch: int, variant: str) -> dict[str, Any]:
    """One row, in this process."""
    device, bf16 = torch.device(args.device), has_fast_bf16(torch.device(args.device))
    torch.randn(8, 8, device=device) @ torch.randn(8, 8, device=device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)  # of what this process measured before
    before = memory_gb(device)
    torch.manual_seed(0)
    network = make_network(args)
    guided = variant == "guided"
    calculated = Sampling(network.settings, bf16, guided=guided).peak_gb([grid] * 3, batch, args.chunk_tokens)
    flop = forward_flop(network.settings, grid, batch, guided=guided)
    network = inference_network(network, device, bf16, compile=variant == "compiled")
    start = time.perf_counter()
    steps_of(variant, network, grid, batch, 1, device)()
    synchronise(device)
    first = time.perf_counter() - start
    used = memory_gb(device) - before  # of the tensors of steps; the products below come later
    dtype, size = (torch.bfloat16 if bf16 else torch.float32), 8192 if device.type == "cuda" else 2048
    if device.type == "cuda":
        steps_of(variant, network, grid, batch, 3, device)()  # a CUDA graph is recorded in the second call
    take_steps = steps_of(variant, network, grid, batch, args.steps, device)
    rate = product_rate(device, dtype, size)
    start = time.perf_counter()
    take_steps()
    synchronise(device)
    seconds = (time.perf_counter() - start) / args.steps
    rate = 0.5 * (rate + product_rate(device, dtype, size))  # before and after, for machines that others use too
    return {
        "ms per step": 1000 * seconds,
        "share of floor": flop / rate / seconds,
        "memory (GB)": used,
        "calculated (GB)": calculated,
        "first call (s)": first,
        "TFLOP": flop / 1e12,
        "rate (TFLOP/s)": rate / 1e12,
    }


def describe(device: torch.device) -> str:
    if device.type == "cuda":
        return f"torch {torch.__version__}, {torch.cuda.get_device_name(device)}"
    name = torch.cpu.get_capabilities().get("cpu_name", "CPU")
    return f"torch {torch.__version__}, {torch.get_num_threads()} threads of {name}"


def measure_in_turns(args: argparse.Namespace, preset: str, grid: int, batch: int) -> dict[str, dict[str, float]]:
    """Medians of each variant, each measurement in a process of its own; in turns, for machines that others use too."""
    rows: dict[str, list[dict[str, float]]] = {variant: [] for variant in VARIANTS[: 4 if args.compile else 3]}
    for _ in range(args.rounds):
        for variant, measured in rows.items():
            command = [sys.executable, __file__, "--row", str(grid), str(batch), variant]
            for name in ("steps", "chunk_tokens", "factor", "device"):
                command += [f"--{name}", str(getattr(args, name))]
            command += ["--ckpt_path" if args.ckpt_path else "--preset", preset]
            output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            measured.append(json.loads(output.strip().splitlines()[-1]))
    return {
        variant: {name: statistics.median(row[name] for row in measured) for name in measured[0]}
        for variant, measured in rows.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", nargs="+", default=["PRDiT-B/4"])
    parser.add_argument("--ckpt_path", help="weights to time instead of presets")
    parser.add_argument("--grid", type=int, nargs="+", default=[64, 128], help="sides of the cubic volumes")
    parser.add_argument("--factor", type=int, default=1, help="of the grid over that of the preset, at high resolution")
    parser.add_argument("--batch", type=int, nargs="+", default=[1])
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--chunk_tokens", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--compile", action="store_true", help="add torch.compile")
    parser.add_argument("--row", nargs=3, help=argparse.SUPPRESS)  # grid, batch, variant: prints one row as JSON
    args = parser.parse_args()
    if args.row:
        args.preset = args.preset[0]
        print(json.dumps(measure(args, int(args.row[0]), int(args.row[1]), args.row[2])))
        return
    print(f"{describe(torch.device(args.device))}, {args.steps} steps, medians of {args.rounds} rounds\n")
    header = False
    for preset in [args.ckpt_path] if args.ckpt_path else args.preset:
        name = Path(preset).stem if args.ckpt_path else preset
        for grid in args.grid:
            for batch in args.batch:
                for variant, row in measure_in_turns(args, preset, grid, batch).items():
                    if not header:
                        print("| network | grid | batch | variant | " + " | ".join(row) + " |")
                        print("|" + "---|" * (4 + len(row)))
                        header = True
                    values = " | ".join(f"{value:.3g}" for value in row.values())
                    refined = f" ↑{grid}³" if args.factor > 1 else ""
                    print(f"| {name}{refined} | {grid}³ | {batch} | {variant} | {values} |")


if __name__ == "__main__":
    main()
