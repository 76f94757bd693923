"""Diffusion and flow matching: training processes and their solvers."""

from .cosine_sine import CosineSineScheduler
from .factory import PROCESSES, build_scheduler
from .flow_matching import FlowMatchingScheduler
from .process import DiffusionProcess, draw_noise
from .solvers import SOLVERS
from .steps import SPACINGS
