"""Training forward, sampling, and volumes on disk."""

from ..data.generated import save_volume
from .inferer import autocast, computed_in, has_fast_bf16, uses_bf16
from .memory import memory_plan, peak_gb
from .opening import end_plan, tell_sampling, tell_volumes, voxels_in_words
from .sampler import (
    SeedPrepareBatch,
    SeedSampler,
    check_weights,
    grid_of,
    inference_network,
    network_at_times,
    seed_list,
)
from .store import VolumeStore, VolumeWriter
from .writers import Writer
