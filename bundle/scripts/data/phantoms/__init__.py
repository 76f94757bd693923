"""Chest phantoms: generated, deterministic, in HU."""

from .phantom import LABELS, chest_phantom
