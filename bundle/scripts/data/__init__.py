"""Data: lists of volumes, CT and phantoms, the training grid."""

from .datalist import ct_datalist, identity, intensity_of
from .export_dicom import export_dicom
from .field_of_view import fit_volumes, require_little_padding
from .ingest import prepare_dataset
from .phantom import LABELS, chest_phantom
from .transforms import LoadCTd, ToGridd, cache_count, grid_affine
