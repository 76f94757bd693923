"""Layer-skip guidance: away from what the network would predict without one of its transformer blocks."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Optional

from ..settings import require_numbers, whole_number

if TYPE_CHECKING:
    from ..schedulers import DiffusionProcess


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

    def weights(self, scheduler: DiffusionProcess) -> list[float]:
        """w at each of the scheduler's times."""
        return [self.scale if scheduler.position(t) < self.below else 0.0 for t in scheduler.timesteps.tolist()]


def num_blocks(network: dict) -> int:
    """Transformer blocks of a network, from its settings; of a chain those of the lowest grid."""
    return num_blocks(network["backbone"]) if "backbone" in network else network["depth"]


def guidance_of(
    settings: dict, scale: Optional[float] = None, block: Optional[int] = None, below: Optional[float] = None
) -> Optional[Guidance]:
    """What the user asks for; what is None is as the JSON beside the weights recommends, or as in `Guidance`.

    Args:
        settings: the JSON beside the weights.
        scale: see `Guidance`.
        block: likewise.
        below: likewise.

    Returns:
        None where there is no guidance.

    Raises:
        ValueError: in one line, when a number is out of range, or the network has no such block.
    """
    given = {"scale": scale, "block": block, "below": below}
    given = {name: value for name, value in given.items() if value is not None}
    try:
        guidance = Guidance(**{**settings.get("guidance", {}), **given})
    except TypeError:
        raise ValueError(f"the weights' JSON describes no guidance: {settings['guidance']}") from None
    require_numbers(0, guidance=guidance.scale)
    require_numbers(0, 1, guidance_below=guidance.below)
    if guidance.scale == 0:
        return None
    count = num_blocks(settings["network"])
    if count == 0:
        raise ValueError(f"guidance {guidance.scale} leaves out a transformer block, and these weights have none")
    whole_number("guidance_block", guidance.block, 0, count - 1)
    return guidance
