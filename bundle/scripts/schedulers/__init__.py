"""Diffusion processes."""

from .cosine_sine import CosineSineScheduler, draw_noise
