"""What this bundle is called, and which release it is."""

from __future__ import annotations

import json
from pathlib import Path

from .errors import bundle_root

_METADATA = json.loads(Path(bundle_root(), "configs", "metadata.json").read_text())
NAME: str = _METADATA["name"]
VERSION: str = _METADATA["version"]
