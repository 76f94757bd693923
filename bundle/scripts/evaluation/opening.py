"""What an evaluation says before it starts."""

from __future__ import annotations

from typing import Any, Mapping, Optional, Sequence, Sized, Union

import ignite.distributed as idist
import torch

from ..hardware import device_name
from ..metrics import FeatureExtractor
from ..words import count
from .comparison import MEMORISATION
from .volume_sets import VolumeSet


@idist.one_rank_only()
def tell_evaluation(
    sets: Mapping[str, VolumeSet],
    missing: Sized,
    voxels: str,
    chosen: Optional[Sequence[str]],
    metrics: Mapping[str, Any],
    extractor: FeatureExtractor,
    device: Union[str, torch.device],
    output_dir: str,
) -> None:
    """Prints what is compared with what, how many volumes have to be measured, by what and on what, and where it goes.

    Args:
        sets: of `load_sets`.
        missing: volumes that are not measured yet.
        voxels: of the common grid, see `voxels_in_words`.
        chosen: beginnings of names of metrics, or None for all.
        metrics: of `choose_metrics`.
        extractor: of features.
        device: where it runs.
        output_dir: of the report.
    """
    real, training = sets["real"], sets.get("training")
    what = " and ".join(_volumes(name, len(one)) for name, one in sets.items() if one.role == "generated")
    against = count(len(real), "phantom" if real.folder is None else "real volume")
    copied = "the same" if training is None else count(len(training), "training volume")
    print(
        f"compares {what} with {against}, at {voxels}"
        + (f"; looks for copies among {copied}" if MEMORISATION in metrics["others"] else "")
    )
    there = len({content for one in sets.values() for content in one.hashes}) - len(missing)
    made = [one for one in extractor.described.values() if one["sha256"]]
    precision = f" in {'bf16' if extractor.uses_bf16(device) else 'float32'}"
    features = " and ".join(one["label"] + (precision if one["trained"] else "") for one in made) or "no features"
    print(
        f"measures {count(len(missing), 'volume')}"
        + (f" ({there} {'is' if there == 1 else 'are'} measured already)" if there else "")
        + f" on {device_name(device)}; metrics: {', '.join(chosen) if chosen else 'all'}, {features}; -> {output_dir}/"
    )


def _volumes(name: str, number: int) -> str:
    return count(number, "generated volume") if name == "generated" else f"{count(number, 'volume')} of {name}"
