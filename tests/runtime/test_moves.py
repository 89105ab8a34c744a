"""An optimised module that is moved: between dtypes here, between devices alike."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils import _pytree as pytree

import fisopt
from fisopt import FrameInterleave, ModelSpec
from fisopt.runtime import captures
from tests import plain_dit

GRID = (4, 2, 2)


def test_what_was_made_serves_when_the_model_is_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """As under offloading, which moves the model away after every generation."""
    made: list[torch.dtype] = []
    real = captures.capture

    def counted(model: Any, *more: Any) -> Any:
        made.append(next(model.parameters()).dtype)
        return real(model, *more)

    monkeypatch.setattr(captures, "capture", counted)
    form = plain_dit.FORMS["fused"]
    model, inputs = plain_dit.build(form), plain_dit.inputs(form, *GRID)
    spec = ModelSpec(blocks=("layers.*",), grid=GRID)
    fast = fisopt.optimize(model, [FrameInterleave(stride=2)], inputs, spec=spec, backend="eager")

    def run(call: dict[str, Any]) -> torch.Tensor:
        result: torch.Tensor = pytree.tree_leaves(fast(**call))[0]
        return result

    first = run(inputs)
    wide = {
        name: x.double() if isinstance(x, torch.Tensor) and x.is_floating_point() else x
        for name, x in inputs.items()
    }
    for _ in range(2):
        fast.to(torch.float64)
        moved = run(wide)
        assert moved.dtype == torch.float64
        torch.testing.assert_close(moved.float(), first, atol=1e-5, rtol=1e-5)
        fast.to(torch.float32)
        assert torch.equal(run(inputs), first)
    assert made == [torch.float32, torch.float64]
    assert len(fast.report.variants) == 2
