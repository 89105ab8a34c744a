"""Which tiny models of `fisopt.testing` the tests sweep over."""

from __future__ import annotations

from functools import cache

import pytest

from fisopt.testing.zoo import KINDS, Case
from fisopt.testing.zoo import zoo as forms

__all__ = ["KINDS", "Case", "cases", "forms", "newer", "zoo"]

LOOPED = {
    "allegro",
    "cogvideox",
    "hunyuan_video",
    "hunyuan_video15",
    "latte",
    "ltx",
    "mochi",
    "wan",
}
"""Families whose blocks `tests.passes.loop` has words for; every sweep runs over them."""


@cache
def zoo() -> dict[str, Case]:
    """The forms of these families: of every structure that there is."""
    return {name: case for name, case in forms().items() if case.family.name in LOOPED}


@cache
def newer() -> dict[str, Case]:
    """The other forms, which meet each pass once; see `tests/models/test_newer_families.py`."""
    return {name: case for name, case in forms().items() if name not in zoo()}


def cases(*names: str) -> pytest.MarkDecorator:
    """A ``case`` of every model; those that are not named, or of a kind of their own, are slow."""
    wanted = names or KINDS
    marks = {name: () if name in wanted else (pytest.mark.slow,) for name in zoo()}
    params = [pytest.param(zoo()[name], id=name, marks=marks[name]) for name in zoo()]
    return pytest.mark.parametrize("case", params)
