"""bitsandbytes: four-bit weights stay packed, in sparse blocks too, with adapters over them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from fisopt import FrameInterleave, InputError
from tests.runtime.pipes import Both, Change, clip, load, looped, strengths, transformer

bnb = pytest.importorskip("bitsandbytes")


@pytest.fixture(autouse=True)
def _as_stored(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some processors have a packing of their own, which the first call on them makes."""
    monkeypatch.setattr(bnb.nn.modules, "has_avx512bf16", lambda: False, raising=False)


def packed(layer: nn.Linear, bits: int, nested: bool = False) -> nn.Linear:
    """A layer as the loader of diffusers makes it."""
    form: Any = bnb.nn.Linear4bit if bits == 4 else bnb.nn.Linear8bitLt
    sizes = layer.in_features, layer.out_features
    if bits == 4:
        made = form(*sizes, compute_dtype=torch.float32, quant_type="nf4")
        made.weight = bnb.nn.Params4bit(
            layer.weight.data, requires_grad=False, quant_type="nf4", compress_statistics=nested
        )
    else:
        made = form(*sizes, has_fp16_weights=False)
        made.weight = bnb.nn.Int8Params(layer.weight.data, requires_grad=False)
    made.bias = layer.bias
    return made.to("cpu").eval().requires_grad_(False)  # type: ignore[no-any-return]


def pack(bits: int, nested: bool = False) -> Change:
    def change(pipe: Any) -> None:
        for block in pipe.transformer.blocks:
            for name, layer in list(block.named_children()):
                setattr(block, name, packed(layer, bits, nested))

    return change


@pytest.mark.parametrize("nested", [False, True])
def test_four_bits_are_sparse_and_equal_the_loop(nested: bool) -> None:
    both = Both(pack(4, nested), passes=[FrameInterleave(stride=2, blocks=":")])
    want = looped(both.plain, 2, 5)
    torch.testing.assert_close(clip(both.fast, 5), want, rtol=0, atol=1e-5)
    assert both.fast.transformer.report.variants[0].density < 0.8
    assert not torch.allclose(clip(both.plain, 5), want, atol=1e-3)


def test_packed_after_other_weights_and_adapters(captured: Any) -> None:
    both = Both()
    clips = [both.check()]

    def other(pipe: Any) -> None:
        layer = packed(transformer(seed=3).blocks[0].ffn, 4)
        pipe.transformer.blocks[0].ffn.weight = layer.weight

    counts = []
    for change in (pack(4), other, load(0, "a"), strengths(0.25)):
        both.do(change)
        clips.append(both.check())
        counts.append(len(captured))
    assert counts == [2, 2, 3, 3]
    assert not any(torch.equal(clips[i], clips[i + 1]) for i in range(4))


def test_eight_bits_are_refused_by_name() -> None:
    with pytest.raises(InputError, match=r"blocks\.0\.to_q holds 'weight', a bitsandbytes"):
        Both(pack(8))


def test_weights_packed_for_one_processor_are_refused_by_name() -> None:
    def pack_anew(pipe: Any) -> None:
        pipe.transformer.blocks[0].to_q.weight.quant_state.packing_format_for_cpu = True

    with pytest.raises(InputError, match=r"blocks\.0\.to_q holds 'weight', a bitsandbytes"):
        Both(pack(4), pack_anew)
