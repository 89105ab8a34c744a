"""Optimised plain models to export; each form is captured once a process."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import fisopt
from fisopt import OptimizedModule, Pass
from tests import plain_dit
from tests.conftest import plain_captured
from tests.plain_dit import FORMS

GRID = (5, 2, 3)


def plain(
    passes: Sequence[Pass], form: str = "text_in_front"
) -> tuple[OptimizedModule, dict[str, Any]]:
    """A plain model with some passes, and the inputs of a call."""
    program = plain_captured(FORMS[form])[1]
    inputs = plain_dit.inputs(FORMS[form], *GRID, batch=2)
    made: OptimizedModule = fisopt.optimize(program, passes, inputs, backend="eager")
    return made, inputs
