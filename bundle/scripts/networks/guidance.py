"""Layer-skip guidance: away from what the network would predict without one of its transformer blocks."""

from __future__ import annotations

from typing import Any, Callable, NamedTuple, Optional, Sequence, Union

from torch import Tensor, nn

from ..schedulers.path import Path
from ..settings import require_numbers, whole_number
from .base import DenoisingNetwork
from .card import Card


class Guidance(NamedTuple):
    """The prediction D becomes D + w (D - D'), D' being that of the same network without one transformer block.

    A weaker version of a network errs in the same direction as the network itself, but further: the way from D' to D
    goes on to what a better one would predict (autoguidance, Karras et al. 2024). To leave layers out saves training
    the weaker one (spatiotemporal skip guidance, Hyung et al. 2024). Guidance at much noise costs contrast and
    variety, so it ends at a position of the path (Kynkäänniemi et al. 2024).

    Args:
        scale: w, 0 is no guidance.
        block: which one D' leaves out, counted from 0.
        below: position u of the path, from data (0) to noise (1), below which there is guidance.
    """

    scale: float = 0.0
    block: int = 1
    below: float = 0.5

    def weights(self, path: Path, times: Sequence[float]) -> list[float]:
        """w at each of the times of a path."""
        return [self.scale if path.position(t) < self.below else 0.0 for t in times]


class Guided(nn.Module):
    """A network with layer-skip guidance, for sampling: it is called as the network itself is.

    Args:
        network: on its device.
        guidance: which.
        path: of the process, which knows where the times are.
    """

    def __init__(self, network: DenoisingNetwork, guidance: Guidance, path: Path) -> None:
        super().__init__()
        self.network, self.guidance, self.path = network, guidance, path

    def require_process(self, num_train_timesteps: int) -> None:
        self.network.require_process(num_train_timesteps)

    def strides(self) -> list[int]:
        return self.network.strides()

    def at_times(self, times: Tensor, spatial_shape: list[int]) -> list[Callable[[Tensor], Tensor]]:
        """See `DenoisingNetwork.at_times`."""
        weights = self.guidance.weights(self.path, times.tolist()) if not times.is_meta else [self.guidance.scale]
        guides = [(self.guidance.block, weight) if weight else None for weight in weights]
        return self.network.at_times(times, spatial_shape, guides)


def guided(network: DenoisingNetwork, guidance: Optional[Guidance], path: Path) -> Union[DenoisingNetwork, Guided]:
    """`Guided`, or the network itself where there is no guidance."""
    return network if guidance is None else Guided(network, guidance, path)


def num_blocks(network: dict) -> int:
    """Transformer blocks of a network, from its settings; of a chain those of the lowest grid."""
    return num_blocks(network["backbone"]) if "backbone" in network else network.get("depth", 0)


def is_stage_1(network: dict) -> bool:
    """Whether a network, by its settings, is a local denoiser alone, which draws noise without anatomy."""
    return is_stage_1(network["backbone"]) if "backbone" in network else network.get("depth") == 0


def guidance_of(
    card: Card, scale: Optional[float] = None, block: Optional[int] = None, below: Optional[float] = None
) -> Optional[Guidance]:
    """What the user asks for; what is None is as the JSON beside the weights recommends, or as in `Guidance`.

    Args:
        card: of the weights.
        scale: see `Guidance`.
        block: likewise.
        below: likewise.

    Returns:
        None where there is no guidance.

    Raises:
        ValueError: in one line, when a number is out of range or has no effect, or the network has no such block.
    """
    given = {"scale": scale, "block": block, "below": below}
    given = {name: value for name, value in given.items() if value is not None}
    try:
        _checked(card, card.guidance)
    except (TypeError, ValueError) as error:
        raise ValueError(f"the JSON of the weights {card.path} recommends no right guidance: {error}") from None
    guidance, idle = _checked(card, {**card.guidance, **given}), [name for name in given if name != "scale"]
    if guidance is None and idle:
        raise ValueError(f"guidance_{idle[0]} has no effect without guidance; set guidance, too, or leave it out")
    return guidance


def _checked(card: Card, settings: dict[str, Any]) -> Optional[Guidance]:
    guidance = Guidance(**settings)
    require_numbers(0, guidance=guidance.scale)
    require_numbers(0, 1, guidance_below=guidance.below)
    if guidance.scale == 0:
        return None
    count = num_blocks(card.network)
    if count == 0:
        raise ValueError(f"guidance {guidance.scale} leaves out a transformer block, and these weights have none")
    whole_number("guidance_block", guidance.block, 0, count - 1)
    return guidance
