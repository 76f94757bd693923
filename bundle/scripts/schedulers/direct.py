"""No path: a network that makes a volume in one call, as the generator of a GAN does."""

from __future__ import annotations

from .path import Path


class Direct(Path):
    """Names what such a network predicts; there is nothing to noise, and no step to take."""

    name = "direct"
    predictions = ("volume",)
