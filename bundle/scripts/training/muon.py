"""Muon for the matrices of the blocks, AdamW for everything else, as one optimiser."""

from __future__ import annotations

import re
from typing import Any, Callable, Optional, Sequence

import torch
from torch import nn

_OF_BLOCKS = re.compile(r"\.blocks?\d*\.(?!.*modulation)")  # what sees the time alone is no hidden layer


class MuonAndAdamW(torch.optim.Optimizer):
    """Muon (Jordan et al. 2024) for the matrices of a network's blocks, AdamW for all else that is trained.

    Muon's steps are scaled to the length of AdamW's (Liu et al. 2025), so that both can have one learning rate. To
    schedules and checkpoints it is one optimiser with two groups of parameters, AdamW's first.

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
            torch.optim.Muon(matrices.values(), muon_lr, weight_decay=0.0, adjust_lr_fn="match_rms_adamw"),
        )
        super().__init__([group for part in self.parts for group in part.param_groups], {})
        self._share()

    def _share(self) -> None:
        """The parts have the groups and the state of the whole, which schedules and checkpoints change."""
        for part, group in zip(self.parts, self.param_groups):
            part.param_groups, part.state = [group], self.state

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
