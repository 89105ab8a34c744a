"""A pytest plugin: every video transformer is optimised as its pipeline is made.

The variable FISOPT_SUITE is ``plain`` or ``optimised``; FISOPT_SUITE_ROWS is the file that takes
what became of each test.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from functools import wraps
from pathlib import Path
from typing import Any

import pytest
from diffusers import DiffusionPipeline

import fisopt
from fisopt.errors import FisoptError
from fisopt.pipelines import COMPONENTS

OPTIMISED = os.environ["FISOPT_SUITE"] == "optimised"
ROWS = Path(os.environ["FISOPT_SUITE_ROWS"])
BLOCKS = {
    "WanVACETransformer3DModel": ("blocks.*", "vace_blocks.*"),
    "WanAnimateTransformer3DModel": ("blocks.*",),
    "HunyuanVideoFramepackTransformer3DModel": (
        "transformer_blocks.*",
        "single_transformer_blocks.*",
    ),
}
"""Models without an adapter, by class."""
register_modules = DiffusionPipeline.register_modules


@wraps(register_modules)
def register_and_optimise(pipeline: Any, **parts: Any) -> None:
    """What every pipeline calls when it is made, and loaded; the parts of tests are in training."""
    register_modules(pipeline, **parts)
    held = {name: parts[name] for name in COMPONENTS if parts.get(name) is not None}
    for transformer in held.values():
        transformer.eval()
    if held and OPTIMISED:
        spec = _spec(next(iter(held.values())))
        fisopt.optimize(pipeline, dict.fromkeys(held, ()), spec=spec, backend="eager")


def _spec(transformer: Any) -> fisopt.ModelSpec | None:
    """Where the blocks of a model without an adapter are, and its tokens; None of a known one."""
    blocks = BLOCKS.get(type(transformer).__name__)
    if blocks is None:
        return None
    patch = transformer.config.patch_size
    frames, rows, columns = patch if isinstance(patch, (tuple, list)) else (1, patch, patch)

    def grid(call: dict[str, Any]) -> tuple[int, int, int]:
        f, h, w = call["hidden_states"].shape[2:]
        return f // frames, h // rows, w // columns

    return fisopt.ModelSpec(blocks=blocks, grid=grid)


DiffusionPipeline.register_modules = register_and_optimise


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """Keep what became of a test: the error, and the error of fisopt that it comes from."""
    report: Any = yield
    if report.when == "call" or report.outcome != "passed":
        errors = list(_chain(call.excinfo.value)) if call.excinfo else []
        refusals = [error for error in errors if isinstance(error, FisoptError)]
        row = {
            "test": item.nodeid,
            "outcome": report.outcome,
            "error": _said(errors[0]) if errors else None,
            "refusal": _said(refusals[-1]) if refusals else None,
        }
        with ROWS.open("a") as file:
            file.write(json.dumps(row) + "\n")
    return report


def _said(error: BaseException) -> str:
    """What an error says, files by their names alone."""
    return re.sub(r"/\S*/(?=[^\s/]+\.py\b)", "", f"{type(error).__name__}: {error}")


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error, what it was raised from, and so on."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
