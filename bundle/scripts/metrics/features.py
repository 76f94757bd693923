"""The networks that turn volumes into feature vectors, on which FID, MMD, KID and nearest neighbours are computed."""

from __future__ import annotations

import hashlib
from typing import Any, Collection, Mapping, Optional, Sequence, Union

import torch
from monai.networks.nets import resnet50
from torch import Tensor, nn

from ..inferers.inferer import autocast, uses_bf16
from ..networks.checkpoint import load_strictly, load_tensors
from ..settings import usable_device
from .astra import Astra
from .texture import TextureStatistics

FEATURES, ASTRA = "features", "astra"  # entries of a record
MEDICALNET: dict[str, Any] = {
    "spatial_dims": 3, "n_input_channels": 1, "feed_forward": False, "shortcut_type": "B", "bias_downsample": False,
    "conv1_t_stride": 2,
}  # fmt: skip
DILATIONS = {"layer3": 2, "layer4": 4}  # in place of MONAI's strides: the weights fit both, the features are others


class Med3D(nn.Module):
    """Volumes (B, 1, X, Y, Z) in HU to features (B, 2048): Med3D's ResNet-50 and global average pooling.

    It is the network of MedicalNet (Chen et al. 2019), as the paper's FID and MMD use it: a stem of stride 2, and
    dilations of 2 and 4 where MONAI's ResNet-50 has strides. HU of the window go to [0, 1], the scale of the paper's
    preprocessed data, and nothing else is normalised.

    Args:
        feature_weights: file of Med3D's weights (resnet_50_23dataset.pth of MedicalNet); 'hub' to fetch it from the
            Hugging Face hub.
        hu_window: HU of 0 and 1.

    Raises:
        ValueError: in one line, when the file is missing or of another network, or the hub cannot be reached.
    """

    trained = True

    def __init__(self, feature_weights: str, hu_window: Sequence[float] = (-1000.0, 1000.0)) -> None:
        super().__init__()
        self.hu_min, self.hu_max = hu_window
        self.network = _from_hub() if feature_weights == "hub" else medicalnet()
        if feature_weights != "hub":
            state = load_tensors(feature_weights)
            state = state.get("state_dict", state)
            if not isinstance(state, dict) or not all(isinstance(name, str) for name in state):
                raise ValueError(f"{feature_weights} holds no state dict")
            state = {name.removeprefix("module."): value for name, value in state.items()}
            load_strictly(self.network, state, feature_weights)
        self.sha256 = _state_hash(self.network)
        self.label = f"Med3D ResNet-50 {self.sha256[:12]}"

    def forward(self, volumes: Tensor) -> Tensor:
        return self.network(((volumes - self.hu_min) / (self.hu_max - self.hu_min)).clamp(0, 1))


