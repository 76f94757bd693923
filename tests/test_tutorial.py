"""The notebook, cell by cell, as a user runs it: in a process of its own, in another folder."""

import json
import os
import subprocess
import sys
from pathlib import Path

BUNDLE = Path(__file__).resolve().parents[1] / "bundle"
NOTEBOOK = json.loads((BUNDLE / "docs" / "tutorial.ipynb").read_text())


def test_stored_outputs_are_small_and_of_every_cell():
    """`tools/notebook.py` stores them; no path of a machine, no error, nothing that makes the page heavy."""
    text = json.dumps(NOTEBOOK)
    code = [cell for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    assert all(cell["outputs"] for cell in code) and len(text) < 300_000
    kinds = {output["output_type"] for cell in code for output in cell["outputs"]}
    assert kinds == {"stream", "display_data"}
    assert [word for word in ("/home/", "/work/", "/root/", "error", "Traceback") if word in text] == []
    assert NOTEBOOK["nbformat"] == 4 and len({cell["id"] for cell in NOTEBOOK["cells"]}) == len(NOTEBOOK["cells"])


def test_the_notebook_runs_from_top_to_bottom(tmp_path):
    cells = ["".join(cell["source"]) for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]
    (tmp_path / "cells.json").write_text(json.dumps(cells))
    runner = "import json; space = {}; [exec(cell, space) for cell in json.load(open('cells.json'))]"
    env = {**os.environ, "PRDIT_BUNDLE": str(BUNDLE), "TMPDIR": str(tmp_path), "OMP_NUM_THREADS": "1"}
    env |= {"PYTHONWARNINGS": "ignore"}
    process = subprocess.run([sys.executable, "-c", runner], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    work = next(tmp_path.glob("prdit_*"))
    for name in ("generated/preview.png", "slices.png", "training/model.pt", "own/seed_000000.nii.gz"):
        assert (work / name).is_file(), name
    assert json.loads((work / "report" / "metrics.json").read_text())["sets"]
