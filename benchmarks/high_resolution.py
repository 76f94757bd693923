"""Three ways to the high grid on phantoms, same seeds and same training budget. Run by hand, hours:

    python benchmarks/high_resolution.py --work_dir DIR                             # 32^3 -> 64^3
    python benchmarks/high_resolution.py --work_dir DIR --grid 64 --local_epochs 40 --global_epochs 16

'upsampled': samples of the low network, upsampled trilinear. 'high resolution': a refiner on that network, inside every
step. 'direct': both stages at the high grid, with as many epochs as the training work of the other two together allows.
Work is counted in floating-point operations: forward passes, and twice as much again for each part that is trained.
A run that is broken off continues; seconds are those of runs that were not. The losses are those of Eq. 3 on held-out
phantoms, of 'upsampled' those of the low network's upsampled prediction. The error of the spectrum is the mean |log10|
ratio to that of other phantoms, over the frequencies between the two grids' Nyquist frequencies.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path
from typing import Any, Callable

import matplotlib
import numpy as np
import torch
from parametrization import bundle
from quality import FIRST_REFERENCE, HU_WINDOW, load_generated, phantoms, print_table
from sampling import forward_flop
from torch import nn

from scripts.metrics import (  # quality.py has made the package known
    hu_histogram,
    radial_power_spectrum,
    soft_tissue_grain,
    spectrum_error,
    wasserstein_distance,
)
from scripts.networks import build_high_resolution, network_from_checkpoint, read_card
from scripts.networks.high_resolution import upsample_trilinear
from scripts.schedulers import build_scheduler
from scripts.spaces import HUWindow
from scripts.training import Denoising, HeldOut

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

FIELD_OF_VIEW_MM = 320.0
ARMS = ("upsampled", "high resolution", "direct")


# work


def share_of(window: int, stride: int, grid: int) -> float:
    """Share of a volume that a window of patches covers; 0 patches are all."""
    return min(1.0, window * stride / grid) ** 3 if window else 1.0


def two_stage_flop(settings: dict, grid: int, args: argparse.Namespace, local_epochs: int, global_epochs: int) -> float:
    """Training both stages: stage 1 on windows, then stage 2 on a frozen stage 1."""
    local = forward_flop(settings, grid, part=lambda network: network.local)
    stage_1 = 3 * local * share_of(args.local_window, settings["local_stride"], grid)
    stage_2 = 3 * forward_flop(settings, grid) - 2 * local
    return args.num_phantoms * (local_epochs * stage_1 + global_epochs * stage_2)


def refiner_flop(settings: dict, grid: int, args: argparse.Namespace) -> float:
    refiner = forward_flop(settings, grid, part=lambda network: network.refiner)
    backbone = forward_flop(settings["backbone"], grid // args.factor)
    each = backbone + 3 * refiner * share_of(args.refiner_window, settings["stride"], grid)
    return args.num_phantoms * args.refiner_epochs * each


# the three arms


def timed(marker: Path, is_broken: bool, call: Callable[[], None]) -> float:
    """Runs once; seconds, not a number where an earlier run was broken off."""
    if not marker.is_file():
        start = time.perf_counter()
        call()
        seconds = math.nan if is_broken else time.perf_counter() - start
        marker.write_text(json.dumps(seconds))
    return float(json.loads(marker.read_text()))


def train(folder: Path, name: str, stack: list[str], **settings: Any) -> float:
    broken = any(folder.glob(f"{name}_checkpoint_epoch=*.pt"))
    shared = {"ckpt_dir": folder, "num_validation_phantoms": 4, "field_of_view_mm": FIELD_OF_VIEW_MM}
    folder.mkdir(parents=True, exist_ok=True)
    return timed(folder / f"{name}.seconds", broken, lambda: bundle("training", stack, **shared, **settings))


def train_two_stages(folder: Path, grid: int, epochs: tuple[int, int], args: argparse.Namespace) -> float:
    shared = {"grid": [grid] * 3, "num_phantoms": args.num_phantoms, "batch_size": args.batch_size}
    seconds = train(folder, "local", ["train"], max_epochs=epochs[0], local_window=args.local_window, **shared)
    return seconds + train(folder, "model", ["train", "train_global"], max_epochs=epochs[1], **shared)


def train_refiner(folder: Path, backbone: Path, args: argparse.Namespace) -> float:
    settings = {
        "backbone_ckpt": backbone, "factor": args.factor, "num_phantoms": args.num_phantoms, "lr": args.refiner_lr,
        "lr_decay_to": 0.0, "ema_decay": 0.99, "batch_size": args.batch_size, "max_epochs": args.refiner_epochs,
        "refiner_hidden_size": 288, "refiner_patch_size": 6, "refiner_stride": 4, "refiner_window": args.refiner_window,
        "refiner_parametrization": args.parametrization, "consistency_weight": args.consistency_weight,
    }  # fmt: skip
    return train(folder, "high_resolution", ["train", "train_high_resolution"], **settings)


def sample(folder: Path, ckpt_path: Path, args: argparse.Namespace) -> tuple[np.ndarray, float]:
    """The volumes (N, X, Y, Z) of the seeds, and the seconds they took."""
    settings = {"ckpt_path": ckpt_path, "output_dir": folder / "out", "num_samples": args.num_samples}
    settings |= {"num_inference_steps": args.num_inference_steps, "solver": "multistep", "spacing": "quadratic"}
    marker, broken = folder / "samples.seconds", (folder / "out").is_dir()
    folder.mkdir(parents=True, exist_ok=True)
    seconds = timed(marker, broken, lambda: bundle("run", ["inference"], **settings))
    return load_generated(folder / "out"), seconds


# what is measured


@torch.no_grad()
def losses(network: nn.Module, grid: int, args: argparse.Namespace) -> dict[str, float]:
    """Noise and signal term of Eq. 3 on held-out phantoms, at ten fixed times with fixed noise."""
    objective = Denoising(network, build_scheduler({"name": "cosine_sine"}), HUWindow())
    held_out, sums = HeldOut(objective), dict.fromkeys(objective.terms, 0.0)
    volumes = phantoms(args.num_validation, [grid] * 3, FIELD_OF_VIEW_MM, FIRST_REFERENCE + 5000)
    for i, volume in enumerate(torch.from_numpy(volumes).float()):
        terms = held_out({"image": volume[None, None], "index": [i]})
        sums = {name: sums[name] + float(terms[name]) for name in sums}
    return {f"{name} loss": total / len(volumes) for name, total in sums.items()}


def spectrum(volumes: np.ndarray) -> torch.Tensor:
    """Mean power in each shell, of (N, X, Y, Z)."""
    each = [radial_power_spectrum(torch.from_numpy(v).float(), [FIELD_OF_VIEW_MM] * 3) for v in volumes]
    return torch.stack(each).mean(0)


def fine_error(volumes: np.ndarray, reference: np.ndarray, factor: int) -> float:
    """Error of the spectrum between the Nyquist frequencies of the low and the high grid."""
    nyquist = volumes.shape[1] // 2
    shells = slice(nyquist // factor, nyquist + 1)  # spectrum_error leaves the first one, the low grid's own, out
    return float(spectrum_error(spectrum(volumes)[shells], spectrum(reference)[shells]))


def numbers(volumes: np.ndarray, reference: np.ndarray, factor: int) -> dict[str, float]:
    sets = [[torch.from_numpy(volume).float() for volume in one] for one in (volumes, reference)]
    histograms = [torch.stack([hu_histogram(volume, HU_WINDOW) for volume in one]).sum(0) for one in sets]
    grain = torch.stack([soft_tissue_grain(volume) for volume in sets[0]]).nanmean()
    return {
        "HU-Wasserstein": float(wasserstein_distance(*histograms)),
        "log10 spectrum error above the low Nyquist": fine_error(volumes, reference, factor),
        "grain (HU)": float(grain),
    }


def figure(volumes: dict[str, np.ndarray], low_grid: int, path: Path) -> None:
    """A coronal slice of the first volume of each set, and all spectra."""
    canvas, axes = plt.subplots(1, len(volumes) + 1, figsize=(3 * len(volumes) + 5, 3.4), constrained_layout=True)
    for axis, (name, one) in zip(axes, volumes.items()):
        axis.imshow(one[0][:, one.shape[2] // 2].T, cmap="gray", origin="lower", vmin=-1000, vmax=400)
        axis.set(title=name, xticks=[], yticks=[])
    for name, one in volumes.items():
        power = spectrum(one)[1 : one.shape[1] // 2 + 1]
        axes[-1].loglog(np.arange(1, len(power) + 1), power, label=name)
    axes[-1].axvline(low_grid / 2, color="black", linestyle=":", label="Nyquist of the low grid")
    axes[-1].set(xlabel="cycles per side", ylabel="power")
    axes[-1].legend(fontsize=7)
    canvas.savefig(path, dpi=110)


# the run


def run_arms(args: argparse.Namespace, folder: Path) -> tuple[dict[str, np.ndarray], dict[str, dict[str, float]]]:
    """Volumes in HU at the high grid and the numbers of each arm."""
    low, high = args.grid, args.factor * args.grid
    epochs = (args.local_epochs, args.global_epochs)
    seconds = {"upsampled": train_two_stages(folder / "low", low, epochs, args)}
    seconds["high resolution"] = seconds["upsampled"] + train_refiner(
        folder / "high_resolution", folder / "low" / "model.pt", args
    )
    ckpt = {"upsampled": folder / "low" / "model.pt", "direct": folder / "direct" / "model.pt"}
    ckpt["high resolution"] = folder / "high_resolution" / "high_resolution.pt"
    settings = {name: read_card(ckpt[name]).network for name in ("upsampled", "high resolution")}
    work = {"upsampled": two_stage_flop(settings["upsampled"], low, args, *epochs)}
    work["high resolution"] = work["upsampled"] + refiner_flop(settings["high resolution"], high, args)
    # the same network, at the high grid; its epochs fill the budget
    settings["direct"] = settings["upsampled"]
    whole = two_stage_flop(settings["direct"], high, args, *epochs)
    scaled = [max(1, round(count * work["high resolution"] / whole)) for count in epochs]
    work["direct"] = two_stage_flop(settings["direct"], high, args, *scaled)
    seconds["direct"] = train_two_stages(folder / "direct", high, (scaled[0], scaled[1]), args)

    reference = phantoms(args.num_reference, [high] * 3, FIELD_OF_VIEW_MM)
    volumes, rows = {}, {}
    for name in ARMS:
        volumes[name], sampling = sample(folder / name.replace(" ", "_"), ckpt[name], args)
        network: nn.Module = network_from_checkpoint(ckpt[name])
        if name == "upsampled":
            volumes[name] = upsample_trilinear(torch.from_numpy(volumes[name])[:, None], args.factor)[:, 0].numpy()
            upsampled = build_high_resolution(settings[name], args.factor, 288, 6, 4)  # a new one adds nothing
            upsampled.backbone, network = network, upsampled
        of_call = forward_flop(settings[name], low if name == "upsampled" else high)
        rows[name] = {
            **losses(network.eval(), high, args),
            **numbers(volumes[name], reference, args.factor),
            "training (PFLOP)": work[name] / 1e15,
            "training (s)": seconds[name],
            "sampling (TFLOP per volume)": args.num_inference_steps * of_call / 1e12,
            "sampling (s per volume)": sampling / args.num_samples,
        }
    others = phantoms(args.num_samples, [high] * 3, FIELD_OF_VIEW_MM, FIRST_REFERENCE + 1000)
    volumes["other phantoms"] = others
    floor = numbers(others, reference, args.factor)
    rows["other phantoms (floor)"] = {name: floor.get(name, math.nan) for name in rows["direct"]}
    return volumes, rows


def require_same_settings(args: argparse.Namespace) -> None:
    """A folder holds one comparison."""
    path = args.work_dir / "settings.json"
    own = {name: value for name, value in vars(args).items() if name != "work_dir"}
    args.work_dir.mkdir(parents=True, exist_ok=True)
    if not path.is_file():
        path.write_text(json.dumps(own, indent=4))
    if json.loads(path.read_text()) != own:
        raise SystemExit(f"{args.work_dir} holds a run with other settings, see {path}; choose another work_dir")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work_dir", type=Path, required=True)
    parser.add_argument("--grid", type=int, default=32, help="side of the low grid")
    parser.add_argument("--factor", type=int, default=2)
    parser.add_argument("--num_phantoms", type=int, default=512)
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--local_epochs", type=int, default=40)
    parser.add_argument("--global_epochs", type=int, default=40)
    parser.add_argument("--refiner_epochs", type=int, default=40)
    parser.add_argument("--refiner_lr", type=float, default=1.0e-3)
    parser.add_argument("--parametrization", choices=("none", "skip"), default="skip", help="of the refiner")
    parser.add_argument("--consistency_weight", type=float, default=0.1)
    parser.add_argument("--local_window", type=int, default=4)
    parser.add_argument("--refiner_window", type=int, default=8)
    parser.add_argument("--num_inference_steps", type=int, default=50)
    parser.add_argument("--num_samples", type=int, default=32)
    parser.add_argument("--num_reference", type=int, default=64)
    parser.add_argument("--num_validation", type=int, default=8)
    args = parser.parse_args()
    require_same_settings(args)
    volumes, rows = run_arms(args, args.work_dir)
    (args.work_dir / "high_resolution.json").write_text(json.dumps(rows, indent=4))
    figure(volumes, args.grid, args.work_dir / "high_resolution.png")
    print_table(rows)


if __name__ == "__main__":
    main()
