"""Where the slices of a stack lie, and whether they are a regular series."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Sequence

import numpy as np

from ...words import count
from .headers import Slice

MAX_TILT_DEGREES = 0.5  # less is rounding of the tags
_SAME_PLACE_MM = 0.01
_SAME_PLACE_SHARE = 0.1  # of the slices' distance
_MAX_ERROR_SHARE = 0.1  # of the slices' distance, from an even spacing
_MAX_ERROR_MM = 0.05
_MAX_ROUNDING_SHARE = 0.3  # of the slices' distance; a missing slice shifts its neighbours by half of it


@dataclass(frozen=True)
class Series:
    """A regular stack of slices, sorted along the patient."""

    slices: tuple[Slice, ...]

    @cached_property
    def affine(self) -> np.ndarray:
        """RAS affine (4, 4) of the axes slice, row, column; it carries the tilt of the gantry as a shear."""
        first, affine = self.slices[0], np.eye(4)
        affine[:3, 3], affine[:3, 0] = _line(np.array([item.position for item in self.slices]))
        affine[:3, 1] = np.multiply(first.orientation[3:], first.spacing[0])
        affine[:3, 2] = np.multiply(first.orientation[:3], first.spacing[1])
        return np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine

    @property
    def step_mm(self) -> float:
        """Distance of the slices."""
        return float(np.linalg.norm(self.affine[:3, 0]))

    @property
    def tilt_degrees(self) -> float:
        """Angle between the stack's axis and the slices' normal."""
        step = self.affine[:3, 0]
        normal = np.cross(self.affine[:3, 2], self.affine[:3, 1])
        cosine = abs(step @ normal) / (np.linalg.norm(step) * np.linalg.norm(normal))
        return math.degrees(math.acos(min(float(cosine), 1.0)))

    @property
    def warnings(self) -> list[str]:
        """What is odd about it."""
        derived = any(item.derived for item in self.slices)
        return ["ImageType says DERIVED: reformatted or processed images?"] if derived else []


class Incomplete(ValueError):
    """A stack would be a series if slices or tags were not missing."""


def _line(positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """First place and step of the evenly spaced places that are nearest to positions (n, 3), by least squares."""
    index = np.arange(len(positions)) - (len(positions) - 1) / 2
    step = index @ positions / (index @ index)
    return positions.mean(axis=0) + index[0] * step, step


def along(stack: Sequence[Slice]) -> np.ndarray:
    """Position of each slice along the first one's normal, in mm."""
    orientation = np.asarray(stack[0].orientation)
    return np.array([item.position for item in stack]) @ np.cross(orientation[:3], orientation[3:])


def places(stack: Sequence[Slice]) -> list[list[Slice]]:
    """Slices sorted along the patient, those at one place together, in their order."""
    where = along(stack)
    order = np.argsort(where, kind="stable")
    gaps = np.diff(where[order])
    steps = gaps[gaps > _SAME_PLACE_MM]
    # copies whose positions were rounded lie near each other, so more than half of the gaps may be small
    near = max(_SAME_PLACE_MM, _SAME_PLACE_SHARE * float(np.quantile(steps, 0.75)) if len(steps) else 0.0)
    found: list[list[Slice]] = []
    start = -math.inf
    for index in order.tolist():
        if where[index] - start > near:
            found.append([])
            start = where[index]
        found[-1].append(stack[index])
    return found


def overlap(first: np.ndarray, second: np.ndarray) -> bool:
    """Whether two stacks, as places along one normal, share a stretch or a place."""
    return bool(first.min() < second.max() + _SAME_PLACE_MM and second.min() < first.max() + _SAME_PLACE_MM)