class FeatureExtractor(nn.Module):
    """Volumes (B, 1, X, Y, Z) in HU to vectors of features: {'features': (B, D), and 'astra': (B, 4096) if asked for}.

    Args:
        feature_weights: of `Med3D`, whose are 'features'; None for `TextureStatistics`, which need no weights.
        hu_window: HU of the volumes.
        bf16: False for float32; None for what the device is faster with.
        needed: False where no metric is made from features: then each volume has none, (B, 0), in no time.
        astra: whether to have the features of `Astra` beside them.

    Raises:
        ValueError: in one line, when weights are missing or of another network.
    """

    def __init__(
        self,
        feature_weights: Optional[str],
        hu_window: Sequence[float] = (-1000.0, 1000.0),
        bf16: Optional[bool] = None,
        needed: bool = True,
        astra: bool = False,
    ) -> None:
        super().__init__()
        self.hu_window, self.bf16 = hu_window, bf16
        self.networks = nn.ModuleDict()
        if needed:
            self.networks[FEATURES] = (
                TextureStatistics() if feature_weights is None else Med3D(feature_weights, hu_window)
            )
            if astra:
                self.networks[ASTRA] = Astra()
        self.requires_grad_(False).eval()
        self.wanted: Collection[str] = list(self.networks)

    @property
    def described(self) -> dict[str, dict[str, Any]]:
        """Of each kind of features: 'label', which every number carries that is made from it, 'trained' and 'sha256'."""
        none = {FEATURES: {"label": "no features", "trained": False, "sha256": None}}
        return none | {
            name: {key: getattr(one, key) for key in ("label", "trained", "sha256")}
            for name, one in self.networks.items()
        }

    @property
    def preprocessing(self) -> str:
        """How volumes reach the networks, in sentences."""
        low, high = self.hu_window
        med3d = f"For Med3D, {low:g} to {high:g} HU become 0 to 1, with no other normalisation."
        texts = {Med3D: med3d, Astra: Astra.preprocessing}
        return " ".join(
            text for kind, text in texts.items() if any(isinstance(one, kind) for one in self.networks.values())
        )

    def settings(self, device: Union[str, torch.device]) -> dict[str, dict[str, Any]]:
        """What each kind of features depends on beside the volume."""
        bf16 = self.uses_bf16(device)
        geometry = {name: getattr(one, "geometry", None) for name, one in self.networks.items()}
        about = self.described
        return {
            name: {
                "sha256": about[name]["sha256"],
                "geometry": geometry.get(name),
                "bf16": bf16 and about[name]["trained"],
            }
            for name in about
        }

    def uses_bf16(self, device: Union[str, torch.device]) -> bool:
        return uses_bf16(usable_device(device), self.bf16)

    def only(self, missing: Sequence[Mapping[str, Any]]) -> FeatureExtractor:
        """Computes what one of these volumes lacks, see `RecordStore.missing`, and nothing else; returns itself."""
        self.wanted = [name for name in self.networks if any(item[f"record_{name}"] for item in missing)]
        return self

    def forward(self, volumes: Tensor) -> dict[str, Tensor]:
        found = {FEATURES: volumes.new_zeros(len(volumes), 0)}
        if (
            volumes.device.type == "cpu"
        ):  # there 1.1 to 1.3 times as fast (benchmarks/features.py); GPUs are not measured
            self.networks.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
            volumes = volumes.to(memory_format=torch.channels_last_3d)
        for name in self.wanted:
            network = self.networks[name]
            with autocast(volumes.device, self.bf16 if network.trained else False):
                found[name] = network(volumes).float()
        return found


def medicalnet() -> Any:
    """The network of MedicalNet, with weights that were drawn."""
    with torch.random.fork_rng(devices=[]):
        return _dilated(resnet50(**MEDICALNET))


def _from_hub() -> Any:
    try:
        return _dilated(resnet50(pretrained=True, **MEDICALNET))
    except Exception as error:  # whatever the hub's client raises, or that it is not installed
        raise ValueError(
            f"feature_weights hub: the weights cannot be fetched ({type(error).__name__}); download "
            "resnet_50_23dataset.pth of MedicalNet and give its path"
        ) from None


def _dilated(network: Any) -> nn.Module:
    """MONAI's ResNet-50 with MedicalNet's dilations."""
    for name, dilation in DILATIONS.items():
        for block in getattr(network, name):
            block.conv2.stride, block.conv2.dilation, block.conv2.padding = (1,) * 3, (dilation,) * 3, (dilation,) * 3
            if block.downsample is not None:
                block.downsample[0].stride = (1,) * 3
    return network


def _state_hash(network: nn.Module) -> str:
    """Of the weights and of the strides and dilations, which say as much about the features."""
    digest = hashlib.sha256()
    for name, layer in network.named_modules():
        if isinstance(layer, nn.Conv3d):
            digest.update(f"{name} {layer.stride} {layer.dilation}".encode())
    for name, value in sorted(network.state_dict().items()):
        digest.update(name.encode() + value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
