"""Networks of PRDiT and their weights."""

from .base import DenoisingNetwork
from .card import Card, read_card
from .checkpoint import export_weights, load_network, network_from_checkpoint, save_weights, space_of
from .guidance import Guidance, Guided, guidance_of, guided
from .ha_gan import HADiscriminator, HAGenerator
from .high_resolution import HighResolutionPRDiT, build_high_resolution
from .kinds import KINDS, build_network
from .latent_unet import LatentDiffusion, LatentSpace
from .local_denoiser import LocalDenoiser
from .prdit import PRDiT, build_prdit, preset_settings
from .residual_dit import ResidualDiT
from .vq_gan import VQGAN, Discriminators
from .wavelet_unet import WaveletUNet
