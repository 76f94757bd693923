"""Which attention kernel is faster on this machine, by number of tokens: PyTorch's fused one or plain matrix products.

    python benchmarks/attention.py

Prints the ratio of the medians (fused / plain; more than 1: plain is faster), forward alone and with backward. The rule
`Attention.SHORT` in bundle/scripts/networks/residual_dit.py comes from it.
"""

from __future__ import annotations

import statistics
import time

import torch
import torch.nn.functional as F


def plain(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Attention as two matrix products, (B, heads, N, D) each."""
    return torch.matmul((q * q.shape[-1] ** -0.5 @ k.transpose(-1, -2)).softmax(dim=-1), v)


def seconds(kernel: object, batch: int, heads: int, tokens: int, size: int, backward: bool, rounds: int = 5) -> float:
    """Median time of one call in bf16."""
    q, k, v = (torch.randn(batch, heads, tokens, size, dtype=torch.bfloat16, requires_grad=backward) for _ in range(3))
    times = []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        y = kernel(q, k, v)  # type: ignore[operator]
        if backward:
            y.backward(torch.ones_like(y))
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def main() -> None:
    print("| tokens | heads x size | forward, batch 1 | forward and backward, batch 8 |\n|---|---|---|---|")
    for tokens in (64, 512, 1024, 2048, 4096):
        for heads, size in ((12, 64), (3, 96)):
            ratios = []
            for batch, backward in ((1, False), (8, True)):
                if backward and tokens > 1024:
                    continue
                fused, own = (
                    seconds(kernel, batch, heads, tokens, size, backward)
                    for kernel in (F.scaled_dot_product_attention, plain)
                )
                ratios.append(f"{fused / own:.2f}")
            print(f"| {tokens} | {heads} x {size} | " + " | ".join(ratios + ["-"] * (2 - len(ratios))) + " |")


if __name__ == "__main__":
    main()
