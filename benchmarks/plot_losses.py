"""The validation loss of both stages as a picture. Run by hand:

python benchmarks/plot_losses.py CKPT_DIR bundle/docs/loss.png
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402


def main() -> None:
    folder, path = Path(sys.argv[1]), sys.argv[2]
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.2), sharey=True, constrained_layout=True)
    for axis, name, title in zip(axes, ("local", "model"), ("stage 1: local denoiser", "stage 2: global residual")):
        with open(folder / f"{name}_losses.csv") as file:
            rows = [row for row in csv.DictReader(file)]
        for column, label in (("train_loss", "training"), ("val_loss", "validation, averaged weights")):
            points = [(int(row["step"]), float(row[column])) for row in rows if row[column]]
            axis.plot(*zip(*points), label=label, marker="." if column == "val_loss" else None)
        axis.set(title=title, xlabel="step", yscale="log")
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("noise + signal error")
    axes[1].legend()
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
