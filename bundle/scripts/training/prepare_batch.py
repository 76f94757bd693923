"""Training and validation batches of the diffusion process, for MONAI's engines."""

from __future__ import annotations

from typing import Any, Optional

import torch
from monai.data.meta_tensor import MetaTensor
from monai.engines import DiffusionPrepareBatch, PrepareBatch
from monai.engines.utils import default_prepare_batch
from torch import Tensor, nn

from ..networks.layers import check_reflection, token_grid
from ..networks.prdit import PRDiT
from ..schedulers import DiffusionProcess


class SchedulerPrepareBatch(DiffusionPrepareBatch):
    """Asks the scheduler for noise, times and target, so that no trainer knows which process it trains."""

    def __init__(self, scheduler: DiffusionProcess) -> None:
        super().__init__(scheduler.num_train_timesteps)
        self.scheduler = scheduler

    def get_noise(self, images: Tensor) -> Tensor:
        return self.scheduler.sample_noise(images)

    def get_timesteps(self, images: Tensor) -> Tensor:
        return self.scheduler.sample_timesteps(images.shape[0], images.device)

    def get_target(self, images: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        return self.scheduler.get_target(images, noise, timesteps)

    def __call__(
        self, batchdata: dict, device: Any = None, non_blocking: bool = False, **kwargs: Any
    ) -> tuple[Tensor, Tensor, tuple, dict]:
        images, _ = default_prepare_batch(batchdata, device, non_blocking, **kwargs)
        images = images.as_tensor() if isinstance(images, MetaTensor) else images
        return self.noisy_batch(images)

    def noisy_batch(self, images: Tensor) -> tuple[Tensor, Tensor, tuple, dict]:
        """Images (B, C, D, H, W) -> images, target, and what `DiffusionInferer` needs."""
        noise, timesteps = self.get_noise(images), self.get_timesteps(images)
        return images, self.get_target(images, noise, timesteps), (), {"noise": noise, "timesteps": timesteps}


class LocalWindowPrepareBatch(SchedulerPrepareBatch):
    """A random block of patches from each volume: in stage 1 patches are independent, so more volumes fit in a step.

    The block carries the halo that its patches overlap, cut from the padded volume, so that the loss of a patch is
    the same as in the whole volume. To be used with `PaddedLocal`.

    Args:
        scheduler: the process.
        network: whose local patch size and stride count.
        tokens_per_side: side of the block in patches.
    """

    def __init__(self, scheduler: DiffusionProcess, network: PRDiT, tokens_per_side: int) -> None:
        super().__init__(scheduler)
        if tokens_per_side < 1:
            raise ValueError(f"local_window must be 1 or more patches, got {tokens_per_side}")
        self.stride = network.local.stride
        self.halo = (network.local.patch_size - self.stride) // 2
        self.tokens_per_side = tokens_per_side

    def noisy_batch(self, images: Tensor) -> tuple[Tensor, Tensor, tuple, dict]:
        pieces = [self._random_window(volume) for volume in images]
        volume, noise = (torch.stack(piece) for piece in zip(*pieces))  # (B, C, k s + p - s, ...)
        timesteps = self.get_timesteps(volume)
        inner = (slice(None), slice(None), *(slice(self.halo, side - self.halo) for side in volume.shape[2:]))
        target = self.get_target(volume[inner], noise[inner], timesteps)
        return volume, target, (), {"noise": noise, "timesteps": timesteps}

    def _random_window(self, volume: Tensor) -> tuple[Tensor, Tensor]:
        """A piece of a volume (C, D, H, W) and its noise, as cut from the two after padding by reflection."""
        indices, shape = [], list(volume.shape[1:])
        check_reflection(shape, self.stride + 2 * self.halo, self.stride)
        for side, tokens in zip(shape, token_grid(shape, self.stride)):
            count = min(self.tokens_per_side, tokens)
            start = int(torch.randint(tokens - count + 1, ())) * self.stride - self.halo
            index = torch.arange(start, start + count * self.stride + 2 * self.halo, device=volume.device).abs()
            indices.append(torch.where(index < side, index, 2 * side - 2 - index))
        # noise is drawn for the voxels in reach alone, and mirrored with them
        reach = [slice(int(index.min()), int(index.max()) + 1) for index in indices]
        noise = self.get_noise(volume[:, reach[0], reach[1], reach[2]][None])[0]
        for axis, index in enumerate(indices, start=1):
            volume, noise = volume.index_select(axis, index), noise.index_select(axis, index - index.min())
        return volume, noise


def training_batches(scheduler: DiffusionProcess, network: PRDiT, local_window: int = 0) -> SchedulerPrepareBatch:
    """Batches of whole volumes, or in stage 1 of blocks of `local_window` patches a side."""
    network.require_process(scheduler.num_train_timesteps)
    if local_window:
        return LocalWindowPrepareBatch(scheduler, network, local_window)
    return SchedulerPrepareBatch(scheduler)


class PaddedLocal(nn.Module):
    """Stage 1 of a PRDiT on volumes that carry their halo, with the network signature of MONAI's inferers."""

    def __init__(self, network: PRDiT) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, timesteps: Tensor, context: Optional[Tensor] = None) -> Tensor:
        return self.network.forward_local_padded(x, timesteps)


class ValidationPrepareBatch(PrepareBatch):
    """Each held-out volume at the same times with the same noise in every run, so that losses can be compared.

    Args:
        scheduler: the process.
        num_times: times per volume, in the middle of equal shares of (0, T].
        seed: of the noise; volume i of the validation set always gets the noise of seed + i.
    """

    def __init__(self, scheduler: DiffusionProcess, num_times: int = 10, seed: int = 0) -> None:
        self.scheduler, self.num_times, self.seed = scheduler, num_times, seed

    def __call__(
        self, batchdata: dict, device: Any = None, non_blocking: bool = False, **kwargs: Any
    ) -> tuple[Tensor, Tensor, tuple, dict]:
        images, _ = default_prepare_batch(batchdata, device, non_blocking, **kwargs)
        images = images.as_tensor() if isinstance(images, MetaTensor) else images
        generators = [torch.Generator().manual_seed(self.seed + int(index)) for index in batchdata["index"]]
        noise = self.scheduler.sample_noise(images.cpu(), generators).to(images.device)
        shares = (torch.arange(self.num_times, device=images.device) + 0.5) / self.num_times
        timesteps = (self.scheduler.num_train_timesteps * shares).repeat_interleave(images.shape[0])
        images, noise = images.repeat(self.num_times, 1, 1, 1, 1), noise.repeat(self.num_times, 1, 1, 1, 1)
        target = self.scheduler.get_target(images, noise, timesteps)
        return images, target, (), {"noise": noise, "timesteps": timesteps}
