"""What HA-GAN makes small: a generator and a discriminator, each with its own terms, in one step."""

from __future__ import annotations

from typing import Any, Mapping, Optional, Union

import torch
from monai.utils.enums import CommonKeys as Keys
from torch import Tensor
from torch.func import functional_call
from torch.nn.functional import binary_cross_entropy_with_logits

from ..inferers.inferer import autocast
from ..networks.ha_gan import SHRINK, SLABS, HADiscriminator, HAGenerator
from ..networks.high_resolution import downsample_nearest
from ..spaces import Space
from .objectives import Objective, Terms


def new_discriminator(network: HAGenerator, device: Union[str, torch.device] = "cpu") -> HADiscriminator:
    """A discriminator with random weights, of the sizes of a generator."""
    return HADiscriminator(network.side, network.settings["channels"]).to(device)


def two_rates(objective: Adversarial, lr: float, discriminator_lr: float) -> list[dict[str, Any]]:
    """Parameters of both players for one optimiser, each with a rate of its own."""
    return [
        {"params": list(objective.network.parameters()), "lr": lr},
        {"params": list(objective.discriminator.parameters()), "lr": discriminator_lr},
    ]


class Adversarial(Objective):
    """Binary cross-entropy of both players. The generator's term has no gradient for the discriminator, and those of the
    discriminator none for the generator, so one backward pass gives each player its own.

    Both step from the same point; as published, the discriminator steps first. The published encoders are left out: none
    of their losses has a gradient for the generator.

    Args:
        network: the generator.
        discriminator: its opponent.
        space: of both.
        bf16: under autocast in bfloat16; None where the device is faster with it.
    """

    terms = ("generator", "real", "generated")

    def __init__(
        self, network: HAGenerator, discriminator: HADiscriminator, space: Space, bf16: Optional[bool] = None
    ) -> None:
        super().__init__()
        self.network, self.discriminator, self.space, self.bf16 = network, discriminator, space, bf16

    def forward(self, batch: Mapping[str, Any]) -> Terms:
        volumes = self.space.encode(batch[Keys.IMAGE])
        latent = torch.randn(len(volumes), self.network.latent_size, device=volumes.device)
        return self.errors(volumes, latent, self.slab(torch.default_generator))

    def slab(self, generator: torch.Generator) -> int:
        """First voxel of a slab: a multiple of the voxels of a feature, so that real and generated ones are the same."""
        return SHRINK * int(torch.randint(self.discriminator.last_start // SHRINK + 1, (), generator=generator))

    def errors(self, volumes: Tensor, latent: Tensor, slab: int) -> Terms:
        """The terms of volumes (B, 1, S, S, S) and latents (B, latent_size), with one slab for all."""
        end = slab + volumes.shape[-1] // SLABS
        with autocast(volumes.device, self.bf16):
            low, high = self.network.both(latent, slab)
            fixed = {name: one.detach() for name, one in self.discriminator.named_parameters()}
            fooled = functional_call(self.discriminator, fixed, (low, high, slab)).float()
            real = self.discriminator(downsample_nearest(volumes, SHRINK), volumes[..., slab:end], slab).float()
            generated = self.discriminator(low.detach(), high.detach(), slab).float()
        return {
            "generator": binary_cross_entropy_with_logits(fooled, torch.ones_like(fooled)),
            "real": binary_cross_entropy_with_logits(real, torch.ones_like(real)),
            "generated": binary_cross_entropy_with_logits(generated, torch.zeros_like(generated)),
        }


class HeldOutAdversarial(Objective):
    """The terms on held-out volumes, each with the same latent and slab in every run. They say how the game stands, and not
    which weights are best.

    Args:
        objective: of the average of the generator.
        seed: of latents and slabs; volume i of the validation set has seed + i.
    """

    terms = Adversarial.terms

    def __init__(self, objective: Adversarial, seed: int = 0) -> None:
        super().__init__()
        self.objective, self.seed = objective, seed

    def forward(self, batch: Mapping[str, Any]) -> Terms:
        volumes, index = self.objective.space.encode(batch[Keys.IMAGE]), batch["index"].tolist()
        generators = [torch.Generator().manual_seed(self.seed + one) for one in index]
        size = self.objective.network.latent_size
        latent = torch.stack([torch.randn(size, generator=one) for one in generators]).to(volumes.device)
        return self.objective.errors(volumes, latent, self.objective.slab(generators[0]))
