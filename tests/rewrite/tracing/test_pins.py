"""An attention that is bound to a kernel: a graph does not keep that, and says so."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from tests.runtime.pairs import Layer, Pair


class Bound(Layer):
    kernels: Any = SDPBackend.MATH

    def forward(self, x: Tensor) -> Tensor:
        with sdpa_kernel(self.kernels):
            return super().forward(x)


@pytest.mark.parametrize(
    ("kernels", "said"),
    [
        (SDPBackend.MATH, "math"),
        ([SDPBackend.FLASH_ATTENTION, SDPBackend.MATH], "flash or math"),
    ],
)
def test_a_kernel_that_is_bound_is_a_line(kernels: Any, said: str) -> None:
    pair = Pair()
    layer: Any = pair.model.layers[1]
    layer.__class__, layer.kernels = Bound, kernels
    with pytest.warns(UserWarning, match="attention is bound to a kernel"):
        pair.check(changed=False)
    assert f"capture: attention is bound to a kernel ({said}: sdpa_kernel" in str(pair.fast.report)


def test_a_choice_around_the_model_is_no_line() -> None:
    pair = Pair()
    with sdpa_kernel(SDPBackend.MATH):
        pair.check(changed=False)
    assert "bound to a kernel" not in str(pair.fast.report)
    assert torch.backends.cuda.flash_sdp_enabled()
