"""Index expressions: whatever is simplified, the values stay the same."""

from __future__ import annotations

from itertools import product

from hypothesis import given
from hypothesis import strategies as st

from fisopt.codegen.emit.index import (
    Div,
    Index,
    Mod,
    Range,
    Var,
    bounds,
    constant,
    flatten,
    floor_div,
    modulo,
    unflatten,
    variable,
)

ROW, COLUMN = Var("i", 6, "row"), Var("c", 24, "column")


def evaluate(index: Index, at: dict[Var, int]) -> int:
    total = index.const
    for atom, factor in index.terms:
        if isinstance(atom, Var):
            total += factor * at[atom]
        elif isinstance(atom, Div):
            total += factor * (evaluate(atom.of, at) // atom.by)
        else:
            assert isinstance(atom, Mod)
            total += factor * (evaluate(atom.of, at) % atom.by)
    return total


def every_place() -> list[dict[Var, int]]:
    return [{ROW: i, COLUMN: c} for i, c in product(range(ROW.size), range(COLUMN.size))]


steps = st.one_of(
    st.tuples(st.just("add"), st.integers(-30, 30)),
    st.tuples(st.just("times"), st.integers(0, 8)),
    st.tuples(st.just("div"), st.integers(1, 24)),
    st.tuples(st.just("mod"), st.integers(1, 24)),
    st.tuples(st.just("row"), st.integers(0, 24)),
)


@given(st.lists(steps, max_size=6))
def test_simplified_indices_keep_their_values(chain: list[tuple[str, int]]) -> None:
    index = variable(COLUMN)
    plain = [at[COLUMN] for at in every_place()]
    for what, number in chain:
        if what == "add":
            index, plain = index + number, [x + number for x in plain]
        elif what == "times":
            index, plain = index * number, [x * number for x in plain]
        elif what == "div":
            index, plain = floor_div(index, number), [x // number for x in plain]
        elif what == "mod":
            index, plain = modulo(index, number), [x % number for x in plain]
        else:
            index = index + variable(ROW) * number
            plain = [x + at[ROW] * number for x, at in zip(plain, every_place(), strict=True)]
    assert [evaluate(index, at) for at in every_place()] == plain
    low, high = bounds(index)
    assert low <= min(plain)
    assert max(plain) <= high


def test_a_reshape_and_back_is_nothing() -> None:
    """Heads split off a row and put together again are the row."""
    coords = (variable(ROW), variable(COLUMN))
    heads = unflatten(flatten(coords, (6, 24)), (6, 2, 6, 2))
    assert unflatten(flatten(heads, (6, 2, 6, 2)), (6, 24)) == coords


def test_guards_narrow_bounds() -> None:
    row = variable(ROW)
    behind = (Range(row, 2, 6),)
    assert bounds(row + -2, behind) == (0, 3)
    assert modulo(row + -2, 4, behind) == row + -2
    assert modulo(row + -2, 4) != row + -2
    assert variable(Var("one", 1, "row")) == constant(0)
