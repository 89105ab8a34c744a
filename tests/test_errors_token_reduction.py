"""Bad input of TokenReduction: errors that say where, what was got and what was wanted."""

from __future__ import annotations

from typing import Any

import pytest

from fisopt import PreconditionError, Program, TokenReduction
from fisopt.passes.token_reduction import Reduction


@pytest.mark.parametrize("feature", ["query", "value"])
@pytest.mark.parametrize("ratio", [-0.1, 1, 1.5, "0.5", True, float("nan")])
def test_ratio(feature: str, ratio: Any) -> None:
    with pytest.raises(
        ValueError, match=rf"{feature} is the dropped share and must be in \[0, 1\)"
    ):
        TokenReduction(**{feature: ratio})


@pytest.mark.parametrize("stride", [(2, 2), (2, 0, 2), (2, 2.0, 2), (2, 2, 2, 2)])
def test_stride_is_no_cell(stride: Any) -> None:
    with pytest.raises(ValueError, match="destination_stride must be three ints of at least 1"):
        TokenReduction(destination_stride=stride)


def test_stride_leaves_no_destination(wan: Program) -> None:
    with pytest.raises(PreconditionError) as error:
        TokenReduction(query=0.5, destination_stride=(6, 2, 2))(wan)
    text = str(error.value)
    assert "[TokenReduction]: could not be applied to blocks.0" in text
    assert "destination_stride=(6, 2, 2) leaves no destination on its 5x3x4 tokens" in text
    assert "use at most (5, 3, 4)" in text
    result = TokenReduction(query=0.5, destination_stride=(6, 2, 2))(wan, strict=False)
    assert not result.modified
    assert len(result.skipped) == len(wan.blocks)


@pytest.mark.parametrize("steps", [0, -1, 1.0, True])
def test_cache_steps(steps: Any) -> None:
    with pytest.raises(ValueError, match="cache_steps must be an int of at least 1"):
        TokenReduction(cache_steps=steps)


def test_mode_search_and_seed() -> None:
    with pytest.raises(ValueError, match=r"mode must be one of \['replace', 'mean'\], got 'sum'"):
        TokenReduction(mode="sum")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"search must be one of \['all', 'near'\], got 'neer'"):
        TokenReduction(search="neer")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"seed must be an int, got 1\.5"):
        TokenReduction(seed=1.5)  # type: ignore[arg-type]


@pytest.mark.parametrize("redraw", [0, 1, "yes", 0.0])
def test_redraw(redraw: Any) -> None:
    with pytest.raises(ValueError, match="redraw must be True or False, got"):
        TokenReduction(redraw=redraw)


def test_ratios_of_too_few_blocks(wan: Program) -> None:
    step = Reduction((0.5, 0.5), 0.0, (2, 2, 2), "replace", 0)
    with pytest.raises(PreconditionError, match=r"given for 2 blocks, the model has 4 video"):
        step(wan)
