"""Weights of the authors' code: read, written, and taken over as weights of this bundle."""

from .official import import_official, network_from_official, official_state_dict
