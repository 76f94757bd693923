"""Writes bundle/docs/settings.md from the description of all settings and the defaults of the config files."""

from __future__ import annotations

import sys
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "bundle" / "docs" / "settings.md"
HEAD = """# Settings
Every setting of every config file, with its default. It is checked before anything runs: a value that is not allowed, a
name that does not exist, and a setting that has no effect with the given config files are refused in one line. `--help`
prints the settings of a command:
```
python -m monai.bundle run --config_file bundle/configs/inference.yaml --help
```
and `prdit sample --help` the same at once, without loading PyTorch and MONAI. Switches take `true`, `yes`, `on`, `1`, and `false`, `no`, `off`, `0`; where three numbers stand for x, y, z, one number is all three. Names of files
and folders are taken as they are typed, `~` is the home folder. An overlay changes defaults of the file it lies on, and
adds the settings listed here. This page is made by `python tools/settings_page.py`.
"""


def page() -> str:
    """The page as Markdown, a table for each config file."""
    from scripts.settings.description import SETTINGS

    parts = [HEAD]
    for name, described in SETTINGS.items():
        config = yaml.safe_load((ROOT / "bundle" / "configs" / f"{name}.yaml").read_text())
        parts.append(f"\n## {name}.yaml\n| setting | default | what it does | allowed |\n|---|---|---|---|\n")
        for setting, one in described.items():
            unit = f", {one.unit}" if one.unit else ""
            cells = (f"`{setting}`", f"`{_text(config[setting])}`{unit}", one.sentence, one.kind.words)
            parts.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n")
    return "".join(parts)


def _text(value: object) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT / "bundle"))
    PAGE.write_text(page())
