"""Training of the high-resolution refiner (paper section 3.4, A.8)."""

from __future__ import annotations

from pathlib import Path
from typing import Sequence, Union

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..networks.checkpoint import load_strictly, load_tensors, read_settings
from ..networks.high_resolution import (
    HighResolutionPRDiT,
    build_high_resolution,
    cut_windows,
    downsample_nearest,
    override_settings,
    upsample_nearest,
)
from ..networks.layers import token_grid
from ..networks.prdit import built_if_it_fits
from ..schedulers import DiffusionProcess
from .prepare_batch import SchedulerPrepareBatch
from .stages import require_process, volumes_of


def high_resolution_grid(backbone: dict, factor: int) -> list[int]:
    """The high grid over that of a backbone, whose JSON is given."""
    return [factor * side for side in volumes_of(backbone["data"])["grid"]]


def high_resolution_network(
    backbone_ckpt: Union[str, Path],
    refiner: dict,
    overrides: dict,
    process: dict,
    data: dict,
    freeze_backbone: bool = True,
) -> HighResolutionPRDiT:
    """A new refiner on top of trained weights of a lower grid.

    Args:
        backbone_ckpt: those weights, with their JSON beside them; high-resolution weights make a chain.
        refiner: settings of `build_high_resolution`, without the backbone.
        overrides: settings of the backbone that change no weight: attention, activation_checkpointing.
        process: of this run.
        data: of this run: 'grid', 'field_of_view_mm', 'hu_window', 'intensity'.
        freeze_backbone: False trains it too.

    Raises:
        ValueError: in one line, when the backbone is of another size, process or data, or missing.
    """
    settings = read_settings(backbone_ckpt)
    require_process(backbone_ckpt, settings, process)
    network = built_if_it_fits(build_high_resolution, override_settings(settings["network"], overrides), **refiner)
    ours, theirs = volumes_of(data), volumes_of(settings["data"])
    wanted = high_resolution_grid(settings, network.factor)
    if ours["grid"] != wanted:
        raise ValueError(
            f"{backbone_ckpt} is of the grid {theirs['grid']}: with the factor {network.factor} the grid must be "
            f"{wanted}, got {ours['grid']}"
        )
    token_grid(wanted, network.refiner.stride)
    for name in ("field_of_view_mm", "hu_window", "intensity"):
        if ours[name] != theirs[name]:
            raise ValueError(f"{backbone_ckpt} was trained with {name} {theirs[name]}, this run has {ours[name]}")
    load_strictly(network.backbone, load_tensors(backbone_ckpt), backbone_ckpt)
    network.backbone.requires_grad_(not freeze_backbone)
    return network


def _window_sides(spatial_shape: Sequence[int], stride: int, tokens_per_side: int) -> list[int]:
    """Sides of the windows, in voxels; 0 tokens are all of them."""
    return [stride * min(tokens_per_side or grid, grid) for grid in token_grid(list(spatial_shape), stride)]


class HighResolutionPrepareBatch(SchedulerPrepareBatch):
    """Whole noisy volumes for the backbone, and in each a random window of patches for the refiner.

    The target holds noise and signal in the window and, for the two terms of consistency, zeros.

    Args:
        scheduler: the process.
        network: whose refiner's stride counts.
        tokens_per_side: side of the window in the refiner's patches; 0 is the whole volume.

    Raises:
        ValueError: when windows cannot fall on whole voxels of the low grid.
    """

    def __init__(self, scheduler: DiffusionProcess, network: HighResolutionPRDiT, tokens_per_side: int) -> None:
        super().__init__(scheduler)
        network.require_process(scheduler.num_train_timesteps)
        self.stride, self.tokens_per_side = network.refiner.stride, tokens_per_side
        if tokens_per_side < 0:
            raise ValueError(f"refiner_window must be 0 or more patches, got {tokens_per_side}")
        if tokens_per_side and self.stride % network.factor:
            raise ValueError(
                f"refiner_window needs a refiner_stride that is a multiple of the factor {network.factor}, got "
                f"{self.stride}; set refiner_window to 0"
            )

    def noisy_batch(self, images: Tensor) -> tuple[Tensor, Tensor, tuple, dict]:
        noise, timesteps = self.get_noise(images), self.get_timesteps(images)
        sides = _window_sides(images.shape[2:], self.stride, self.tokens_per_side)
        last = [(whole - side) // self.stride for whole, side in zip(images.shape[2:], sides)]
        starts = torch.stack([self.stride * torch.randint(k + 1, (len(images),)) for k in last], dim=1)  # (B, 3)
        signal, of_noise = (cut_windows(volume, starts.tolist(), sides) for volume in (images, noise))
        target = self.get_target(signal, of_noise, timesteps)
        target = torch.cat([target, torch.zeros_like(target)], dim=1)  # (B, 4C, *sides)
        return images, target, (), {"noise": noise, "timesteps": timesteps, "condition": starts}


class HighResolutionTraining(nn.Module):
    """What the trainer calls: the prediction in the windows, and how far it is from the backbone's at the low grid.

    At the low grid a signal is the average of its blocks, as in the data, and noise the first voxel of each, as in the
    network's input: what the backbone has to predict. The differences carry the square root of their weight, so that
    the mean squared errors of all channels against the target, added up, are the loss.

    Args:
        network: high-resolution network.
        tokens_per_side: see `HighResolutionPrepareBatch`.
        consistency_weight: of the squared differences; 0 is Eq. 3 alone.
    """

    def __init__(self, network: HighResolutionPRDiT, tokens_per_side: int = 0, consistency_weight: float = 0.0) -> None:
        super().__init__()
        if not consistency_weight >= 0:
            raise ValueError(f"consistency_weight must be 0 or more, got {consistency_weight}")
        self.network, self.tokens_per_side, self.scale = network, tokens_per_side, consistency_weight**0.5

    def forward(self, x: Tensor, timesteps: Tensor, context: Tensor) -> Tensor:
        """Noisy volumes (B, C, D, H, W) and starts of windows (B, 3) -> noise, signal and their differences."""
        factor = self.network.factor
        sides = _window_sides(x.shape[2:], self.network.refiner.stride, self.tokens_per_side)
        prediction, low = self.network.forward_windows(x, timesteps, context.tolist(), sides)
        noise, signal = prediction.chunk(2, dim=1)
        averaged = torch.cat([downsample_nearest(noise, factor), F.avg_pool3d(signal, factor)], dim=1)
        return torch.cat(
            [prediction, upsample_nearest(self.scale * (averaged - low), factor)], dim=1
        )  # (B, 4C, *sides)
