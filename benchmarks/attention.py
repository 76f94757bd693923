"""Which attention is fastest on this CPU, by number of tokens, and how fast a whole network call is with it.

    python benchmarks/attention.py

'fused' is PyTorch's own, 'plain' two matrix products with a softmax between, 'chunks' the same for 256 queries at a time,
which keeps the scores in the cache. Given is the floating-point work of the two products over the time, as a share of the
rate of a large matrix product: of attention forward, and with backward for short sequences in batches, as in training;
then of whole network calls. Times are those of the processor in one thread, the least of the rounds, the kernels in
turns: they hold on machines that others use too. The rule `Attention.SHORT` in bundle/scripts/networks/residual_dit.py
comes from it.
"""

from __future__ import annotations

import time
from typing import Callable

import torch
import torch.nn.functional as F
from sampling import forward_flop

from scripts.inferers import has_fast_bf16, inference_network  # `sampling` has made the package known
from scripts.networks import build_network, preset_settings

Kernel = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
CHUNK = 256  # queries


def plain(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Attention as two matrix products, (B, heads, N, D) each."""
    return torch.matmul((q * q.shape[-1] ** -0.5 @ k.transpose(-1, -2)).softmax(dim=-1), v)


def chunks(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return torch.cat([plain(part, k, v) for part in q.split(CHUNK, dim=2)], dim=2)


KERNELS: dict[str, Kernel] = {"fused": F.scaled_dot_product_attention, "plain": plain, "chunks": chunks}


def seconds(call: Callable[[], object]) -> float:
    start = time.process_time()
    call()
    return time.process_time() - start


def least(calls: dict[str, Callable[[], object]], rounds: int = 4) -> dict[str, float]:
    """Least time of each call; they take turns, and the first round does not count."""
    rows = [{name: seconds(call) for name, call in calls.items()} for _ in range(rounds + 1)][1:]
    return {name: min(row[name] for row in rows) for name in calls}


def attention_shares(dtype: torch.dtype, batch: int, tokens: int, backward: bool, heads: int = 12) -> dict[str, float]:
    """Share of a matrix product's rate, for each kernel."""
    rows = [torch.randn(batch, tokens, 3 * heads * 64).to(dtype).requires_grad_(backward) for _ in KERNELS]

    def of(kernel: Kernel, row: torch.Tensor) -> None:
        y = kernel(*row.reshape(batch, tokens, 3, heads, 64).permute(2, 0, 3, 1, 4).unbind(0))
        if backward:
            y.backward(torch.ones_like(y))

    calls = {name: lambda kernel=kernel, row=row: of(kernel, row) for (name, kernel), row in zip(KERNELS.items(), rows)}
    size = 1024
    square = torch.randn(size, size).to(dtype)
    times = least({**calls, "product": lambda: square @ square})
    work = (3 if backward else 1) * 4 * batch * heads * tokens**2 * 64
    return {name: work / times[name] / (2 * size**3 / times["product"]) for name in KERNELS}


@torch.no_grad()
def network_share(dtype: torch.dtype, grid: int) -> float:
    """Share of a matrix product's rate that a call of PRDiT-B/4 reaches."""
    network = inference_network(build_network(**preset_settings("PRDiT-B/4")), "cpu", dtype == torch.bfloat16)
    x, moment, square = torch.randn(1, 1, grid, grid, grid), torch.tensor([500.0]), torch.randn(2048, 2048).to(dtype)
    times = least({"network": lambda: network(x, moment), "product": lambda: square @ square}, 2)
    return forward_flop(network.settings, grid) / times["network"] / (2 * 2048**3 / times["product"])


def main() -> None:
    torch.set_num_threads(1)
    dtype = torch.bfloat16 if has_fast_bf16(torch.device("cpu")) else torch.float32
    print(f"torch {torch.__version__}, one thread, {dtype}, heads of 64; shares of a product's rate\n")
    print("| tokens | batch | | " + " | ".join(KERNELS) + " |\n|---" + "|---" * (2 + len(KERNELS)) + "|")
    for batch, tokens, backward in ((1, 512, False), (8, 512, True), (1, 1024, False), (1, 4096, False)):
        shares = attention_shares(dtype, batch, tokens, backward)
        how = "forward and backward" if backward else "forward"
        cells = " | ".join(f"{share:.2f}" for share in shares.values())
        print(f"| {tokens} | {batch} | {how} | {cells} |", flush=True)
    for grid in (64, 128):
        print(f"\nPRDiT-B/4 at {grid}³: {network_share(dtype, grid):.2f}", flush=True)


if __name__ == "__main__":
    main()
