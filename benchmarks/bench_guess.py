"""What a guess alone makes of the models that have adapters: the same blocks and grids, or why not.

    python benchmarks/bench_guess.py

Tiny models of every form that an adapter knows.  `fisopt.models.guess` sees the arguments of one
call and the model, not the adapter.  It reads a form correctly if it names the adapter's blocks,
and the adapter's grid for that call and for another of more frames, rows and columns.
"""

from __future__ import annotations

import warnings
from typing import Any

from harness import machine, write

import fisopt
from fisopt.testing.zoo import Case, zoo

GRIDS = ((5, 3, 4), (7, 4, 3))


def measure(case: Case) -> dict[str, Any]:
    """Guess one form from a call, and compare it with its adapter."""
    row = {"form": case.name, "class": case.family.transformer.__name__}
    try:
        found = fisopt.models.guess(case.model_for(GRIDS[0][0]), case.inputs(*GRIDS[0]))
        grids = [found.spec.grid_of(case.inputs(*grid)) for grid in GRIDS]
    except fisopt.FisoptError as error:
        return row | {"reads": "nothing", "why": str(error).splitlines()[0]}
    spec = case.spec
    if set(found.spec.blocks) != set(spec.blocks):
        why = f"blocks {list(found.spec.blocks)}, the adapter has {list(spec.blocks)}"
        return row | {"reads": "other blocks", "why": why}
    wanted = [spec.grid_of(case.inputs(*grid)) for grid in GRIDS]
    if grids != wanted:
        return row | {"reads": "another grid", "why": f"{grids}, the adapter says {wanted}"}
    return row | {"reads": "the same", "why": found.why}


def main() -> None:
    warnings.simplefilter("ignore")
    rows = []
    for case in zoo().values():
        rows.append(measure(case))
        print(rows[-1], flush=True)
    classes = {row["class"] for row in rows}
    same = {c for c in classes if all(r["reads"] == "the same" for r in rows if r["class"] == c)}
    share = {"classes": len(classes), "read_as_the_adapter_says": len(same)}
    print(share)
    write("guess", {"machine": machine(), "share": share, "rows": rows})


if __name__ == "__main__":
    main()
