"""What a radiologist would notice, as numbers: HU, spatial frequencies, grain, seams between patches.

Each is measured on one volume (X, Y, Z) in HU and small, so that sets are compared, resampled and cached without their
voxels: a set is a stack of these, averaged with one weight per volume.
"""

from __future__ import annotations

from typing import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

HU_BANDS: dict[str, tuple[float, float]] = {  # HU, lowest and highest
    "air": (-1000, -951),
    "lung": (-950, -501),
    "fat": (-150, -31),
    "soft tissue": (-30, 100),
    "bone": (200, 1000),
}


def hu_histogram(volume: Tensor, hu_window: Sequence[float]) -> Tensor:
    """Number of voxels of each whole HU of the window, rounded and clipped: (hu_max - hu_min + 1,)."""
    low, high = (int(value) for value in hu_window)
    return torch.bincount(volume.round().clamp(low, high).long().flatten() - low, minlength=high - low + 1)


def wasserstein_distance(a: Tensor, b: Tensor) -> Tensor:
    """1-Wasserstein distance between histograms of 1 HU (..., K), in HU: the area between the distribution functions."""
    a, b = (h.double() / h.double().sum(-1, keepdim=True) for h in (a, b))
    return (a.cumsum(-1) - b.cumsum(-1)).abs().sum(-1)


def radial_power_spectrum(volume: Tensor, size_mm: Sequence[float]) -> Tensor:
    """Power averaged over shells of spatial frequency (R,); shell r holds r +- 1/2 cycles per longest side.

    Shells that hold no frequency of the grid are not a number.
    """
    frequencies = [torch.fft.fftfreq(n, device=volume.device).double() * n for n in volume.shape]  # cycles per side
    scaled = [f * (max(size_mm) / side) for f, side in zip(frequencies, size_mm)]  # cycles per longest side
    radius = torch.stack(torch.meshgrid(*scaled, indexing="ij")).square().sum(0).sqrt().round().long().flatten()
    power = torch.fft.fftn(volume.double()).abs().square().flatten()
    return torch.bincount(radius, power) / torch.bincount(radius)


def spectrum_error(a: Tensor, b: Tensor) -> Tensor:
    """Mean |log10| ratio of two power spectra (..., R), without the mean HU of shell 0."""
    return (a[..., 1:] / b[..., 1:]).log10().abs().nanmean(-1)


def soft_tissue_grain(volume: Tensor) -> Tensor:
    """Median of |v - 3x3x3 mean| where the neighbourhood is soft tissue (0 to 80 HU), in HU; NaN where there is none."""
    x = volume.float()[None, None]
    mean = F.avg_pool3d(x, 3, 1, 1, count_include_pad=False)
    spread = F.max_pool3d((x - mean).abs(), 3, 1, 1)
    inside = (mean > 0) & (mean < 80) & (spread < 100)
    return (x - mean).abs()[inside].nanmedian()


def gradient_profile(volume: Tensor) -> Tensor:
    """Mean |difference| between slice i and i + 1, for each i along x, then y, then z: (X + Y + Z - 3,) in HU."""
    planes = [
        volume.diff(dim=axis).abs().mean([other for other in range(3) if other != axis], dtype=torch.float64)
        for axis in range(3)
    ]
    return torch.cat(planes)


def seam_ratio(profile: Tensor, grid: Sequence[int], stride: int) -> Tensor:
    """Gradient across the borders of patches over that inside patches; 1 is no seam.

    Args:
        profile: means of `gradient_profile` (..., X + Y + Z - 3).
        grid: X, Y, Z.
        stride: of the patches, in voxels; NaN where the grid has no border of it.
    """
    ratios = []
    for gradient in profile.split([side - 1 for side in grid], dim=-1):
        border = (torch.arange(gradient.shape[-1], device=profile.device) + 1) % stride == 0
        ratios.append(gradient[..., border].mean(-1) / gradient[..., ~border].mean(-1))
    return torch.stack(ratios).mean(0)
