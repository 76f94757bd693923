"""The output parametrisations 'none' and 'skip' at equal compute, on phantoms. Run by hand, about 10 minutes on 2 cores:

    python benchmarks/parametrization.py --work_dir DIR

Trains both stages with each, same seeds, same steps, samples the same seeds by the paper's sampler with 50 calls, and prints one table.
"""

from __future__ import annotations

import argparse
import csv
import subprocess
import sys
from pathlib import Path

from quality import Scale, load_generated, print_table

CONFIGS = Path(__file__).resolve().parents[1] / "bundle" / "configs"
GRID, FIELD_OF_VIEW_MM = [32, 32, 32], 320.0


def bundle(run_id: str, stack: list[str], **settings: object) -> None:
    """One command of the bundle, as a user types it."""
    files = str([str(CONFIGS / f"{name}.yaml") for name in stack])
    command = [sys.executable, "-W", "ignore", "-m", "monai.bundle", "run", run_id, "--config_file", files]
    subprocess.run(
        command + [part for name, value in settings.items() for part in (f"--{name}", str(value))], check=True
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work_dir", type=Path, required=True)
    parser.add_argument("--local_epochs", type=int, default=40)
    parser.add_argument("--global_epochs", type=int, default=15)
    parser.add_argument("--num_samples", type=int, default=32)
    args = parser.parse_args()
    scale = Scale(128, args.num_samples, GRID, FIELD_OF_VIEW_MM)
    rows = {}
    for name in ("none", "skip"):
        folder = args.work_dir / name
        shared = {"grid": GRID, "num_phantoms": 512, "num_validation_phantoms": 8, "val_interval": 5}
        shared |= {"parametrization": name, "ckpt_dir": folder}
        bundle("training", ["train"], max_epochs=args.local_epochs, **shared)
        bundle("training", ["train", "train_global"], max_epochs=args.global_epochs, **shared)
        sampled = {"ckpt_path": folder / "model.pt", "output_dir": folder / "out", "num_samples": args.num_samples}
        bundle("run", ["inference", "paper_sampler"], batch_size=8, num_inference_steps=50, overwrite=True, **sampled)
        with open(folder / "model_losses.csv") as file:
            validated = [row for row in csv.DictReader(file) if row["val_loss"]][-1]
        losses = {f"validation {term}": float(validated[f"val_{term}"]) for term in ("noise", "signal")}
        rows[name] = {**losses, **scale.measure(load_generated(folder / "out"))}
    unknown = {f"validation {term}": float("nan") for term in ("noise", "signal")}
    rows["other phantoms (floor)"] = {**unknown, **scale.floor}
    print_table(rows)


if __name__ == "__main__":
    main()
