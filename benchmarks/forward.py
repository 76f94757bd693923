"""Times one forward pass of PRDiT: fp32 against bf16 weights, eager or compiled, in one run.

Every round runs each variant once, one after another, so that a busy machine slows all of them alike; the table gives
the median seconds, the median over the rounds of fp32's time divided by the variant's, and the largest and the rms
difference from fp32's output relative to its largest and rms value. Layers that start at zero get random weights first:
otherwise the output is zero and there is no error to see.

    python benchmarks/forward.py                             # PRDiT-B/4 at 64^3 and 128^3
    python benchmarks/forward.py --compile --rounds 9        # also bf16 through torch.compile with frozen weights
    python benchmarks/forward.py --device cuda --grid 128
    python benchmarks/forward.py --preset PRDiT-XS/1 --grid 16   # seconds; does the script work?

Keep the machine free for the numbers to mean something; OMP_NUM_THREADS sets the threads.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import sys
import time
from pathlib import Path
from typing import Callable, Dict, List

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "bundle"))

from scripts.networks import build_prdit, preset_settings  # noqa: E402


def fill_zero_layers(network: nn.Module) -> None:
    """Gives the Linear layers that start at zero random weights."""
    for layer in network.modules():
        if isinstance(layer, nn.Linear) and not layer.weight.any():
            nn.init.normal_(layer.weight, std=0.02)


def make_variants(preset: str, device: torch.device, compiled: bool) -> Dict[str, Callable[..., Tensor]]:
    torch.manual_seed(0)
    network = build_prdit(**preset_settings(preset)).eval()
    fill_zero_layers(network)
    network = network.to(device)
    variants: Dict[str, Callable[..., Tensor]] = {"fp32": network}
    variants["bf16"] = copy.deepcopy(network).to(torch.bfloat16)
    if compiled:
        import torch._inductor.config as inductor

        inductor.freezing = True  # weights become constants, laid out for the matrix products ahead of time
        # not dynamic: the second grid would otherwise get kernels for any size, which are slower
        variants["bf16 compiled"] = torch.compile(variants["bf16"], dynamic=False)
    return variants


def seconds(call: Callable[..., Tensor], x: Tensor, timesteps: Tensor) -> float:
    start = time.perf_counter()
    call(x, timesteps)
    if x.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start


def describe(device: torch.device) -> str:
    if device.type == "cuda":
        return f"torch {torch.__version__}, {torch.cuda.get_device_name(device)}"
    features = torch.cpu.get_capabilities()
    bf16 = ", ".join(f"{name} {'yes' if features.get(name) else 'no'}" for name in ("avx512_bf16", "amx_bf16"))
    return f"torch {torch.__version__}, {torch.get_num_threads()} threads, {features.get('cpu_name', 'CPU')}: {bf16}"


def report(variants: Dict[str, Callable[..., Tensor]], grid: int, rounds: int, device: torch.device) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 1, grid, grid, grid, generator=generator).to(device)
    timesteps = torch.tensor([500.0], device=device)
    outputs = {name: call(x, timesteps).float() for name, call in variants.items()}  # also the warm-up
    times: Dict[str, List[float]] = {name: [] for name in variants}
    for _ in range(rounds):
        for name, call in variants.items():
            times[name].append(seconds(call, x, timesteps))
    reference = outputs["fp32"]
    for name, taken in times.items():
        ratio = statistics.median(base / own for base, own in zip(times["fp32"], taken))
        error = outputs[name] - reference
        largest = (error.abs().max() / reference.abs().max()).item()
        rms = (error.square().mean() / reference.square().mean()).sqrt().item()
        print(f"{grid:4d}^3  {name:<13} {statistics.median(taken):9.4f} {ratio:7.2f} {largest:10.1e} {rms:10.1e}")


def main() -> None:
    parser = argparse.ArgumentParser(description="Times one forward pass of PRDiT in fp32 and bf16.")
    parser.add_argument("--preset", default="PRDiT-B/4")
    parser.add_argument("--grid", type=int, nargs="+", default=[64, 128], help="sides of the cubic volumes")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", type=torch.device, default="cpu")
    parser.add_argument("--compile", action="store_true", help="add bf16 through torch.compile with frozen weights")
    args = parser.parse_args()
    print(f"{args.preset}, batch 1, {args.rounds} rounds, {describe(args.device)}")
    print(f"  grid  {'variant':<13} {'seconds':>9} {'x fp32':>7} {'max error':>10} {'rms error':>10}")
    with torch.no_grad():
        for grid in args.grid:
            report(make_variants(args.preset, args.device, args.compile), grid, args.rounds, args.device)


if __name__ == "__main__":
    main()
