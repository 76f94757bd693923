"""What training makes small: a batch of volumes -> named terms, whose sum is the loss."""

from __future__ import annotations

import math
import time
from typing import Any, Iterable, Mapping, Optional, Sequence

import torch
import torch.nn.functional as F
from ignite.engine import Engine
from monai.engines import PrepareBatch
from monai.utils.enums import CommonKeys as Keys
from torch import Tensor, nn

from ..inferers.inferer import autocast
from ..networks.base import DenoisingNetwork
from ..networks.high_resolution import HighResolutionPRDiT, cut_windows, downsample_nearest
from ..networks.layers import check_reflection, put_tokens, token_grid, unpatchify
from ..networks.prdit import PRDiT
from ..schedulers import DiffusionProcess
from ..spaces import Space

Terms = dict[str, Tensor]


class Objective(nn.Module):
    """A batch -> its terms by name, each a number with its weight in it; their sum is the loss.

    MONAI's trainer calls it as its network (`ObjectiveBatch`, `SimpleInferer`, `sum_of_terms`), and every logger shows
    the terms by their names. Whatever is trained, one of these says how.
    """

    terms: tuple[str, ...]  # their names, in the order of the logs
    leaves_out = False  # whether steps may leave parameters that are trained without a gradient

    def forward(self, batch: Mapping[str, Any]) -> Terms:
        """The terms of a batch: 'image', volumes in HU (B, C, X, Y, Z), 'index', and what else the objective needs."""
        raise NotImplementedError

    def to_dearest_steps(self) -> None:
        """Goes to the part of the training that costs most, where parts differ; plans are made for it."""


class ObjectiveBatch(PrepareBatch):
    """Moves a batch to the device as it is: an objective draws noise and times itself, and needs no target beside it."""

    def __call__(
        self, batchdata: dict, device: Any = None, non_blocking: bool = False, **kwargs: Any
    ) -> tuple[dict[str, Any], None]:
        return {
            name: value.as_subclass(Tensor).to(device, non_blocking=non_blocking) if torch.is_tensor(value) else value
            for name, value in batchdata.items()
        }, None


def sum_of_terms(terms: Terms, target: None = None) -> Tensor:
    """The loss, as MONAI's engines ask for it."""
    return sum(terms.values(), torch.zeros((), device=next(iter(terms.values())).device))


def numbers_of(output: Any) -> dict[str, float]:
    """An engine's output -> its loss and the terms, for the loggers of single steps: they wait for a GPU once."""
    output = output[0] if isinstance(output, list) else output
    if "numbers" not in output:
        output["numbers"] = _numbers(output[Keys.PRED], _values(output).tolist())
    return output["numbers"]


def _numbers(names: Iterable[str], values: Sequence[float]) -> dict[str, float]:
    return {"loss": sum(values), **dict(zip(names, values))}


def _values(output: dict[str, Any]) -> Tensor:
    """The terms of a step in one tensor, where they were computed; made once."""
    if "values" not in output:
        output["values"] = torch.stack([value.detach() for value in output[Keys.PRED].values()])
    return output["values"]


class StepNumbers:
    """The numbers of steps, for loggers. They stay where they were computed until they are fetched, for that waits until a
    GPU has done all that it was given: at the end of an epoch, and after `SECONDS`.
    """

    SECONDS = 10.0

    def __init__(self) -> None:
        self.steps: list[int] = []
        self.values: list[Tensor] = []
        self.names: Iterable[str] = ()
        self.fetched = time.monotonic()

    def add(self, engine: Engine) -> bool:
        """Keeps those of the engine's step; whether it is time to fetch them."""
        self.steps.append(engine.state.iteration)
        self.values.append(_values(engine.state.output))
        self.names = engine.state.output[Keys.PRED]
        return time.monotonic() - self.fetched > self.SECONDS

    def fetch(self) -> list[tuple[int, dict[str, float]]]:
        """Steps that are not fetched yet, each with its loss and terms by name."""
        rows = torch.stack(self.values).tolist() if self.values else []
        found = [(step, _numbers(self.names, row)) for step, row in zip(self.steps, rows)]
        self.steps, self.values, self.fetched = [], [], time.monotonic()
        return found


