"""CT slices of any number of series to regular stacks: copies left out, acquisitions told apart."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Callable, Iterable, Iterator, Optional, Sequence, Union

import numpy as np

from .contents import Contents
from .geometry import Incomplete, Series, along, overlap, places, regular_series
from .headers import ACQUISITION_MARK, TIME_MARK, Slice

MIN_SLICES = 8  # fewer are scouts, bolus tracking, key images
_SAME_COSINE, _SAME_SPACING = 1e-3, 1e-3  # of one stack; spacing as a share
_NEAR_COSINE, _NEAR_SPACING = 0.05, 0.05  # more apart is another reconstruction


@dataclass(frozen=True)
class BadSeries:
    """Slices that are no usable series, and why."""

    slices: tuple[Slice, ...]
    reason: str
    incomplete: bool = False  # what is missing is missing from one scan, whatever its tags say


Result = Union[Series, BadSeries]
Stack = Sequence[Slice]


def assemble(slices: Iterable[Slice], min_slices: int = MIN_SLICES) -> list[Result]:
    """Sorts slices of any number of series into regular stacks, and says of the rest what is wrong with it.

    Slices belong together that share patient, series and size, and, but for rounding, orientation and pixel spacing.
    Acquisitions, time points and reconstructions that overlap are told apart.

    Args:
        slices: in any order.
        min_slices: a stack has at least so many.
    """
    every_series = defaultdict(list)
    for item in sorted(slices, key=lambda item: (item.path, item.frame)):
        every_series[item.study, item.series].append(item)
    contents = Contents()
    results: list[Result] = []
    for of_one_uid in every_series.values():
        patients = _by_patient(of_one_uid)
        if len(patients) > 1 and _is_one_scan(patients, min_slices, contents):
            whole = tuple(item for slices in patients for item in slices)
            results.append(BadSeries(whole, f"its slices are one scan, but name {len(patients)} patients"))
            continue
        for of_one_patient in patients:
            for series in _by_folder_if_uids_repeat(of_one_patient):
                results += _assemble_series(series, min_slices, contents)
    return results


def _by_patient(slices: list[Slice]) -> list[list[Slice]]:
    """Slices that name no patient belong to the only one that the others name, or else to whom the study is of."""
    names = {item.patient for item in slices} - {""}
    only = names.pop() if len(names) == 1 else ""
    named = [item if item.patient else replace(item, patient=only or item.study or _folder(item)) for item in slices]
    return _grouped(named, lambda item: item.patient)


def _is_one_scan(parts: list[list[Slice]], min_slices: int, contents: Contents) -> bool:
    """Whether parts lie within each other and are regular together: nobody but the tags takes them for several scans."""
    everything = [item for part in parts for item in part]
    if len(_stacks(everything)) > 1 or not _overlap_any(parts):
        return False
    whole = _attempt(everything, min_slices, contents)
    return isinstance(whole, Series) or whole.incomplete


def _by_folder_if_uids_repeat(slices: list[Slice]) -> list[list[Slice]]:
    """An instance at two places says that several patients got the same UIDs."""
    seen: dict[tuple[str, int], Slice] = {}
    for item in slices:
        other = seen.setdefault((item.instance, item.frame), item)
        if np.abs(np.subtract(item.position, other.position)).max() > 1:
            return _grouped(slices, _folder)
    return [slices]


def _grouped(slices: Iterable[Slice], key: Callable[[Slice], object]) -> list[list[Slice]]:
    groups = defaultdict(list)
    for item in slices:
        groups[key(item)].append(item)
    return list(groups.values())


def _folder(item: Slice) -> str:
    return str(Path(item.path).parent)


# one series: stacks of one orientation, pixel spacing and size


def _assemble_series(slices: list[Slice], min_slices: int, contents: Contents) -> list[Result]:
    results: list[Result] = []
    for neighbours in _neighbouring(_stacks(slices)):
        found = [_tell_apart(stack, min_slices, contents) for stack in neighbours]
        if len(neighbours) > 1 and _is_one_stack(neighbours, found):
            whole = tuple(item for stack in neighbours for item in stack)
            results.append(BadSeries(whole, "orientation or pixel spacing varies from slice to slice"))
        else:
            results += [result for part in found for result in part]
    return _one_for_each_reason(results)


def _alike(a: Slice, b: Slice, cosine: float, spacing: float) -> bool:
    return (
        a.shape == b.shape
        and all(abs(x - y) <= cosine for x, y in zip(a.orientation, b.orientation))
        and all(abs(x - y) <= spacing * x for x, y in zip(a.spacing, b.spacing))
    )


def _stacks(slices: Stack) -> list[list[Slice]]:
    stacks: list[list[Slice]] = []
    for item in slices:
        for stack in stacks:
            if _alike(stack[0], item, _SAME_COSINE, _SAME_SPACING):
                stack.append(item)
                break
        else:
            stacks.append([item])
    return stacks


def _neighbouring(stacks: list[list[Slice]]) -> list[list[list[Slice]]]:
    """Stacks that differ little and lie within each other are together."""
    groups: list[list[list[Slice]]] = []
    for stack in sorted(stacks, key=len, reverse=True):
        for group in groups:
            first = group[0]
            if _alike(first[0], stack[0], _NEAR_COSINE, _NEAR_SPACING) and overlap(*_along_one(first, stack)):
                group.append(stack)
                break
        else:
            groups.append([stack])
    return groups


def _along_one(first: Stack, second: Stack) -> tuple[np.ndarray, np.ndarray]:
    where = along([*first, *second])
    return where[: len(first)], where[len(first) :]


def _is_one_stack(stacks: list[list[Slice]], found: list[list[Result]]) -> bool:
    """Whether several stacks are one whose tags jitter: none is regular alone, or others fill its gaps."""
    good = [result for results in found for result in results if isinstance(result, Series)]
    return not good or any(_is_filled(series, stacks) for series in good)


def _is_filled(series: Series, stacks: list[list[Slice]]) -> bool:
    mine, numbers = set(series.slices), {item.marks[ACQUISITION_MARK] for item in series.slices}
    others = [item for stack in stacks if mine.isdisjoint(stack) for item in stack]
    if not others or (len(numbers) == 1 and numbers.isdisjoint(item.marks[ACQUISITION_MARK] for item in others)):
        return False  # another acquisition, with a plane of its own
    where, between = _along_one(series.slices, others)
    index = np.interp(between, where, np.arange(len(where)))
    inside = index[np.abs(index - np.rint(index)) > 0.1]
    return len(np.unique(np.floor(inside))) > (len(where) - 1) / 2


def _one_for_each_reason(results: list[Result]) -> list[Result]:
    bad = defaultdict(list)
    for result in results:
        if isinstance(result, BadSeries):
            bad[result.reason].append(result)
    merged = [
        BadSeries(
            tuple(item for result in group for item in result.slices),
            reason + (f" ({len(group)} stacks)" if len(group) > 1 else ""),
        )
        for reason, group in bad.items()
    ]
    return [*(result for result in results if isinstance(result, Series)), *merged]


# one stack: its acquisitions


def _tell_apart(stack: Stack, min_slices: int, contents: Contents, level: int = 0) -> list[Result]:
    """One series, or several where tags part what overlaps."""
    whole = _attempt(stack, min_slices, contents)
    if len(stack) < 2 * min_slices:
        return [whole]
    remaining = whole.slices if isinstance(whole, Series) else stack
    for number, split in enumerate(_SPLITS[level:], level + 1):
        parts = split(remaining)
        sizes = sorted(map(len, parts))
        # a slice taken again is no pass, and nobody knows which of the two is right
        no_fragments = isinstance(whole, Series) or number > len(_BY_MARK)
        if len(parts) < 2 or (sizes[0] if no_fragments else sizes[-1]) < min_slices:
            continue
        if not _overlap_any(parts) and (isinstance(whole, Series) or whole.incomplete):
            continue
        found = [result for part in parts for result in _tell_apart(part, min_slices, contents, number)]
        good = [result for result in found if isinstance(result, Series)]
        bad = [result for result in found if isinstance(result, BadSeries)]
        if good and not (bad and isinstance(whole, Series)):
            return _joined(good, min_slices) + _without_fragments(bad, min_slices, contents)
    return [whole]


def _attempt(stack: Stack, min_slices: int, contents: Contents) -> Result:
    try:
        return regular_series(_without_copies(stack, contents), min_slices)
    except ValueError as error:
        return BadSeries(tuple(stack), str(error), isinstance(error, Incomplete))


def _without_copies(stack: Stack, contents: Contents) -> list[Slice]:
    """Leaves one of several slices with the same place and the same instance or the same pixels."""
    together = places(stack)
    trusted = contents.instances_are_copies(together)
    kept = []
    for items in together:
        if trusted:
            items = list({(item.instance, item.frame): item for item in reversed(items)}.values())[::-1]
        if len(items) > 1:
            items = list({contents.of(item): item for item in reversed(items)}.values())[::-1]
        kept += items
    return kept


def _overlap_any(parts: Sequence[Stack]) -> bool:
    """Whether two parts share a stretch or a place along the patient."""
    where = along([item for part in parts for item in part])
    ends = np.split(where, np.cumsum([len(part) for part in parts])[:-1])
    ends.sort(key=lambda part: part.min())
    return any(overlap(below, above) for below, above in zip(ends, ends[1:]))


def _joined(parts: Sequence[Series], min_slices: int) -> list[Result]:
    """Parts that abut and go on regularly are one series."""
    base = parts[0].slices
    joined: list[Series] = []
    for part in sorted(parts, key=lambda part: _along_one(base, part.slices)[1].min()):
        for index, below in enumerate(joined):
            if not overlap(*_along_one(below.slices, part.slices)):
                try:
                    joined[index] = regular_series([*below.slices, *part.slices], min_slices)
                    break
                except ValueError:
                    pass
        else:
            joined.append(part)
    return list(joined)


def _without_fragments(bad: Sequence[BadSeries], min_slices: int, contents: Contents) -> list[Result]:
    """Parts too small to be a series are looked at together: each alone says nothing."""
    fragments = [item for part in bad if len(part.slices) < min_slices for item in part.slices]
    rest: list[Result] = [part for part in bad if len(part.slices) >= min_slices]
    return rest + ([_attempt(fragments, min_slices, contents)] if fragments else [])


# ways to split a stack


def _by_mark(mark: int) -> Callable[[Stack], list[list[Slice]]]:
    return lambda stack: _grouped(stack, lambda item: item.marks[mark])


def _by_pass(mark: int) -> Callable[[Stack], list[list[Slice]]]:
    """By a number that may count or time each slice: where it goes on over places that were passed, a pass begins."""
    return lambda stack: list(_passes(stack, mark))


def _passes(stack: Stack, mark: int) -> Iterator[list[Slice]]:
    moments = defaultdict(list)
    for item in stack:
        moment = _number(item.marks[mark])
        if moment is None:
            yield list(stack)
            return
        moments[moment].append(item)
    current: list[Slice] = []
    low = high = 0.0
    where = dict(zip(map(id, stack), along(stack).tolist()))
    for moment in sorted(moments):
        here = [where[id(item)] for item in moments[moment]]
        if current and overlap(np.array([low, high]), np.array(here)):
            yield current
            current = []
        low, high = (min([*here, low]), max([*here, high])) if current else (min(here), max(here))
        current += moments[moment]
    yield current


def _number(text: str) -> Optional[float]:
    try:
        return float(text)
    except ValueError:
        return None


_BY_MARK = [_by_mark(mark) for mark in range(TIME_MARK + 1)]
_SPLITS = [*_BY_MARK, _by_pass(ACQUISITION_MARK), _by_pass(TIME_MARK), lambda stack: _grouped(stack, _folder)]
