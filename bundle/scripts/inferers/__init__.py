"""Training forward, and sampling."""

from .generator import (
    DiffusionGenerator,
    DirectGenerator,
    Generator,
    GeneratorInferer,
    Item,
    ItemPrepareBatch,
    SamplingProgress,
    build_generator,
    network_at_times,
)
from .inferer import autocast, computed_in, has_fast_bf16, use_tf32, uses_bf16
from .items import check_weights, grid_of, seed_list
from .memory import Sampling, memory_plan
from .network import inference_network
from .opening import end_plan, tell_sampling, tell_volumes