class Denoising(Objective):
    """Mean squared error of what the process asks of the network, on whole volumes: of noise and signal it is Eq. 3, of
    the velocity flow matching.

    Args:
        network: to be trained.
        process: says how volumes are noised, at which times, and what the network is to predict.
        space: of the network.
        bf16: the network under autocast in bfloat16; None where the device is faster with it.
        compile: the network through torch.compile.
        loss: 'mse', or 'l1' for the mean absolute error.
    """

    called = "predict"  # the method that calls the network

    def __init__(
        self,
        network: nn.Module,
        process: DiffusionProcess,
        space: Space,
        bf16: Optional[bool] = None,
        compile: bool = False,
        loss: str = "mse",
    ) -> None:
        super().__init__()
        self.error = {"mse": F.mse_loss, "l1": F.l1_loss}[loss]
        self.network, self.process, self.space, self.bf16 = network, process, space, bf16
        self.terms = process.predictions
        if isinstance(network, DenoisingNetwork):
            network.require_process(process.num_train_timesteps)
        if getattr(network, "encoding", "voxels") != space.encoding:
            raise ValueError(f"encoding {space.encoding} is not what this network sees; leave it out")
        if compile:
            setattr(self, self.called, torch.compile(getattr(self, self.called)))

    def forward(self, batch: Mapping[str, Any]) -> Terms:
        volumes = self.space.encode(batch[Keys.IMAGE])
        noise = self.process.sample_noise(volumes)
        return self.errors(volumes, noise, self.process.sample_timesteps(len(volumes), volumes.device))

    def errors(self, volumes: Tensor, noise: Tensor, times: Tensor) -> Terms:
        """The terms of volumes and noise (B, C, X, Y, Z) at times (B,)."""
        noisy = self.process.add_noise(volumes, noise, times)
        return self.named(self.denoise(noisy, times), self.process.get_target(volumes, noise, times))

    def denoise(self, noisy: Tensor, times: Tensor) -> Tensor:
        """What the network predicts, in float32."""
        with autocast(noisy.device, self.bf16):
            return self.predict(noisy, times).float()

    def predict(self, noisy: Tensor, times: Tensor) -> Tensor:
        return self.network(noisy, times)

    def named(self, prediction: Tensor, target: Tensor) -> Terms:
        """The error of each prediction of the process, which are chunks of the channels."""
        pairs = zip(*(one.float().chunk(len(self.process.predictions), dim=1) for one in (prediction, target)))
        return {name: self.error(*pair) for name, pair in zip(self.process.predictions, pairs)}


class LocalDenoising(Denoising):
    """Stage 1 on a random block of patches of each volume: patches are independent, so more volumes fit in a step.

    A block carries the halo that its patches overlap, reflected at the volume's border, so that the error of a patch is
    the same as in the whole volume.

    Args:
        network: stage 1 alone.
        window: side of the block in patches, 1 or more.
        others: see `Denoising`.

    Raises:
        ValueError: in one line, when the network has a transformer, whose tokens are not independent.
    """

    network: PRDiT

    def __init__(self, network: PRDiT, process: DiffusionProcess, space: Space, window: int, **others: Any) -> None:
        super().__init__(network, process, space, **others)
        if window < 1:
            raise ValueError(f"local_window must be 1 or more patches, got {window}")
        if network.residual is not None:
            raise ValueError("local_window is for stage 1 alone: in stage 2 every token sees every other; set it to 0")
        self.window, self.stride, self.halo = window, network.local.stride, network.local.halo

    def forward(self, batch: Mapping[str, Any]) -> Terms:
        pieces = [self.piece(volume) for volume in batch[Keys.IMAGE]]
        volumes, noise = (torch.stack(piece) for piece in zip(*pieces))  # (B, C, k s + p - s, ...)
        return self.errors(volumes, noise, self.process.sample_timesteps(len(volumes), volumes.device))

    def errors(self, volumes: Tensor, noise: Tensor, times: Tensor) -> Terms:
        noisy = self.process.add_noise(volumes, noise, times)
        inner = (slice(None), slice(None), *(slice(self.halo, side - self.halo) for side in volumes.shape[2:]))
        target = self.process.get_target(volumes[inner], noise[inner], times)
        return self.named(self.denoise(noisy, times), target)

    def predict(self, noisy: Tensor, times: Tensor) -> Tensor:
        return self.network.forward_local_padded(noisy, times)

    def piece(self, volume: Tensor) -> tuple[Tensor, Tensor]:
        """A block of a volume in HU (C, X, Y, Z), encoded, and its noise, both with their halo; in Python's numbers, for no
        GPU waits. Only the block is encoded, which a window of HU does voxel by voxel.
        """
        shape, inside = list(volume.shape[1:]), []
        beyond: list[int] = []
        check_reflection(shape, self.stride + 2 * self.halo, self.stride)
        for side, tokens in zip(shape, token_grid(shape, self.stride)):
            count = min(self.window, tokens)
            first = int(torch.randint(tokens - count + 1, ())) * self.stride - self.halo
            last = first + count * self.stride + 2 * self.halo
            inside.append(slice(max(first, 0), min(last, side)))
            beyond = [max(-first, 0), max(last - side, 0), *beyond]  # as F.pad wants them, the last axis first
        cut = self.space.encode(volume[(slice(None), *inside)])
        noise = self.process.sample_noise(cut[None])[0]  # reflected with the voxels
        return F.pad(cut, beyond, mode="reflect"), F.pad(noise, beyond, mode="reflect")


