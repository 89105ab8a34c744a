"""GGUF: packed weights stay packed, in sparse blocks too, with adapters over them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from fisopt import FrameInterleave, InputError
from fisopt.rewrite.tools.plain import plain
from tests.runtime.pipes import Both, Change, clip, load, looped, strengths, transformer

gguf = pytest.importorskip("gguf")
from diffusers.quantizers.gguf import utils  # noqa: E402 - it imports gguf

import fisopt.rewrite.tools.gguf  # noqa: E402, F401 - declares the operator


def pack(kind: str) -> Change:
    """Pack the linears of the blocks in place, by what the loader of diffusers makes them with."""

    def change(pipe: Any) -> None:
        pack_model(pipe.transformer, kind)

    return change


def pack_model(model: Any, kind: str) -> Any:
    form, blocks = gguf.GGMLQuantizationType[kind], model.blocks
    layers = {path: x for path, x in blocks.named_modules() if isinstance(x, nn.Linear)}
    packed = {
        f"{path}.weight": utils.GGUFParameter(
            torch.from_numpy(gguf.quants.quantize(layer.weight.numpy(), form)), quant_type=form
        )
        for path, layer in layers.items()
    }
    utils._replace_with_gguf_linear(blocks, torch.float32, packed)
    for path, layer in layers.items():
        made = blocks.get_submodule(path)
        made.weight, made.bias = packed[f"{path}.weight"], layer.bias
    return model.eval()


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0"])
def test_packed_weights_are_sparse_and_equal_the_loop(kind: str) -> None:
    both = Both(pack(kind), passes=[FrameInterleave(stride=2, blocks=":")])
    want = looped(both.plain, 2, 5)
    torch.testing.assert_close(clip(both.fast, 5), want, rtol=0, atol=1e-5)
    assert both.fast.transformer.report.variants[0].density < 0.75
    assert not torch.allclose(clip(both.plain, 5), want, atol=1e-3)


@pytest.mark.parametrize("kind", utils.SUPPORTED_GGUF_QUANT_TYPES, ids=str)
def test_every_type_is_unpacked_as_diffusers_does(kind: Any) -> None:
    size = utils.GGML_QUANT_SIZES[kind][1]
    packed = torch.randint(256, (3, 2 * size), dtype=torch.uint8)
    want = utils.dequantize_gguf_tensor(utils.GGUFParameter(packed, quant_type=kind))
    unpack = torch.ops.fisopt.unpack_gguf.default
    torch.testing.assert_close(unpack(packed, int(kind)), want, rtol=0, atol=0, equal_nan=True)
    torch.library.opcheck(unpack, (packed, int(kind)), test_utils="test_faketensor")


def test_the_bytes_are_one_tensor_until_they_are_written() -> None:
    weight = utils.GGUFParameter(
        torch.zeros(2, 34, dtype=torch.uint8), quant_type=gguf.GGMLQuantizationType.Q8_0
    )
    stored = plain(weight)
    assert type(stored) is torch.Tensor
    assert plain(weight) is stored
    stored.data = stored.data.clone()  # as pinning does
    assert plain(weight) is stored
    weight.copy_(torch.ones(2, 34, dtype=torch.uint8))
    assert plain(weight) is not stored
    assert plain(weight).all()


def test_other_weights_other_forms_and_adapters(captured: Any) -> None:
    both = Both()
    clips = [both.check()]

    def other(kind: str) -> Change:
        layer = pack_model(transformer(seed=3), kind).blocks[0].ffn
        return lambda pipe: setattr(pipe.transformer.blocks[0].ffn, "weight", layer.weight)

    counts = []
    for change in (pack("Q8_0"), other("Q8_0"), other("Q4_0"), load(0, "a"), strengths(0.25)):
        both.do(change)
        clips.append(both.check())
        counts.append(len(captured))
    assert counts == [2, 2, 3, 4, 4]
    assert not any(torch.equal(clips[i], clips[i + 1]) for i in range(5))


def test_packed_weights_elsewhere_are_refused_by_name() -> None:
    def change(pipe: Any) -> None:
        pack("Q8_0")(pipe)
        pipe.transformer.text.weight = pipe.transformer.blocks[0].ffn.weight

    with pytest.raises(InputError, match=r"text holds 'weight', a .*GGUFParameter"):
        Both(change)
