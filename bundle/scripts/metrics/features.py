"""The network that turns volumes into feature vectors: Med3D's ResNet-50, as the paper's FID and MMD use it."""

from __future__ import annotations

import hashlib
from typing import Any, Optional, Sequence, Union

import torch
from monai.networks.nets import resnet50
from torch import Tensor, nn

from ..inferers.inferer import uses_bf16
from ..networks.checkpoint import load_strictly, load_tensors
from ..settings import usable_device

NUM_FEATURES = 2048
RANDOM_SEED = 0
MEDICALNET: dict[str, Any] = {
    "spatial_dims": 3, "n_input_channels": 1, "feed_forward": False, "shortcut_type": "B", "bias_downsample": False,
    "conv1_t_stride": 2,
}  # fmt: skip
DILATIONS = {"layer3": 2, "layer4": 4}  # in place of MONAI's strides: the weights fit both, the features are others


class FeatureExtractor(nn.Module):
    """Volumes (B, 1, X, Y, Z) in HU to features (B, 2048): Med3D's ResNet-50 and global average pooling.

    It is the network of MedicalNet (Chen et al. 2019): a stem of stride 2, and dilations of 2 and 4 where MONAI's ResNet-50
    has strides.

    HU of the window go to [0, 1], the scale of the paper's preprocessed data, and nothing else is normalised.

    Args:
        feature_weights: file of Med3D's weights (resnet_50_23dataset.pth of MedicalNet); 'hub' to fetch it from the
            Hugging Face hub; None for a fixed random network.
        hu_window: HU of 0 and 1.
        bf16: False for float32; None for what the device is faster with.
        needed: False where no metric is made from features: then each volume has none, (B, 0), in no time.

    Raises:
        ValueError: in one line, when the file is missing or of another network, or the hub cannot be reached.
    """

    def __init__(
        self,
        feature_weights: Optional[str],
        hu_window: Sequence[float] = (-1000.0, 1000.0),
        bf16: Optional[bool] = None,
        needed: bool = True,
    ) -> None:
        super().__init__()
        self.hu_min, self.hu_max = hu_window
        self.bf16 = bf16
        self.is_random = feature_weights is None
        self.network = _medicalnet(feature_weights) if needed else None
        self.requires_grad_(False).eval()
        self.sha256 = None if self.network is None else _state_hash(self.network)

    @property
    def label(self) -> str:
        """What every number carries that is made from these features."""
        if self.sha256 is None:
            return "no features"
        return "random features" if self.is_random else f"Med3D ResNet-50 {self.sha256[:12]}"

    @property
    def preprocessing(self) -> str:
        """How volumes reach the network, in a sentence."""
        return f"For the features, {self.hu_min:g} to {self.hu_max:g} HU become 0 to 1, with no other normalisation."

    def uses_bf16(self, device: Union[str, torch.device]) -> bool:
        return uses_bf16(usable_device(device), self.bf16)

    def forward(self, volumes: Tensor) -> Tensor:
        if self.network is None:
            return volumes.new_zeros(len(volumes), 0)
        x = ((volumes - self.hu_min) / (self.hu_max - self.hu_min)).clamp(0, 1)
        with torch.autocast(x.device.type, torch.bfloat16, enabled=uses_bf16(x.device, self.bf16)):
            return self.network(x).float()


def _medicalnet(feature_weights: Optional[str]) -> nn.Module:
    if feature_weights == "hub":
        return _from_hub()
    state = {} if feature_weights is None else load_tensors(feature_weights)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(RANDOM_SEED)
        network = _dilated(resnet50(**MEDICALNET))
    if feature_weights is not None:
        state = state.get("state_dict", state)
        if not isinstance(state, dict) or not all(isinstance(name, str) for name in state):
            raise ValueError(f"{feature_weights} holds no state dict")
        state = {name.removeprefix("module."): value for name, value in state.items()}
        load_strictly(network, state, feature_weights)
    return network


def _from_hub() -> nn.Module:
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
