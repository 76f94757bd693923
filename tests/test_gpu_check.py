"""tools/gpu_check.py, which has to be right before there is a GPU."""

import json
import re
import subprocess
import sys
import time
from importlib.metadata import requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "tools"))
import gpu_check  # noqa: E402


def test_parts_come_in_order_of_value_within_the_time_there_is():
    limited = [part.seconds for part in gpu_check.PARTS.values()][:-1]
    assert sum(limited) < 20 * 60 and gpu_check.PARTS["recipe"].seconds is None
    content, begun, order, left = {"parts": {"parity": {"state": "done"}}}, set(), [], 9 * 60
    while (following := gpu_check.next_part(content, begun, left)) is not None:
        begun.add(following[0])
        order.append(following)
        left -= following[1]
    assert order == [("floors", 45), ("end_to_end", 240), ("sampling_steps", 255)] and left == 0
    assert gpu_check.next_part(content, set(gpu_check.PARTS) - {"recipe"}, 300) == ("recipe", 300)


def test_a_part_is_ended_with_its_children_at_its_limit(tmp_path):
    log, alive = tmp_path / "log", tmp_path / "alive"
    child = (
        f"import time, pathlib\nwhile True: time.sleep(0.05); pathlib.Path({str(alive)!r}).write_text(str(time.time()))"
    )
    deaf = "import signal, subprocess, sys; signal.signal(15, signal.SIG_IGN); print('begun', flush=True); "
    command = [sys.executable, "-c", deaf + f"subprocess.run([sys.executable, '-c', {child!r}])"]
    assert gpu_check.run_limited(command, 5.0, log) == "cut" and "begun" in log.read_text()
    last = alive.read_text() if alive.is_file() else ""
    time.sleep(0.5)
    assert last == (alive.read_text() if alive.is_file() else "")
    assert gpu_check.run_limited([sys.executable, "-c", ""], 60, log) == "done"
    assert gpu_check.run_limited([sys.executable, "-c", "raise SystemExit(3)"], 60, log) == "failed"


def test_what_is_known_is_not_measured_again_and_errors_are(tmp_path):
    def broken():
        raise RuntimeError("CUDA out of memory\nand more")

    gpu_check.Results(tmp_path).row("floors", "copy", lambda: {"GB/s": 3.0})
    gpu_check.Results(tmp_path).row("floors", "product", broken)
    results = gpu_check.Results(tmp_path)
    assert results.faults() == ["floors: product"]
    assert results.part("floors")["rows"]["product"] == {"error": "RuntimeError: CUDA out of memory"}
    results.row("floors", "copy", broken)
    results.row("floors", "product", lambda: {"TFLOP/s": 0.25})
    rows = json.loads((tmp_path / "gpu_check.json").read_text())["parts"]["floors"]["rows"]
    assert rows == {"copy": {"GB/s": 3.0}, "product": {"TFLOP/s": 0.25}} and not results.faults()
    assert "| product |  | 0.25 |" in (tmp_path / "gpu_check.md").read_text()


def test_weights_travel_in_small_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_check, "PIECE", 1000)
    folder, out, back = (tmp_path / name for name in ("work", "out", "back"))
    folder.mkdir(), out.mkdir()
    (folder / "local.pt").write_bytes(bytes(range(256)) * 10)
    gpu_check.hand_out(folder, out)
    pieces = sorted(out.iterdir())
    assert len(pieces) == 3 and max(piece.stat().st_size for piece in pieces) <= 1000
    gpu_check.take_in(back, out)
    assert (back / "local.pt").read_bytes() == (folder / "local.pt").read_bytes()


def needed(name, extras=(), found=None):
    """A package and all that it needs, at any depth."""
    found = {} if found is None else found
    if found.setdefault(canonicalize_name(name), set()) >= {"", *extras}:
        return found
    found[canonicalize_name(name)] |= {"", *extras}
    for one in map(Requirement, requires(name) or ()):
        if one.marker is None or any(one.marker.evaluate({"extra": extra}) for extra in ("", *extras)):
            needed(one.name, one.extras, found)
    return found


def test_wheels_are_carried_of_all_that_a_machine_with_pytorch_may_lack():
    """But for what the measuring does not use: ITK, decoders of DICOM, TensorBoard's server."""
    script = (ROOT / "tools" / "gpu_wheels.sh").read_text()
    carried = {canonicalize_name(one) for one in re.search(r'names="([^"]*)"', script)[1].split()}
    there = {name for one in ("torch", "numpy", "scipy", "pillow", "pyyaml", "matplotlib") for name in needed(one)}
    unused = {"prdit-ct-generation", "python-gdcm", "grpcio", "tensorboard-data-server"}
    rest = {one for one in needed("prdit-ct-generation") if not one.startswith("itk")} - there - unused
    assert rest and rest <= carried


@pytest.mark.slow
def test_all_of_it_runs_at_toy_size_on_a_cpu_and_goes_on_where_it_was_cut(tmp_path):
    command = ["bash", str(ROOT / "tools" / "gpu_check.sh"), str(tmp_path / "out"), "--dry-run"]
    command += ["--work_dir", str(tmp_path / "work")]
    env = {"PYTHON": sys.executable, "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"}
    first = subprocess.run(command + ["--minutes", "0.5"], env=env, capture_output=True, text=True)
    before = json.loads((tmp_path / "out" / "gpu_check.json").read_text())["parts"]
    rest = subprocess.run(command + ["--minutes", "60"], env=env, capture_output=True, text=True)
    log = (tmp_path / "out" / "gpu_check.log").read_text()[-3000:]
    assert rest.returncode == 0, first.stdout + rest.stdout + rest.stderr + log
    parts = json.loads((tmp_path / "out" / "gpu_check.json").read_text())["parts"]
    assert {name: part["state"] for name, part in parts.items()} == dict.fromkeys(gpu_check.PARTS, "done")
    for name, part in before.items():
        assert {key: parts[name]["rows"][key] for key in part["rows"]} == part["rows"]
    assert (tmp_path / "out" / "weights.zip.0").is_file()
