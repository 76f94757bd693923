"""CT from DICOM files in any layout: their headers, the series that they make, and HU."""

from .geometry import MAX_TILT_DEGREES, Series
from .headers import Refused, Slice, is_dicom, read_slices
from .kinds import LeftOut
from .pixels import read_series
from .series import MIN_SLICES, BadSeries, assemble
