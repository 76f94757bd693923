"""Volumes in files and in HU, and three rooms on top: ingest, phantoms, training data."""

from .geometry import grid_affine
from .ingest import prepare_dataset
from .phantoms import LABELS, chest_phantom
from .training import (
    LoadCTd,
    RandRolld,
    ToGridd,
    cache_count,
    ct_datalist,
    fit_volumes,
    identity,
    intensity_of,
    require_little_padding,
)
