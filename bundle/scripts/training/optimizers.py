"""Muon for the weight matrices, AdamW for the rest, as one optimiser."""

from __future__ import annotations

from typing import Any, Callable, Iterable, Optional

import torch
from torch import nn


class MuonAdamW(torch.optim.Optimizer):
    """PyTorch's Muon on the matrices and AdamW on biases and norms, both with the same learning rate.

    Muon's updates are scaled to AdamW's root mean square (Liu et al. 2025, arXiv 2502.16982), so one rate fits both.

    Args:
        params: parameters to train.
        lr: learning rate.
        betas: of AdamW.
        momentum: of Muon.
        weight_decay: of both.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.99),
        momentum: float = 0.95,
        weight_decay: float = 0.0,
    ) -> None:
        params = list(params)
        matrices = [parameter for parameter in params if parameter.ndim == 2]
        others = [parameter for parameter in params if parameter.ndim != 2]
        self.muon = torch.optim.Muon(
            matrices, lr, weight_decay=weight_decay, momentum=momentum, adjust_lr_fn="match_rms_adamw"
        )
        self.adamw = torch.optim.AdamW(others, lr, betas=betas, weight_decay=weight_decay)
        super().__init__([{"params": matrices}, {"params": others}], {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Optional[Callable] = None) -> Any:
        """One step of both, with the learning rates that `param_groups` hold now."""
        for group, part in zip(self.param_groups, (self.muon, self.adamw)):
            part.param_groups[0]["lr"] = group["lr"]
            part.step()

    def state_dict(self) -> dict[str, Any]:
        return {"muon": self.muon.state_dict(), "adamw": self.adamw.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.muon.load_state_dict(state_dict["muon"])
        self.adamw.load_state_dict(state_dict["adamw"])