class Routed(Denoising):
    """Eq. 3, in steps where a share of the tokens, other ones in each volume and step, does not see all of the transformer.

    Args:
        network: with a transformer.
        share: of the tokens.
        dropped: they see no block, get no residual and count in no loss (SPRINT); otherwise they pass by all blocks but the
            first and the last (TREAD).
        others: see `Denoising`.

    Raises:
        ValueError: in one line, when there is no transformer, or it has too few blocks; at the first step, when a volume
            has too few tokens.
    """

    network: PRDiT
    called = "predict_routed"

    def __init__(
        self, network: PRDiT, process: DiffusionProcess, space: Space, share: float, dropped: bool, **others: Any
    ) -> None:
        super().__init__(network, process, space, **others)
        self.share, self.dropped, self.setting = share, dropped, "dropped_share" if dropped else "routed_share"
        residual = getattr(network, "residual", None)
        blocks = 0 if residual is None else len(residual.blocks)
        if blocks < (least := 1 if dropped else 3):
            raise ValueError(f"{self.setting} needs a transformer of {least} or more blocks, this one has {blocks}")

    def draw(self, volumes: Tensor) -> tuple[Tensor, list[int]]:
        """Numbers of the tokens that are kept (B, K), and how many there are along each axis."""
        assert self.network.residual is not None
        grid = token_grid(list(volumes.shape[2:]), self.network.residual.stride)
        count = math.prod(grid)
        kept = count - round(self.share * count)
        if not 0 < kept < count:
            raise ValueError(f"{self.setting} {self.share} of {count} tokens leaves {kept}; choose another one")
        return torch.rand(len(volumes), count, device=volumes.device).argsort(dim=1)[:, :kept], grid

    def errors(self, volumes: Tensor, noise: Tensor, times: Tensor) -> Terms:
        (kept, grid), noisy = self.draw(volumes), self.process.add_noise(volumes, noise, times)
        with autocast(noisy.device, self.bf16):
            prediction = self.predict_routed(noisy, times, kept).float()
        target = self.process.get_target(volumes, noise, times)
        if not self.dropped:
            return self.named(prediction, target)
        stride = volumes.shape[2] // grid[0]
        mask = volumes.new_zeros(len(volumes), math.prod(grid), stride**3)
        seen = unpatchify(put_tokens(mask, kept, mask.new_ones(*kept.shape, stride**3)), grid, stride)
        terms = self.named(seen * prediction, seen * target)
        return {name: term * (mask.shape[1] / kept.shape[1]) for name, term in terms.items()}

    def predict_routed(self, noisy: Tensor, times: Tensor, kept: Tensor) -> Tensor:
        return self.network.forward_routed(noisy, times, (kept, self.dropped))


def local_denoising(
    network: PRDiT,
    process: DiffusionProcess,
    space: Space,
    local_window: int = 0,
    routed_share: float = 0.0,
    dropped_share: float = 0.0,
    **others: Any,
) -> Denoising:
    """`Routed` where a share of the tokens is, `LocalDenoising` on blocks of `local_window` patches a side, or `Denoising`."""
    share = routed_share or dropped_share
    if local_window and not share:
        return LocalDenoising(network, process, space, local_window, **others)
    if share:
        return Routed(network, process, space, share, not routed_share, **others)
    return Denoising(network, process, space, **others)


