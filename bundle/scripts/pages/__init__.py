"""Pages that open from disk without a network: templates, their style, numbers, pictures, plots."""

from .figures import COLOURS, REAL_COLOUR, new_axes, shortened, styled, svg
from .page import as_array, data_uri, formatted, minus, number, render
