"""Training forward, sampling, and volumes on disk."""

from .inferer import AutocastDiffusionInferer, computed_in, has_fast_bf16, uses_bf16
from .memory import memory_plan, peak_gb
from .sampler import (
    SeedPrepareBatch,
    SeedSampler,
    grid_of,
    inference_network,
    network_at_times,
    seed_list,
    warn_of_stage_1,
)
from .writers import VolumeStore, VolumeWriter, preview_picture, save_volume, write_preview
