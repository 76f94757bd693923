"""Generated volumes on disk: NIfTI in HU with its JSON, and what is made of them."""

from .export_dicom import export_dicom
from .generated import GeneratedVolume, is_generated, save_volume
from .store import VolumeStore, VolumeWriter
from .writers import WRITERS, Writer
