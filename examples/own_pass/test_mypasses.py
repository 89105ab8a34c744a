"""The pass against an oracle that knows nothing of it: hooks on a model's own layers.

python -m pytest examples/own_pass
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from mypasses import SkipCross
from torch import nn

import fisopt
from fisopt.testing import check_pass, zoo


def without_cross(model: nn.Module, blocks: Sequence[nn.Module], inputs: Mapping[str, Any]) -> Any:
    """Blocks 1 and 2 add nothing of the text."""
    for block in blocks[1:3]:
        block.attn2.register_forward_hook(lambda layer, given, result: 0 * result)
    return model(**inputs)


def test_it_does_what_hooks_do() -> None:
    found = check_pass(SkipCross(blocks="1:3"), without_cross, models=["wan"])
    assert found["wan"].notes == ("2 blocks without cross-attention",)


def test_a_model_without_cross_attention_is_refused() -> None:
    program = zoo()["cogvideox_5b"].captured(5, 3, 4, batch=2)
    with pytest.raises(fisopt.PassError, match="no cross-attention"):
        SkipCross()(program)
