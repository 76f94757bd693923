"""The number that ranks samplers: each of its parts sees what it is for, and phantoms are near 0."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))
from quality import DISTANCE, PARTS, Scale, phantoms  # noqa: E402

GRID, SIZE_MM = [24, 24, 24], 320.0


@pytest.fixture(scope="module")
def scale():
    return Scale(16, 8, GRID, SIZE_MM)


@pytest.fixture(scope="module")
def volumes():
    return phantoms(8, GRID, SIZE_MM, 77_000)


def numbers(scale, volumes):
    return {name: one.value for name, one in scale.measure(volumes).items()}


def test_other_phantoms_are_near_the_floor(scale, volumes):
    floor, found = scale.floor[DISTANCE], numbers(scale, volumes)
    assert found[DISTANCE] == pytest.approx(sum(found[part] for part in PARTS) / len(PARTS))
    assert 0 < floor.low <= floor.value <= floor.high and found[DISTANCE] < 1.5 * floor.high


def test_volumes_that_share_a_chest_are_told_by_diversity_and_spread(scale, volumes):
    """Which the number before did not see: HU may fit as well as before."""
    plain = numbers(scale, volumes)
    alike = numbers(scale, volumes[:1] + 0.3 * (volumes - volumes[:1]))
    assert alike["diversity"] > plain["diversity"] + 0.7
    assert alike["spread"] > plain["spread"] + 0.3
    assert alike[DISTANCE] > plain[DISTANCE] + 0.2


def test_hu_that_are_off_are_told_by_their_part(scale, volumes):
    plain, shifted = numbers(scale, volumes), numbers(scale, (volumes + 30).clip(-1000, 1000))
    assert shifted["HU"] > plain["HU"] + 0.5
    assert shifted["diversity"] == pytest.approx(plain["diversity"], abs=0.05)
