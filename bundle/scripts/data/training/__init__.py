"""What the networks are trained on: lists of volumes, their grid, how they are loaded."""

from .datalist import ct_datalist, identity, intensity_of
from .field_of_view import fit_volumes, require_little_padding
from .transforms import LoadCTd, RandRolld, ToGridd, cache_count
