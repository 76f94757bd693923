"""Muon for the matrices of the blocks, AdamW for everything else, as one optimiser."""

from __future__ import annotations

import math
import re
from typing import Any, Callable, Iterable, Optional, Sequence

import torch
from torch import Tensor, nn

from ..inferers.inferer import has_fast_bf16

# of the polynomial a s + b s^3 + c s^5 that takes singular values towards 1, and how often it is applied (Jordan et al. 2024)
_COEFFICIENTS, _ITERATIONS = (3.4445, -4.7750, 2.0315), 5
_MOMENTUM = 0.95
_OF_BLOCKS = re.compile(r"\.blocks?\d*\.(?!.*modulation)")  # what sees the time alone is no hidden layer


def orthogonalized(matrices: Tensor) -> Tensor:
    """Matrices (N, A, B) with singular values moved towards 1, by Newton-Schulz iterations.

    Those above about 0.002 of the matrix's norm end between 0.68 and 1.2; smaller ones grow by up to 485 times.

    In bf16 where that is faster, else in float32; see `has_fast_bf16`.
    """
    a, b, c = _COEFFICIENTS
    x = matrices.bfloat16() if has_fast_bf16(matrices.device) else matrices.float()
    tall = x.shape[1] > x.shape[2]
    x = x.mT if tall else x
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)  # no singular value is above 1 then
    for _ in range(_ITERATIONS):
        gram = x @ x.mT  # (N, min(A, B), min(A, B))
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Muon (Jordan et al. 2024) with Nesterov's momentum, its steps scaled to the length of AdamW's (Liu et al. 2025).

    The steps are those of `torch.optim.Muon(weight_decay=0, adjust_lr_fn="match_rms_adamw")`. That one takes a matrix at a
    time, always in bf16; here all matrices of one shape are one product, in the precision that is faster.

    Args:
        matrices: what is trained.
        lr: learning rate.
    """

    def __init__(self, matrices: Iterable[Tensor], lr: float) -> None:
        super().__init__(matrices, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Optional[Callable[[], float]] = None) -> Optional[float]:  # type: ignore[override]
        """A step; a matrix without a gradient stays as it is."""
        loss = None if closure is None else torch.enable_grad()(closure)()
        for group in self.param_groups:
            alike: dict[torch.Size, list[tuple[Tensor, Tensor]]] = {}
            for matrix in group["params"]:
                if matrix.grad is not None:
                    alike.setdefault(matrix.shape, []).append((matrix, matrix.grad))
            for pairs in alike.values():
                self._step([matrix for matrix, _ in pairs], [gradient for _, gradient in pairs], group["lr"])
        return loss

    def _step(self, matrices: list[Tensor], gradients: list[Tensor], lr: float) -> None:
        """Of matrices of one shape."""
        averages = [self._average(matrix) for matrix in matrices]
        torch._foreach_lerp_(averages, gradients, 1 - _MOMENTUM)
        ahead = torch.stack(torch._foreach_lerp(gradients, averages, _MOMENTUM))  # Nesterov's
        steps = orthogonalized(ahead).to(matrices[0].dtype) * (0.2 * math.sqrt(max(matrices[0].shape)))
        torch._foreach_add_(matrices, list(steps.unbind()), alpha=-lr)

    def _average(self, matrix: Tensor) -> Tensor:
        """Running average of its gradients."""
        state = self.state[matrix]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(matrix)
        return state["momentum_buffer"]


class MuonAndAdamW(torch.optim.Optimizer):
    """`Muon` for the matrices of a network's blocks, AdamW for all else that is trained; both can have one learning rate.

    To schedules and checkpoints it is one optimiser with two groups of parameters, AdamW's first.

    Args:
        network: that is trained.
        lr: learning rate of AdamW.
        betas: of AdamW.
        muon_lr: learning rate of Muon.
        fused: AdamW in few kernels.

    Raises:
        ValueError: in one line, when no block is trained.
    """

    def __init__(
        self, network: nn.Module, lr: float, betas: Sequence[float], muon_lr: float, fused: bool = False
    ) -> None:
        trained = {name: one for name, one in network.named_parameters() if one.requires_grad}
        matrices = {name: one for name, one in trained.items() if one.ndim == 2 and _OF_BLOCKS.search(name)}
        rest = [one for name, one in trained.items() if name not in matrices]
        if not matrices:
            raise ValueError("muon.yaml needs blocks to train, and this network has none; leave it out")
        self.parts = (
            torch.optim.AdamW(rest, lr, (betas[0], betas[1]), weight_decay=0.0, fused=fused),
            Muon(matrices.values(), muon_lr),
        )
        super().__init__([group for part in self.parts for group in part.param_groups], {})
        self._share()

    def _share(self) -> None:
        """The parts have the groups and the state of the whole, which schedules and checkpoints change."""
        for part, group in zip(self.parts, self.param_groups):
            part.param_groups, part.state = [group], self.state

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "parts": self.parts}  # so that it can be copied

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._share()

    @torch.no_grad()
    def step(self, closure: Optional[Callable[[], float]] = None) -> Optional[float]:  # type: ignore[override]
        """A step of both; a parameter without a gradient stays as it is."""
        loss = None if closure is None else torch.enable_grad()(closure)()
        for part in self.parts:
            part.step()
        return loss
