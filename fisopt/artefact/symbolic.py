"""Open sizes: one graph for many token grids, found by comparing graphs of a few.

A Program is static: its sizes are numbers.  Flattened on two grids that differ in one size, a
variant whose graphs agree in every operator differs in numbers only.  Each such number is fitted
as a polynomial of frames, height and width, linear in each; the fit is exact at a grid that was
not used for it, or the sizes stay fixed.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from fisopt.artefact.graph import placeholders, results_of
from fisopt.artefact.manifest import SIZES
from fisopt.artefact.numbers import UnfitError, compare, numbers_of
from fisopt.artefact.open_graph import write_sizes
from fisopt.artefact.polynomials import CHECK, fit_text, fitted
from fisopt.artefact.sizes import Roles, grown, product_text, resized, roles_of
from fisopt.artefact.variants import Exports
from fisopt.errors import FisoptError
from fisopt.rewrite.program import BOUNDARIES, Program
from fisopt.rewrite.tracing.inputs import Inputs

Flatten = Callable[[Program], fx.GraphModule]


@dataclass(frozen=True)
class Opened:
    """The variants of an export with their sizes open.

    Attributes:
        modules: the flat graph of each.
        dynamic: for each, dynamic shapes as torch.export takes them; None if all are fixed.
        shapes: sizes of the call's tensors and results by name, expressions where they are open.
        fixed: the sizes that are fixed, each with the reason.
    """

    modules: tuple[fx.GraphModule, ...]
    dynamic: Mapping[str, Any] | None
    shapes: Mapping[str, tuple[int | str, ...]]
    fixed: Mapping[str, str]


def open_sizes(
    exports: Exports,
    at: Callable[[Inputs, int], Program],
    flatten: Flatten,
    wanted: Sequence[str] = SIZES,
    otherwise: str = "not asked for",
) -> Opened:
    """Flatten variants, with as many sizes open as their graphs allow.

    Args:
        exports: what to flatten.
        at: the Program of a variant for inputs of other sizes.
        flatten: makes a flat graph.
        wanted: the sizes to try; the rest are fixed.
        otherwise: why those are.
    """
    program = exports.all[0].program
    count, grid, roles = len(exports.all), program.layout, roles_of(program)
    fixed = {name: otherwise for name in SIZES if name not in wanted}
    if not wanted:
        return Opened(tuple(flatten(v.program) for v in exports.all), None, {}, fixed)
    base = [flatten(at(program.inputs, i)) for i in range(count)]
    told = {
        names[0] for places in roles.values() for _, names in places.values() if len(names) == 1
    }

    def graphs(steps: Mapping[str, int]) -> list[fx.GraphModule]:
        other = grown(grid, steps)
        inputs = resized(program.inputs, roles, other)
        if program.source.grid_of(inputs.kwargs()) != (other.frames, other.height, other.width):
            raise UnfitError("the model gets its sizes as numbers")
        made = [flatten(at(inputs, i)) for i in range(count)]
        for one, two in zip(base, made, strict=True):
            compare(one, two)
        return made

    points: dict[frozenset[str], list[fx.GraphModule]] = {frozenset(): base}
    for name in (n for n in SIZES if n not in fixed):
        if name not in told:
            fixed[name] = "no dimension of the inputs gives it"
        elif grid.frames <= BOUNDARIES:
            fixed[name] = f"with {grid.frames} latent frames no axis is known"
        else:
            try:
                points[frozenset([name])] = graphs({name: 1})
            except (UnfitError, FisoptError) as error:
                fixed[name] = str(error).splitlines()[0]
    names = tuple(n for n in SIZES if n not in fixed)
    if not names:
        return Opened(tuple(base), None, {}, fixed)
    try:
        for subset in (frozenset(c) for k in (2, 3) for c in itertools.combinations(names, k)):
            points[subset] = graphs(dict.fromkeys(subset, 1))
        check = graphs({name: CHECK[name] for name in names})
        shapes = _result_shapes(points, check, names, program)
        for i, module in enumerate(base):
            numbers = {subset: numbers_of(made[i]) for subset, made in points.items()}
            fits = fitted(numbers, numbers_of(check[i]), names, grid)
            write_sizes(module, fits, names, roles, program)
    except (UnfitError, FisoptError) as error:
        reason = str(error).splitlines()[0]
        base = [flatten(v.program) for v in exports.all]
        return Opened(tuple(base), None, {}, fixed | dict.fromkeys(names, reason))
    shapes |= _shapes(program, roles, names)
    return Opened(tuple(base), _dynamic(program, roles, names), shapes, fixed)


def _dynamic(program: Program, roles: Roles, names: Sequence[str]) -> dict[str, Any]:
    """Dynamic shapes for torch.export: every open dimension, by input name; ranges are inferred."""
    result: dict[str, Any] = {
        holder.name: {
            dim: torch.export.Dim.AUTO
            for dim, (_, of) in roles.get(leaf, {}).items()
            if set(of) & set(names)
        }
        or None
        for holder, leaf in _inputs(program)
    }
    return result


def _shapes(
    program: Program, roles: Roles, names: Sequence[str]
) -> dict[str, tuple[int | str, ...]]:
    """Sizes of the inputs by name, with the names of those that are open."""
    grid = program.layout
    result: dict[str, tuple[int | str, ...]] = {}
    for holder, leaf in _inputs(program):
        shape: list[int | str] = [int(s) for s in holder.meta["val"].shape]
        for dim, (factor, of) in roles.get(leaf, {}).items():
            free = tuple(n for n in of if n in names)
            bound = math.prod((getattr(grid, n) for n in of if n not in names), start=factor)
            if free:
                shape[dim] = product_text((bound, free))
        result[holder.name] = tuple(shape)
    return result


def _result_shapes(
    points: Mapping[frozenset[str], Sequence[fx.GraphModule]],
    check: Sequence[fx.GraphModule],
    names: Sequence[str],
    program: Program,
) -> dict[str, tuple[int | str, ...]]:
    """Sizes of the results by name, as sums of products of the open sizes.

    Raises:
        UnfitError: a size is no such sum.
    """

    def sizes(module: fx.GraphModule) -> dict[str, tuple[int, ...]]:
        held = results_of(program, module.graph)
        return {name: tuple(map(int, node.meta["val"].shape)) for name, node in held.items()}

    def numbers(modules: Sequence[fx.GraphModule]) -> list[int]:
        return list(itertools.chain(*sizes(modules[0]).values()))

    at = {subset: numbers(made) for subset, made in points.items()}
    fits = iter(fitted(at, numbers(check), names, program.layout))
    return {
        name: tuple(size if (fit := next(fits)) is None else fit_text(fit) for size in shape)
        for name, shape in sizes(points[frozenset()][0]).items()
    }


def _inputs(program: Program) -> Iterator[tuple[fx.Node, int]]:
    """The tensors of the call with the leaves that they are; state comes after them."""
    leaves = [i for i, _ in program.inputs.tensors()]
    return zip(placeholders(program)[: len(leaves)], leaves, strict=True)
