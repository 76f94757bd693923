"""Runs bundle/docs/tutorial.ipynb from top to bottom and stores what its cells print and show, so that it reads as a page.

    python tools/notebook.py

Numbers, temporary folders and pictures are those of this run; progress bars and MONAI's own messages are left out.
"""

from __future__ import annotations

import ast
import base64
import io
import json
import logging
import os
import sys
import warnings
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

from PIL import Image

BUNDLE = Path(__file__).resolve().parents[1] / "bundle"
PAGE = BUNDLE / "docs" / "tutorial.ipynb"


def run_cell(source: str, space: dict[str, Any]) -> list[dict[str, Any]]:
    """Runs a cell; its outputs as a notebook stores them."""
    tree, printed = ast.parse(source), io.StringIO()
    shown = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    value = None
    with redirect_stdout(printed), redirect_stderr(io.StringIO()):
        exec(compile(tree, "cell", "exec"), space)
        if shown is not None:
            value = eval(compile(ast.Expression(shown.value), "cell", "eval"), space)
    outputs: list[dict[str, Any]] = []
    if printed.getvalue():
        outputs.append(
            {"name": "stdout", "output_type": "stream", "text": _lines(printed.getvalue(), str(space["work"]))}
        )
    if isinstance(value, Image.Image):
        outputs.append({"data": {"image/png": _png(value)}, "metadata": {}, "output_type": "display_data"})
    return outputs


def _lines(text: str, work: str) -> list[str]:
    """Lines as they are stored, with no path of this machine."""
    return text.replace(str(BUNDLE), "..").replace(work, "/tmp/prdit_tutorial").splitlines(keepends=True)


def _png(picture: Image.Image) -> str:
    file = io.BytesIO()
    picture.save(file, format="png", optimize=True)
    return base64.b64encode(file.getvalue()).decode() + "\n"


def main() -> None:
    notebook = json.loads(PAGE.read_text())
    logging.disable(logging.INFO)
    warnings.simplefilter("ignore")
    os.chdir(PAGE.parent)
    space: dict[str, Any] = {}
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    for number, cell in enumerate(cells, 1):
        cell["outputs"], cell["execution_count"] = run_cell("".join(cell["source"]), space), number
        print(f"{number} of {len(cells)} cells", file=sys.stderr)
    PAGE.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
