"""What the features of FID, MMD and nearest neighbours see, and how fast they are. Run by hand:

    python benchmarks/features.py                 # phantoms at 64^3 against the same phantoms corrupted
    python benchmarks/features.py --speed 128     # seconds per volume, in turns

For each kind of features: effective rank of the centred vectors (exp of the entropy of their variances, at most N - 1); and
for each corruption the median distance of a volume to its corrupted self, over the usual distance between two phantoms,
and the unbiased MMD^2 to other phantoms, less that of the same phantoms uncorrupted. Astra is measured where its package is
installed.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Callable

import torch
import torch.nn.functional as F
from monai.networks.nets import resnet50
from monai.transforms import GaussianSmooth
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "bundle"))
from scripts.data import chest_phantom  # noqa: E402
from scripts.metrics import FeatureExtractor, median_bandwidth, rbf_kernel, squared_mmd  # noqa: E402
from scripts.metrics.distribution import distances  # noqa: E402
from scripts.metrics.features import MEDICALNET, medicalnet  # noqa: E402
from scripts.metrics.texture import TextureStatistics  # noqa: E402

FIRST_PHANTOM = 2_000_000


def corruptions(seed: int) -> dict[str, Callable[[Tensor], Tensor]]:
    """By name, of volumes (N, 1, X, Y, Z) in HU."""
    generator = torch.Generator().manual_seed(seed)
    smooth = GaussianSmooth(0.7)

    def blocks(x: Tensor) -> Tensor:
        sides = [side // 8 for side in x.shape[2:]]
        return F.interpolate(torch.randn(len(x), 1, *sides, generator=generator), scale_factor=8)

    return {
        "blur, sigma 0.7 voxel": lambda x: torch.stack([smooth(one) for one in x]),
        "grain, 20 HU": lambda x: x + 20 * torch.randn(x.shape, generator=generator),
        "seams, blocks of 8 voxels, 15 HU": lambda x: x + 15 * blocks(x),
        "+50 HU": lambda x: x + 50,
        "mirrored": lambda x: x.flip(2),
    }


def kinds() -> dict[str, Callable[[Tensor], Tensor]]:
    """Features by name: of one volume (1, 1, X, Y, Z) in HU."""
    torch.manual_seed(0)
    network = medicalnet().eval()
    found: dict[str, Callable[[Tensor], Tensor]] = {
        "random ResNet-50": lambda x: network((x + 1000) / 2000),
        "statistics": TextureStatistics(),
    }
    try:
        extractor = FeatureExtractor(None, bf16=False, astra=True).only([{"record_features": "", "record_astra": "a"}])
        found["Astra"] = lambda x: extractor(x)["astra"]
    except ValueError as error:
        print(error)
    return found


@torch.no_grad()
def sensitivity(count: int, side: int) -> None:
    """Prints a row for each kind of features and corruption."""
    chests = [chest_phantom(FIRST_PHANTOM + i, [side] * 3, [320.0] * 3) for i in range(2 * count)]
    volumes = torch.stack([torch.from_numpy(one) for one in chests])[:, None].float().clamp(-1000, 1000)
    changed = {"none": volumes[:count]}
    changed |= {name: change(volumes[:count]).clamp(-1000, 1000) for name, change in corruptions(0).items()}
    for kind, features in kinds().items():
        vectors = {name: torch.cat([features(x[None]) for x in one]).double() for name, one in changed.items()}
        clean, others = vectors["none"], torch.cat([features(x[None]) for x in volumes[count:]]).double()
        power = torch.linalg.svdvals(clean - clean.mean(0)).square()[: count - 1]
        share = power / power.sum()
        kernel, usual = rbf_kernel(median_bandwidth(clean)), distances(clean, clean)
        usual = usual[~torch.eye(count, dtype=torch.bool)].median()
        floor = float(squared_mmd(clean, others, kernel))
        print(f"{kind}: {clean.shape[1]} numbers, effective rank {float((-(share * share.log()).sum()).exp()):.1f}")
        for name in corruptions(0):
            distance = float((vectors[name] - clean).norm(dim=1).median() / usual)
            print(
                f"    {name:34s} {distance:5.2f}  {float(squared_mmd(vectors[name], others, kernel)) - floor:+.2f}",
                flush=True,
            )


@torch.no_grad()
def speed(side: int, rounds: int) -> None:
    """Prints seconds of one volume on one thread, and how many times faster than MONAI's stem of stride 1 that is."""
    torch.set_num_threads(1)
    before = resnet50(**{**MEDICALNET, "conv1_t_stride": 1}).eval()
    now = medicalnet().eval()
    last = medicalnet().eval().to(memory_format=torch.channels_last_3d)
    x = torch.rand(1, 1, side, side, side)
    y = x.to(memory_format=torch.channels_last_3d)
    runs: dict[str, Callable[[], Tensor]] = {
        "MONAI's strides (before)": lambda: before(x),
        "MedicalNet's": lambda: now(x),
        "MedicalNet's, channels last": lambda: last(y),
        "statistics": lambda: TextureStatistics()(x),
    }
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            start = time.process_time()  # of this process alone, whatever else the machine does
            run()
            seconds[name].append(time.process_time() - start)
    medians = {name: sorted(values)[len(values) // 2] for name, values in seconds.items()}
    for name, median in medians.items():
        print(f"{name:30s} {median:7.2f} s  {medians[next(iter(runs))] / median:6.2f} x")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=8, help="phantoms of a set")
    parser.add_argument("--side", type=int, default=64, help="voxels per axis")
    parser.add_argument("--speed", type=int, help="measure the time of volumes of so many voxels per axis")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    if arguments.speed:
        speed(arguments.speed, arguments.rounds)
    else:
        sensitivity(arguments.count, arguments.side)
