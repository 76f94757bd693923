"""Training of the rivals that is exact in any number of processes; as a script, under torchrun, it trains several."""

import json
import sys
from pathlib import Path

import ignite.distributed as idist
import torch
from bundle_runs import KeepWeights, run
from torch import nn

from scripts.processes import join_processes
from scripts.training import Adversarial, HeldOutAdversarial, Reconstructing, new_discriminators

__all__ = ["KeepWeights"]
_COMMON = {"num_phantoms": 4, "num_validation_phantoms": 2, "batch_size": 4, "val_interval": 2, "num_pictures": 0, "max_epochs": 2,
           "warmup": 0.0, "max_grad_norm": 1.0, "bf16": False, "device": "$torch.device('cpu')"}  # fmt: skip
RIVALS = {
    "train_wavelet": {"grid": [16, 16, 16], "channels": 32, "multipliers": [1, 2], "num_validation_times": 1, "lr": 0.1},
    "train_gan": {"grid": [32, 32, 32], "channels": 16, "latent_size": 8, "lr": 0.1},
    "train_autoencoder": {"grid": [16, 16, 16], "factor": 2, "channels": 16, "num_codes": 32, "lr": 0.1,
                          "discriminator_start": 1},
    "train_latent": {"channels": 8, "multipliers": [1, 2], "num_validation_times": 1, "lr": 0.1},
}  # fmt: skip


class OneSlab(Adversarial):
    """Every process sees the same slab."""

    def slab(self, generator):
        return 8


class SameSlices(Reconstructing):
    """The slices of a volume are its own."""

    def forward(self, batch):
        volumes = self.space.encode(batch["image"])
        terms = self.errors(volumes, [5] * len(volumes))
        self.discriminators.steps += 1
        return terms


def one_slab(network, discriminator, space):
    return HeldOutAdversarial(OneSlab(network, discriminator, space, bf16=False))


def players_without_batch_norm(start):
    """Discriminators whose features of a volume do not depend on the others of its batch."""
    players = new_discriminators(start)
    for name, module in list(players.named_modules()):
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            parent, _, last = name.rpartition(".")
            setattr(players.get_submodule(parent), last, nn.GroupNorm(1, module.num_features))
    return players


class FullCodebook(KeepWeights):
    """Keeps the weights, of a codebook that no code leaves: which latent would overwrite it is drawn by rank 0."""

    def attach(self, engine):
        super().attach(engine)
        codebook = self.network.network.codebook
        codebook.started.fill_(True)
        codebook.counts.fill_(1000)
        codebook.sums.copy_(1000 * codebook.codes)


def exact(stack, kept_in):
    """An overlay: plain gradient descent, on noise, latents and slices that belong to the volume."""
    denoising = {"_target_": "scripts.training.HeldOut", "objective": {
        "_target_": "scripts.training.Denoising", "network": "@network_def", "process": "@scheduler", "space": "@space",
        "bf16": False}, "num_times": 2}  # fmt: skip
    objective = {
        "train_gan": {"_target_": "two_processes.one_slab", "network": "@network_def", "discriminator": "@discriminator",
                      "space": "@space"},
        "train_autoencoder": {"_target_": "two_processes.SameSlices", "network": "@network_def",
                              "discriminators": "@discriminators", "space": "@space", "bf16": False},
    }.get(stack, denoising)  # fmt: skip
    keeps = "FullCodebook" if stack == "train_autoencoder" else "KeepWeights"
    overlay = {
        "objective": objective,
        "trained_parameters": {"_target_": "scripts.training.parameters_to_train", "network": "@objective"},
        "optimizer": {"_target_": "torch.optim.SGD", "params": "@trained_parameters", "lr": "@lr"},
        "+train::handlers": [
            {"_target_": f"two_processes.{keeps}", "network": "@objective", "folder": str(kept_in), "rank": "@rank"}
        ],
    }
    if stack == "train_autoencoder":
        start = {"_target_": "two_processes.players_without_batch_norm", "start": "@discriminator_start"}
        overlay["discriminators"] = start
    return overlay


def train_all(folder, *others, **settings):
    """Trains all rivals, the weights of each process in `folder`/NAME, with other configs after the rival's."""
    for stack, own in RIVALS.items():
        kept_in, ckpt_dir = folder / stack, folder / "ckpt"
        kept_in.mkdir(exist_ok=True)
        overlay = folder / f"{stack}_exact.yaml"
        overlay.write_text(json.dumps(exact(stack, kept_in)))
        run(
            "training",
            ["train", stack, *others, overlay.with_suffix("")],
            **{**_COMMON, **own, **settings, "ckpt_dir": ckpt_dir},
        )


if __name__ == "__main__":
    torch.set_num_threads(1)
    join_processes()
    train_all(Path(sys.argv[1]), "multi_gpu", batch_size=2, process_group=None)
    idist.finalize()
