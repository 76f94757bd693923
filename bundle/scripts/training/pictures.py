"""Pictures of a training run: the losses so far, how a volume is denoised, and samples of fixed seeds."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any, Mapping, Sequence, Union

import numpy as np
import torch
from ignite.engine import Engine, Events
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from monai.networks.utils import eval_mode
from torch import Tensor

from ..data.geometry import three
from ..data.pictures import LUNG_WINDOW
from ..files import remove_leftovers, whole_file
from ..inferers.generator import Item, build_generator
from ..inferers.inferer import autocast
from ..inferers.parts import denoised_parts
from ..networks.guidance import is_stage_1
from ..networks.high_resolution import HighResolutionPRDiT
from ..networks.vq_gan import VQGAN
from ..schedulers import build_scheduler, sampler_settings
from ..spaces import Space

Rows = list[list[tuple[str, np.ndarray]]]  # named slices
NOISE_LEVELS = (0.75, 0.5, 0.25)  # positions on the path, 1 is noise


def picture_path(start: str, epoch: int) -> Path:
    """File of the picture of an epoch; `start` is the folder and the stage, such as 'C/pictures/model'."""
    return Path(f"{start}_epoch_{epoch:04d}.png")


class TrainingPictures:
    """After each validation, what the averaged network can do: `pictures/STAGE_epoch_N.png` and `STAGE_progress.png`.

    The first shows a validation volume at three noise levels, as it was, noisy, and denoised, with the local and the
    residual part of the prediction apart (of an autoencoder: as it was, and reconstructed); below it samples of seeds that are the same in each picture, where there is
    a transformer. The second is `STAGE_losses.csv` drawn. All noise has generators of its own: training draws the same
    numbers with and without pictures.

    Args:
        pictures: folder and start of the pictures' names, such as 'C/pictures/model'.
        losses: CSV of `LossCSV`, which comes before this handler, as the validation does.
        evaluator: that validates the average.
        network: the average.
        process: name and settings.
        made_for: the sampler that the weights are made for, see `sampler_settings`.
        space: of the network.
        seen: 'grid' and 'field_of_view_mm' of the volumes.
        num_samples: volumes to sample.
        bf16: see `uses_bf16`.
    """

    def __init__(
        self,
        pictures: str,
        losses: Union[str, Path],
        evaluator: Engine,
        network: Any,
        process: dict,
        space: Space,
        seen: Mapping[str, Sequence[float]],
        made_for: Mapping[str, Any] = {},
        num_samples: int = 2,
        bf16: Any = None,
    ) -> None:
        self.pictures, self.losses, self.evaluator = pictures, Path(losses), evaluator
        self.network, self.space, settings = network, space, sampler_settings(made_for)
        self.calls, self.random_offset = settings.pop("num_inference_steps"), settings.pop("random_offset")
        self.scheduler = build_scheduler(process, **settings)
        self.grid = [int(side) for side in three(seen["grid"])]
        voxel = [mm / side for mm, side in zip(three(seen["field_of_view_mm"]), self.grid)]
        self.aspect = voxel[2] / voxel[0]
        self.num_samples, self.bf16, self.drawn = num_samples, bf16, 0

    def attach(self, engine: Engine) -> None:
        remove_leftovers(Path(self.pictures).parent)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)
        engine.add_event_handler(Events.COMPLETED, self)  # the last validation may come after the last epoch

    def __call__(self, engine: Engine) -> None:
        if not self.drawn < self.evaluator.state.epoch == engine.state.epoch:
            return
        self.drawn = engine.state.epoch
        device = next(self.network.parameters()).device
        path = picture_path(self.pictures, self.drawn)
        with eval_mode(self.network), autocast(device, self.bf16):  # a codebook would go on learning
            rows = self.denoised(device) + self.sampled()
        title = f"{path.stem}, step {engine.state.iteration}: coronal slices, lung window"
        _save(_panel(rows, title, self.aspect), path)
        _save(_curves(self.losses), self.losses.with_name(self.losses.stem.removesuffix("_losses") + "_progress.png"))

    def denoised(self, device: torch.device) -> Rows:
        """A row of named coronal slices (X, Z) for each noise level; one row of an autoencoder, none of a GAN."""
        if hasattr(self.network, "latent_size"):
            return []
        hu = torch.as_tensor(self.evaluator.data_loader.dataset[0]["image"])[None].to(device)  # type: ignore[attr-defined]
        if isinstance(self.network, VQGAN):
            back = self.space.decode(self.network(self.space.encode(hu))[0].float())
            return [[("validation volume", self.coronal(hu)), ("reconstructed", self.coronal(back))]]
        rows = []
        for level in NOISE_LEVELS:
            noisy, signal, of_first = denoised_parts(self.network, self.scheduler, self.space, hu, level)
            high, two = isinstance(self.network, HighResolutionPRDiT), hasattr(self.network, "forward_parts")
            parts = ("upsampled part", "refiner's part") if high else ("local part", "residual part")
            names = ("validation volume", f"noised, u = {level}", "denoised", *(parts if two else ()))
            shown = (hu, noisy, signal, of_first, signal - of_first)
            rows.append([(name, self.coronal(part, name == parts[1])) for name, part in zip(names, shown)])
        return rows

    def sampled(self) -> Rows:
        """A row of coronal slices of the samples, one per seed; none of stage 1 or an autoencoder, which draw nothing."""
        if is_stage_1(self.network.settings) or isinstance(self.network, VQGAN):
            return []
        # a new one, for it keeps what the weights make of the times
        calls = 1 if hasattr(self.network, "latent_size") else self.calls
        generator = build_generator(
            self.network, self.scheduler, calls, self.grid, self.space, random_offset=self.random_offset
        )
        volumes = [generator.sample([Item(seed)]) for seed in range(self.num_samples)]
        return [[(f"seed {seed}", self.coronal(volume)) for seed, volume in enumerate(volumes)]]

    @staticmethod
    def coronal(volume: Tensor, difference: bool = False) -> np.ndarray:
        """The middle coronal slice of (1, C, X, Y, Z) in HU, as radiologists look at it, 0 to 1 in the lung window.

        A difference of volumes is 0.5 where it is 0, in the same scale.
        """
        low, high = LUNG_WINDOW
        plane = volume[0, 0, :, volume.shape[3] // 2].flip(0, 1).T.float().cpu().numpy()
        return np.clip(0.5 + plane / (high - low) if difference else (plane - low) / (high - low), 0, 1)


def _panel(rows: Rows, title: str, aspect: float) -> Figure:
    """Named slices (rows of pixels, 0 to 1), as many in a line as there are."""
    columns = max(map(len, rows))
    figure = Figure(figsize=(2.2 * columns, 2.4 * len(rows) + 0.4), layout="constrained")
    figure.suptitle(title, fontsize="medium")
    axes = figure.subplots(len(rows), columns, squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for line, row in zip(axes, rows):
        for axis, (name, plane) in zip(line, row):
            axis.set(xticks=[], yticks=[])
            axis.axis("on")  # a frame, for a sample of young weights may be as white as the page
            axis.set_title(name, fontsize="small")
            axis.imshow(plane, cmap="gray", vmin=0, vmax=1, aspect=aspect, interpolation="bicubic")
    return figure


def _curves(losses: Path) -> Figure:
    """The columns of a CSV of `LossCSV` over the steps: losses and their terms on one axis, the learning rate on another."""
    with open(losses, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    figure = Figure(figsize=(7, 4), layout="constrained")
    axis = figure.subplots()
    names = [name.partition("_")[2] for name in rows[0] if name.startswith("train_")]
    for i, name in enumerate(names):
        for kind, style in (("train", "-"), ("val", ".--")):
            points = [(int(row["step"]), float(row[f"{kind}_{name}"])) for row in rows if row.get(f"{kind}_{name}")]
            label = f"{name}, {'training' if kind == 'train' else 'validation'}"
            axis.plot(*zip(*points), style, color=f"C{i}", label=label, linewidth=1)
    axis.set(
        xlabel="step",
        ylabel="loss",
        yscale="log",
        title=f"{losses.stem.removesuffix('_losses')}; validation is of the averaged weights",
    )
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=3, fontsize="small")
    rate = axis.twinx()
    rate.plot([int(row["step"]) for row in rows], [float(row["lr"]) for row in rows], color="0.7", linewidth=1)
    rate.set_ylabel("learning rate", color="0.5")
    return figure


def _save(figure: Figure, path: Path) -> None:
    with whole_file(path) as file:
        figure.savefig(file, format="png", dpi=110)
