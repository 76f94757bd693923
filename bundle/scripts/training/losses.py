"""The loss of the paper and of flow matching, with its terms to look at."""

from __future__ import annotations

from typing import Any, Sequence

import torch
import torch.nn.functional as F
from monai.utils.enums import CommonKeys as Keys
from torch import Tensor, nn

NOISE_AND_SIGNAL = ("noise", "signal")


class PredictionLoss(nn.Module):
    """Sum of the mean squared errors of what the network predicts, both (B, len(predictions) C, D, H, W).

    Of the noise plus of the signal it is Eq. 3; of the velocity alone it is flow matching.

    Args:
        predictions: of the process, in the order of the channels.
    """

    def __init__(self, predictions: Sequence[str] = NOISE_AND_SIGNAL) -> None:
        super().__init__()
        self.predictions = tuple(predictions)

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        return sum(prediction_errors(prediction, target, self.predictions).values(), prediction.new_zeros(()).float())


def prediction_errors(
    prediction: Tensor, target: Tensor, predictions: Sequence[str] = NOISE_AND_SIGNAL
) -> dict[str, Tensor]:
    """Mean squared error of each prediction, by name."""
    count = len(predictions)
    pairs = zip(prediction.float().chunk(count, dim=1), target.float().chunk(count, dim=1))
    return {name: F.mse_loss(ours, true) for name, (ours, true) in zip(predictions, pairs)}


def loss_terms(output: Any, predictions: Sequence[str] = NOISE_AND_SIGNAL) -> dict[str, float]:
    """An engine's output -> its loss and the terms apart, for the loggers: computed once per step, kept in the output."""
    output = output[0] if isinstance(output, list) else output
    key = ("loss_terms", *predictions)
    if key not in output:
        errors = prediction_errors(output[Keys.PRED].detach(), output[Keys.LABEL], predictions)
        output[key] = torch.stack(list(errors.values())).tolist()  # all at once: each wait for a GPU costs
    return {"loss": sum(output[key]), **dict(zip(predictions, output[key]))}
