"""The loss of the paper, with its two terms to look at."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from monai.utils.enums import CommonKeys as Keys
from torch import Tensor, nn


class NoiseSignalLoss(nn.Module):
    """Eq. 3: mean squared error of the noise plus mean squared error of the signal, both (B, 2C, D, H, W)."""

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        noise, signal = noise_signal_errors(prediction, target)
        return noise + signal


def noise_signal_errors(prediction: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Mean squared errors of the noise and of the signal."""
    noise, signal = prediction.float().chunk(2, dim=1)
    true_noise, true_signal = target.float().chunk(2, dim=1)
    return F.mse_loss(noise, true_noise), F.mse_loss(signal, true_signal)


def loss_terms(output: Any) -> dict[str, float]:
    """An engine's output -> its loss and the two terms apart, for the loggers."""
    output = output[0] if isinstance(output, list) else output
    noise, signal = noise_signal_errors(output[Keys.PRED].detach(), output[Keys.LABEL])
    return {"loss": float(noise + signal), "noise": float(noise), "signal": float(signal)}
