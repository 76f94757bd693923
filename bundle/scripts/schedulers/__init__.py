"""Diffusion and flow matching: paths, their steps and solvers, and MONAI schedulers made of them."""

from .factory import build_scheduler
from .path import Path, PathPoint, draw_noise
from .process import PROCESSES, Correct, CosineSineScheduler, DiffusionProcess, FlowMatchingScheduler
from .sampler import sampler_settings
from .solvers import SOLVERS
from .steps import SPACINGS
