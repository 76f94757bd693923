"""Networks of PRDiT and their weights."""

from .base import DenoisingNetwork
from .checkpoint import export_weights, network_from_checkpoint, read_settings, save_weights, sha256_of
from .guidance import Guidance, Guided, guidance_of, guided
from .high_resolution import HighResolutionPRDiT, build_high_resolution, build_network
from .local_denoiser import LocalDenoiser
from .prdit import PRDiT, build_prdit, prdit_preset, preset_settings
from .residual_dit import ResidualDiT