def regular_series(stack: Sequence[Slice], min_slices: int) -> Series:
    """Sorts a stack without copies.

    Raises:
        Incomplete: saying where.
        ValueError: with another reason, when it is no regular one.
    """
    if len(stack) < max(min_slices, 2):
        raise ValueError(f"{count(len(stack), 'slice')}, at least {max(min_slices, 2)} are needed")
    directions = np.reshape(stack[0].orientation, (2, 3))
    if not np.allclose(directions @ directions.T, np.eye(2), atol=1e-3):
        raise ValueError("rows and columns have no perpendicular directions of length 1")
    sorted_places = places(stack)
    doubled = [along([stack[0], place[0]])[1] for place in sorted_places if len(place) > 1]
    if doubled:
        many = f"{len(doubled)} places hold" if len(doubled) > 1 else "1 place holds"
        raise ValueError(f"{many} two different slices, at {_listed([f'{place:.1f}' for place in doubled])}")
    series = Series(tuple(place[0] for place in sorted_places))
    _require_even(series)
    tilt, normal_z = stack[0].tilt_tag, abs(np.cross(*directions)[2])
    if abs(tilt) > 1 and series.tilt_degrees < MAX_TILT_DEGREES and normal_z > 0.999:
        raise ValueError(f"GantryDetectorTilt says {tilt:g} degrees, position and orientation say none")
    without = sum(not item.rescaled for item in stack)
    if 0 < without < len(stack):
        raise Incomplete(
            f"{without} of {len(stack)} slices lack RescaleSlope or RescaleIntercept, the others have them"
        )
    return series


def _require_even(series: Series) -> None:
    """Judges each slice by its distance from its place, so that small errors of the steps cannot add up."""
    positions = np.array([item.position for item in series.slices])
    first, step = _line(positions)
    away = positions - first - np.arange(len(positions))[:, None] * step
    normal = np.cross(series.slices[0].orientation[:3], series.slices[0].orientation[3:])
    off = np.abs(away @ normal)
    where = along(series.slices)
    distance = abs(float(step @ normal))
    allowed = max(_MAX_ERROR_SHARE * distance, _MAX_ERROR_MM)
    allowed_along = max(allowed, _rounding_error(positions[:, np.abs(step).argmax()], distance))
    if off.max() > allowed_along:
        raise _describe_gaps(where)
    if np.linalg.norm(away - np.outer(away @ normal, normal), axis=1).max() > allowed:
        raise ValueError("the slices are shifted against each other")


def _rounding_error(coordinates: np.ndarray, distance: float) -> float:
    """Half a unit of the last digit in mm, where rounding of the slices' distance explains errors of their places."""
    digits = next((n for n in range(4) if np.allclose(coordinates, coordinates.round(n), rtol=0, atol=1e-6)), 4)
    unit = 10.0**-digits
    return 0.0 if math.isclose(distance, round(distance, digits)) else min(unit / 2, _MAX_ROUNDING_SHARE * distance)


def _describe_gaps(where: np.ndarray) -> ValueError:
    gaps = np.diff(where)
    distance = float(np.median(gaps))
    slack = 2 * max(_MAX_ERROR_SHARE * distance, _MAX_ERROR_MM)  # both ends may be off
    distance = float(gaps[np.abs(gaps - distance) <= slack].mean())
    uneven = np.flatnonzero(np.abs(gaps - distance) > slack)
    missing = np.rint(gaps[uneven] / distance) - 1
    whole = np.abs(gaps[uneven] - (missing + 1) * distance) <= slack
    if len(uneven) and whole.all() and (missing > 0).all():
        count = int(missing.sum())
        between = _listed([f"{where[i]:.1f} and {where[i + 1]:.1f}" for i in uneven], "; ")
        return Incomplete(f"{count} slice{'s are' if count > 1 else ' is'} missing, between {between}")
    return ValueError(f"spacing varies from {gaps.min():.2f} to {gaps.max():.2f} mm")


def _listed(places: Sequence[str], separator: str = ", ") -> str:
    more = f" and {len(places) - 4} other places" if len(places) > 4 else ""
    return f"{separator.join(places[:4])} mm{more}"