class Refining(Denoising):
    """Eq. 3 in a random window of each volume, and how far the refiner leads from the backbone (section 3.4, A.8).

    The terms of consistency compare at the low grid: a signal is the average of its blocks, as in the data, and noise
    the first voxel of each, as in the network's input: what the backbone has to predict.

    Args:
        network: high-resolution network; its backbone sees whole volumes.
        window: side of the window in the refiner's patches; 0 is the whole volume.
        consistency_weight: of the terms of consistency; 0 is Eq. 3 alone.
        others: see `Denoising`.

    Raises:
        ValueError: in one line, when windows cannot fall on whole voxels of the low grid, or a number is out of range.
    """

    network: HighResolutionPRDiT
    called = "predict_windows"

    def __init__(
        self,
        network: HighResolutionPRDiT,
        process: DiffusionProcess,
        space: Space,
        window: int = 0,
        consistency_weight: float = 0.0,
        **others: Any,
    ) -> None:
        super().__init__(network, process, space, **others)
        self.window, self.stride, self.consistency_weight = window, network.refiner.stride, consistency_weight
        self.terms = (*process.predictions, "noise_consistency", "signal_consistency")
        if not consistency_weight >= 0:
            raise ValueError(f"consistency_weight must be 0 or more, got {consistency_weight}")
        if window < 0:
            raise ValueError(f"refiner_window must be 0 or more patches, got {window}")
        if window and self.stride % network.factor:
            raise ValueError(
                f"refiner_window needs a refiner_stride that is a multiple of the factor {network.factor}, got "
                f"{self.stride}; set refiner_window to 0"
            )

    def errors(self, volumes: Tensor, noise: Tensor, times: Tensor) -> Terms:
        grid, factor = token_grid(list(volumes.shape[2:]), self.stride), self.network.factor
        counts = [min(self.window or tokens, tokens) for tokens in grid]
        sides = [self.stride * count for count in counts]
        first = [torch.randint(tokens - count + 1, (len(volumes),)) for tokens, count in zip(grid, counts)]
        starts = (self.stride * torch.stack(first, dim=1)).tolist()  # (B, 3)
        noisy = self.process.add_noise(volumes, noise, times)
        with autocast(volumes.device, self.bf16):
            prediction, low = (one.float() for one in self.predict_windows(noisy, times, starts, sides))
        signal_here, noise_here = (cut_windows(one, starts, sides) for one in (volumes, noise))
        target = self.process.get_target(signal_here, noise_here, times)
        terms = self.named(prediction, target)
        noise_found, signal_found = prediction.chunk(2, dim=1)
        averaged = torch.cat([downsample_nearest(noise_found, factor), F.avg_pool3d(signal_found, factor)], dim=1)
        for name, error in self.named(averaged, low).items():
            terms[f"{name}_consistency"] = self.consistency_weight * error
        return terms

    def predict_windows(self, *args: Any) -> tuple[Tensor, Tensor]:
        return self.network.forward_windows(*args)


class HeldOut(Objective):
    """An objective of whole volumes, each at the same times with the same noise in every run, so that losses compare.

    Args:
        objective: whose errors count.
        num_times: times per volume, in the middle of equal shares of (0, T].
        seed: of the noise; volume i of the validation set always gets the noise of seed + i.
    """

    def __init__(self, objective: Denoising, num_times: int = 10, seed: int = 0) -> None:
        super().__init__()
        self.objective, self.terms, self.num_times, self.seed = objective, objective.terms, num_times, seed

    def forward(self, batch: Mapping[str, Any]) -> Terms:
        process, volumes = self.objective.process, self.objective.space.encode(batch[Keys.IMAGE])
        generators = [torch.Generator().manual_seed(self.seed + int(index)) for index in batch["index"]]
        noise = process.sample_noise(volumes.cpu(), generators).to(volumes.device)
        shares = (torch.arange(self.num_times, device=volumes.device) + 0.5) / self.num_times
        times = (process.num_train_timesteps * shares).repeat_interleave(len(volumes))
        every_time = (self.num_times, 1, 1, 1, 1)
        return self.objective.errors(volumes.repeat(every_time), noise.repeat(every_time), times)
