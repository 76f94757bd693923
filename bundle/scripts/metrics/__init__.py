"""Metrics of generated CT: of one volume, between sets of volumes, and the networks they need."""

from .anatomy import ANATOMY_NAMES, BONE_NAMES, SIZE_NAMES, anatomy_sizes
from .appearance import (
    HU_BANDS,
    gradient_profile,
    hu_histogram,
    radial_power_spectrum,
    seam_ratio,
    soft_tissue_grain,
    spectrum_error,
    wasserstein_distance,
)
from .distribution import cubic_kernel, fid, frechet_distance, median_bandwidth, rbf_kernel, squared_mmd
from .diversity import likeness, spread
from .features import ASTRA, FEATURES, FeatureExtractor
from .neighbours import NearestVolumes, nearest_training_volumes, neighbour_scores
from .organs import ORGAN_NAMES, OrganSegmenter
from .resampling import Estimate, bootstrap_weights, estimate, random_halves
from .structural_similarity import ms_ssim_metric, ms_ssim_settings, random_pairs
