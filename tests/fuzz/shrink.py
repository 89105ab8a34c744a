"""The smallest case that fails as a random one does."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import fields, replace

from tests.fuzz.form import plainest, possible
from tests.fuzz.program import Case, Outcome, check


def smallest(
    case: Case, outcomes: list[Outcome], kinds: Collection[str]
) -> tuple[Case, list[Outcome]]:
    """Make one choice after another plain as long as an outcome of some kinds remains.

    Args:
        case: a case that fails.
        outcomes: what becomes of it.
        kinds: the kinds of outcomes to keep.
    """
    found = True
    while found:
        found = False
        for smaller in simpler(case):
            now = check(smaller)
            if any(o.kind in kinds for o in now):
                case, outcomes, found = smaller, now, True
                break
    return case, outcomes


def simpler(case: Case) -> Iterator[Case]:
    """Cases in which one thing less is unusual."""
    if len(case.passes) > 1:
        yield from (replace(case, passes=(each,)) for each in case.passes)
    elif len(case.passes[0]) > 1:
        yield from (replace(case, passes=((each,),)) for each in case.passes[0])
    if len(case.shapes) > 1:
        yield from (replace(case, shapes=case.shapes[i : i + 1]) for i in range(len(case.shapes)))
    for name in ("fixed", "warm"):
        if getattr(case, name):
            yield replace(case, **{name: False})
    plain = plainest()
    for field in fields(case.form):
        form = possible(replace(case.form, **{field.name: getattr(plain, field.name)}))
        if form != case.form:
            yield replace(case, form=form)
