"""Numbers as polynomials of frames, height and width, linear in each."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence

from fisopt.artefact.manifest import SIZES
from fisopt.artefact.numbers import UnfitError
from fisopt.artefact.sizes import product_text
from fisopt.rewrite.axes import TokenLayout

CHECK = {"frames": 2, "height": 3, "width": 2}
"""How much larger the sizes of the grid are on which a fit is checked."""
Polynomial = dict[tuple[str, ...], int]
"""Products of sizes -> their factors; the empty product is the constant."""


def fitted(
    points: Mapping[frozenset[str], Sequence[int]],
    check: Sequence[int],
    names: Sequence[str],
    grid: TokenLayout,
) -> list[Polynomial | None]:
    """Each number as a polynomial of the open sizes; None where it is always the same.

    Raises:
        UnfitError: a fit misses the grid that it is checked on.
    """
    here = {name: getattr(grid, name) for name in names}
    there = {name: here[name] + CHECK[name] for name in names}
    result: list[Polynomial | None] = []
    for i, seen in enumerate(check):
        values = {subset: numbers[i] for subset, numbers in points.items()}
        if len({*values.values(), seen}) == 1:
            result.append(None)
            continue
        fit = _fit(values, here)
        if value_at(fit, there) != seen:
            raise UnfitError(
                f"a number of the graph ({values[frozenset()]}) is no product of sizes"
            )
        result.append(fit)
    return result


def _fit(values: Mapping[frozenset[str], int], here: Mapping[str, int]) -> Polynomial:
    """The polynomial through values at the corners of a unit cube of sizes that starts here."""
    result: Polynomial = {}
    for corner in values:
        factor = sum(
            (-1) ** (len(corner) - len(below)) * value
            for below, value in values.items()
            if below <= corner
        )
        for kept in _subsets(sorted(corner, key=SIZES.index)):  # expand the product of (x - here)
            rest = math.prod(-here[name] for name in corner if name not in kept)
            result[kept] = result.get(kept, 0) + factor * rest
    return {names: factor for names, factor in result.items() if factor}


def _subsets(names: Sequence[str]) -> Iterator[tuple[str, ...]]:
    for k in range(len(names) + 1):
        yield from itertools.combinations(names, k)


def value_at(fit: Polynomial, sizes: Mapping[str, int]) -> int:
    """The value of a polynomial."""
    return sum(math.prod((sizes[n] for n in names), start=f) for names, f in fit.items())


def fit_text(fit: Polynomial) -> str:
    """A polynomial as signatures show it."""
    return " + ".join(product_text((factor, names)) for names, factor in fit.items())
