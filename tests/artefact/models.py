"""Optimised plain models to export; each form is captured once a process."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

import fisopt
from fisopt import ModelSpec, OptimizedModule, Pass
from fisopt.runtime import captures
from tests import plain_dit
from tests.conftest import plain_captured
from tests.plain_dit import FORMS

GRID = (5, 2, 3)


def plain(
    monkeypatch: pytest.MonkeyPatch, passes: Sequence[Pass], form: str = "text_in_front"
) -> tuple[OptimizedModule, dict[str, Any]]:
    """A plain model with some passes, and the inputs of a call."""
    model, program = plain_captured(FORMS[form])
    monkeypatch.setattr(captures, "capture", lambda *_: program)
    inputs = plain_dit.inputs(FORMS[form], *GRID, batch=2)
    spec = ModelSpec(blocks=("layers.*",), grid=GRID)
    made: OptimizedModule = fisopt.optimize(model, passes, inputs, spec, "eager")
    return made, inputs
