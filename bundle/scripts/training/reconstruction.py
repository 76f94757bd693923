"""What the autoencoder of 3D-LDM makes small, and its discriminators."""

from __future__ import annotations

from typing import Any, Mapping, Optional, Sequence, Union

import torch
import torch.nn.functional as F
from monai.utils.enums import CommonKeys as Keys
from torch import Tensor, nn
from torch.func import functional_call

from ..inferers.inferer import autocast
from ..networks.vq_gan import VQGAN, Discriminators
from ..spaces import Space
from .objectives import Objective, Terms

_WEIGHT = 4.0  # of the error of voxels and features, and of the perceptual distance


def new_discriminators(start: int, device: Union[str, torch.device] = "cpu") -> Discriminators:
    """Discriminators with random weights, that play after `start` steps. On GPUs their BatchNorm counts the volumes of all
    processes; PyTorch has that for no CPU."""
    players = Discriminators(start).to(device)
    if torch.device(device).type == "cuda":
        players = nn.SyncBatchNorm.convert_sync_batchnorm(players)
    return players


class Reconstructing(Objective):
    """Mean absolute error of voxels, commitment to the codes, and from a number of steps on the two discriminators: hinge
    losses, and the distance of their features. One backward pass gives each player its own gradient.

    Both players step from the same point; as published, the discriminators see the reconstruction of the step before.

    Args:
        network: the autoencoder.
        discriminators: of volumes and of axial slices.
        space: of the volumes, a window of HU.
        perceptual: distance of slices (B, 1, X, Y) -> a number, such as LPIPS; None leaves it out.
        bf16: under autocast in bfloat16; None where the device is faster with it.
    """

    terms = ("l1", "commitment", "perceptual", "adversarial", "features", "discriminator")
    leaves_out = True  # the discriminators, before their start

    def __init__(
        self,
        network: VQGAN,
        discriminators: Discriminators,
        space: Space,
        perceptual: Optional[nn.Module] = None,
        bf16: Optional[bool] = None,
    ) -> None:
        super().__init__()
        self.network, self.discriminators, self.space = network, discriminators, space
        self.perceptual, self.bf16 = perceptual, bf16

    def forward(self, batch: Mapping[str, Any]) -> Terms:
        volumes = self.space.encode(batch[Keys.IMAGE])
        terms = self.errors(volumes, torch.randint(volumes.shape[-1], (len(volumes),)).tolist())
        self.discriminators.steps += 1
        return terms

    def to_dearest_steps(self) -> None:
        self.discriminators.steps = self.discriminators.start

    def errors(self, volumes: Tensor, slices: Sequence[int]) -> Terms:
        """The terms of volumes (B, 1, X, Y, Z), with one axial slice of each."""
        with autocast(volumes.device, self.bf16):
            found, commitment = self.network(volumes)
            flat, real_flat = (torch.stack([one[..., k] for one, k in zip(x, slices)]) for x in (found, volumes))
            terms = {name: torch.zeros((), device=volumes.device) for name in self.terms}
            terms |= {"l1": _WEIGHT * F.l1_loss(found.float(), volumes), "commitment": commitment}
            if self.perceptual is not None:
                terms["perceptual"] = _WEIGHT * self.perceptual(flat, real_flat)
            if self.discriminators.steps >= self.discriminators.start:
                pairs = ((self.discriminators.volumes, found, volumes), (self.discriminators.slices, flat, real_flat))
                for player, fake, real in pairs:
                    for name, value in _game(player, fake, real).items():
                        terms[name] = terms[name] + value
        return {name: value.float() for name, value in terms.items()}


def _game(player: nn.Module, fake: Tensor, real: Tensor) -> Terms:
    """The terms of one discriminator, which gives features and then logits."""
    fixed = {name: one.detach() for name, one in player.named_parameters()}
    *features, fooled = functional_call(player, fixed, (fake,))
    *wanted, of_real = player(real)
    of_fake = player(fake.detach())[-1]
    distance = sum(
        (F.l1_loss(one, other.detach()) for one, other in zip(features, wanted)), torch.zeros_like(fooled[0, 0].mean())
    )
    hinge = F.relu(1 - of_real).mean() + F.relu(1 + of_fake).mean()
    return {"adversarial": -fooled.mean(), "features": _WEIGHT * distance, "discriminator": 0.5 * hinge}


class HeldOutReconstruction(Objective):
    """The error of voxels on held-out volumes, by which the best weights are chosen."""

    terms = ("l1",)

    def __init__(self, network: VQGAN, space: Space, bf16: Optional[bool] = None) -> None:
        super().__init__()
        self.network, self.space, self.bf16 = network, space, bf16

    def forward(self, batch: Mapping[str, Any]) -> Terms:
        volumes = self.space.encode(batch[Keys.IMAGE])
        with autocast(volumes.device, self.bf16):
            return {"l1": _WEIGHT * F.l1_loss(self.network(volumes)[0].float(), volumes)}
