"""The losses of a training run, or of both stages side by side, as a picture. Run by hand:

python benchmarks/plot_losses.py bundle/docs/loss.png "stage 1=C/local_losses.csv" "stage 2=C/model_losses.csv"
"""

from __future__ import annotations

import csv
import sys

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402


def main() -> None:
    path, *runs = sys.argv[1:]
    figure, axes = plt.subplots(
        1, len(runs), figsize=(4.5 * len(runs), 3.2), sharey=True, squeeze=False, constrained_layout=True
    )
    for axis, (title, csv_path) in zip(axes[0], (run.split("=", 1) for run in runs)):
        with open(csv_path) as file:
            rows = list(csv.DictReader(file))
        for column, label in (("train_loss", "training"), ("val_loss", "validation, averaged weights")):
            points = [(int(row["step"]), float(row[column])) for row in rows if row[column]]
            axis.plot(*zip(*points), label=label, marker="." if column == "val_loss" else None)
        axis.set(title=title, xlabel="step", yscale="log")
        axis.grid(alpha=0.3)
    axes[0, 0].set_ylabel("loss")
    axes[0, -1].legend()
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
