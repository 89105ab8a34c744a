"""Every operator that can be emitted: importing this fills the tables of `rules`."""

from __future__ import annotations

from fisopt.codegen.emit import moves, norms, pointwise  # noqa: F401 - each registers its rules
from fisopt.codegen.emit.rules import MOVES, PIECES, REDUCTIONS, RULES, VIEWS

__all__ = ["MOVES", "PIECES", "REDUCTIONS", "RULES", "VIEWS"]
