"""What only a GPU can tell, in order of value and in the time there is; `tools/gpu_check.sh` says how to run it.

Each part is a process of its own, ended at its time limit; every number is written when it is known, so that a part that
was cut goes on with what is missing when the command is repeated. Numbers that could not be measured hold the reason
instead, and are tried again.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import time
import zipfile
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Callable, Optional

from gpu_parts import PARTS, ROOT, TOY, Scale

PIECE = 15_000_000  # bytes of a file of weights that is handed out
LEAST = 10.0  # seconds that are worth beginning a part for
WEIGHTS = ("local.pt", "local.json", "local_losses.csv", "model.pt", "model.json", "model_losses.csv")


class Results:
    """What is known so far, in OUT/gpu_check.json and as tables in OUT/gpu_check.md; both are written whole at each change."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.path = folder, folder / "gpu_check.json"
        self.content: dict[str, Any] = json.loads(self.path.read_text()) if self.path.is_file() else {"parts": {}}

    def part(self, name: str) -> dict[str, Any]:
        return self.content["parts"].setdefault(name, {"state": "cut", "seconds": 0.0, "rows": {}})

    def row(self, part: str, name: str, measure: Callable[[], dict[str, Any]]) -> None:
        """Measures what is not known yet; an error is a row, too."""
        rows = self.part(part)["rows"]
        if name in rows and "error" not in rows[name]:
            return
        try:
            rows[name] = measure()
        except Exception as error:  # of whatever kind: the numbers after it count as much
            lines = str(error).splitlines()
            rows[name] = {"error": f"{type(error).__name__}: {lines[0][:200] if lines else ''}"}
        print(f"{part}: {name}: {rows[name]}")
        self.write()

    def write(self) -> None:
        for path, text in (
            (self.path, json.dumps(self.content, indent=1)),
            (self.path.with_suffix(".md"), self.tables()),
        ):
            whole = path.with_suffix(".new")
            whole.write_text(text, encoding="utf-8")
            whole.replace(path)

    def tables(self) -> str:
        lines = [", ".join(f"{name} {value}" for name, value in self.content.get("machine", {}).items())]
        for name, part in self.content["parts"].items():
            columns = list(dict.fromkeys(column for row in part["rows"].values() for column in row))
            lines += [
                f"\n{name}: {part['state']}, {part['seconds']:.0f} s\n",
                f"| {name} | " + " | ".join(columns) + " |",
            ]
            lines.append("|---" * (len(columns) + 1) + "|")
            for key, row in part["rows"].items():
                cells = (row.get(column, "") for column in columns)
                values = (f"{cell:.3g}" if isinstance(cell, float) else str(cell) for cell in cells)
                lines.append(f"| {key} | " + " | ".join(values) + " |")
        return "\n".join(lines) + "\n"

    def faults(self) -> list[str]:
        """What went wrong: numbers that are errors, and predictions that do not agree."""
        rows = [
            (f"{part}: {key}", row) for part, one in self.content["parts"].items() for key, row in one["rows"].items()
        ]
        return [where for where, row in rows if "error" in row or row.get("agrees") is False]


def machine() -> dict[str, str]:
    import torch

    from scripts.hardware import device_name

    device = "cuda" if torch.cuda.is_available() else "cpu"
    return {
        "PyTorch": torch.__version__,
        "CUDA": str(torch.version.cuda),
        "Python": platform.python_version(),
        "on": device_name(device),
    }


def next_part(content: dict[str, Any], begun: set[str], left: float, slower: int = 1) -> Optional[tuple[str, float]]:
    """The next part that is not done, and the seconds that it gets; a slower machine gives it a multiple of its time."""
    for name, part in PARTS.items():
        if name not in begun and content["parts"].get(name, {}).get("state") != "done":
            limit = left if part.seconds is None else min(slower * part.seconds, left)
            return (name, limit) if limit >= LEAST else None
    return None


def run_limited(command: list[str], limit: float, log: Path) -> str:
    """Runs a process with all its children for so long: 'done', 'failed' or 'cut'. Whatever they write, they write whole."""
    with open(log, "ab") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            return "failed" if process.wait(limit) else "done"
        except subprocess.TimeoutExpired:
            return "cut"
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def hand_out(folder: Path, out: Path) -> None:
    """The best weights so far, in one archive of pieces that are small enough to be copied."""
    there = [folder / name for name in WEIGHTS if (folder / name).is_file()]
    if not there:
        return
    archive = folder / "weights.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for path in there:
            file.write(path, path.name)
    content = archive.read_bytes()
    for old in out.glob("weights.zip.*"):
        old.unlink()
    for i, start in enumerate(range(0, len(content), PIECE)):
        (out / f"weights.zip.{i}").write_bytes(content[start : start + PIECE])


def take_in(folder: Path, out: Path) -> None:
    """Weights that an earlier call handed out, where this machine has none: stage 2 goes on from a stage 1 that is done."""
    pieces = sorted(out.glob("weights.zip.*"))
    if not pieces or folder.is_dir():
        return
    folder.mkdir(parents=True)
    (folder / "weights.zip").write_bytes(b"".join(piece.read_bytes() for piece in pieces))
    with zipfile.ZipFile(folder / "weights.zip") as file:
        file.extractall(folder)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, metavar="OUT", help="folder of the results; goes on with what is there")
    parser.add_argument("--minutes", type=float, default=25.0, help="in all")
    parser.add_argument("--work_dir", type=Path, default=ROOT / "runs" / "gpu_check", help="of checkpoints")
    parser.add_argument("--dry-run", action="store_true", help="at toy size on the CPU")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    out, work = args.out.resolve(), args.work_dir.resolve()
    for folder in (out, work):
        folder.mkdir(parents=True, exist_ok=True)
    if args.part:
        results = Results(out)
        results.content.setdefault("machine", machine())
        PARTS[args.part].measure(TOY if args.dry_run else Scale(), partial(results.row, args.part), work)
        results.write()
        return 0
    end, begun = time.monotonic() + 60 * args.minutes, set[str]()
    take_in(work / "recipe", out)
    slower = 10 if args.dry_run else 1
    while (following := next_part(Results(out).content, begun, end - time.monotonic(), slower)) is not None:
        name, limit = following
        begun.add(name)
        start = time.monotonic()
        command = [sys.executable, __file__, str(out), "--work_dir", str(work), "--part", name]
        state = run_limited(command + ["--dry-run"] * args.dry_run, limit, out / "gpu_check.log")
        results = Results(out)
        part = results.part(name)
        state = "failed" if state == "done" and any("error" in row for row in part["rows"].values()) else state
        part["state"], part["seconds"] = state, part["seconds"] + time.monotonic() - start
        if name == "recipe":
            hand_out(work / "recipe", out)
        results.write()
        print(f"{name}: {state}, {len(part['rows'])} numbers, {time.monotonic() - start:.0f} s")
    faults = Results(out).faults()
    print(f"{out}/gpu_check.md" + "".join(f"\nfault: {fault}" for fault in faults))
    return 1 if faults or any(one["state"] == "failed" for one in Results(out).content["parts"].values()) else 0


if __name__ == "__main__":
    sys.exit(main())
