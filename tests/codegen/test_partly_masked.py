"""Masks that hide few keys: what is proved of them, and attention in two parts."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx
from torch.nn import functional
from torch.nn.functional import scaled_dot_product_attention

import fisopt
from fisopt import FrameInterleave, ModelSpec, Program, TileAttention
from fisopt.codegen import partly_masked
from fisopt.codegen.compile import lowered
from fisopt.codegen.kernel_options import KernelOptions
from fisopt.codegen.kernels import attend_masked as kernel
from fisopt.codegen.partly_masked import split_masks
from fisopt.codegen.seen_keys import always_seen
from fisopt.codegen.stages import stages_of
from fisopt.codegen.told_attention import with_told
from fisopt.codegen.weights import bind_weights
from fisopt.rewrite.ops.attend_masked import attend_masked
from fisopt.rewrite.ops.gather_frames import gather_frames
from fisopt.rewrite.ops.operator import Operator
from fisopt.rewrite.ops.tile_attend_masked import tile_attend_masked
from tests.conftest import captured
from tests.zoo import zoo

VIDEO = ModelSpec(blocks=("blocks.*",), grid=lambda call: (call["video"].shape[1] // 4, 2, 2))


def ones(*shape: int) -> Tensor:
    return torch.ones(shape, dtype=torch.bool)


MADE: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "padded": (lambda x: functional.pad(x, (2, 1), value=True), "11...1"),
    "padded with False": (lambda x: functional.pad(x, (2, 1), value=False), "......"),
    "beside ones": (lambda x: torch.cat([ones(2, 2), x, ones(2, 1)], 1), "11...1"),
    "viewed": (
        lambda x: functional.pad(x, (3, 0), value=True)[:, None, None].expand(2, 4, 1, 6),
        "111...",
    ),
    "both": (lambda x: functional.pad(x, (3, 0), value=True) & ones(2, 6), "111..."),
    "either": (lambda x: functional.pad(x, (3, 0), value=False) | ones(2, 6), "111111"),
    "turned": (lambda x: ~functional.pad(x, (3, 0), value=False), "......"),
    "compared": (lambda x: functional.pad(x, (3, 0), value=True).int() > 0, "......"),
    "items differ": (
        lambda x: torch.cat([functional.pad(x[:1], (3, 0), value=True), ones(1, 6)]),
        "111...",
    ),
    "frames": (
        lambda x: gather_frames.target(
            functional.pad(x, (9, 0), value=True), 1, torch.tensor([0]), 1, 3, 0, 3
        ),
        "111...",
    ),
    "frames of which one is hidden": (
        lambda x: gather_frames.target(
            functional.pad(x, (6, 3), value=True), 1, torch.tensor([0]), 1, 3, 0, 3
        ),
        "...111",
    ),
}


def traced(function: Callable[[Tensor], Tensor]) -> fx.Node:
    """The node of what a function makes of an unknown mask [2, 3]."""
    from torch.fx.experimental.proxy_tensor import make_fx

    made = make_fx(function, tracing_mode="fake", pre_dispatch=True)(
        torch.zeros(2, 3, dtype=torch.bool)
    )
    result = made.graph.output_node().args[0]
    assert isinstance(result, fx.Node)
    return result


@pytest.mark.parametrize(("made", "want"), MADE.values(), ids=MADE)
def test_what_is_proved(made: Callable[[Tensor], Tensor], want: str) -> None:
    node = traced(made)
    seen = always_seen(node)
    assert seen is not None
    every = seen.expand(node.meta["val"].shape).flatten(0, -2).all(0)
    assert "".join("1" if x else "." for x in every) == want
    for value in (torch.zeros, torch.ones):
        true = made(value(2, 3).bool()).flatten(0, -2).all(0)
        assert bool((true | ~every).all()), "what is proved holds"


def test_numbers_prove_nothing() -> None:
    assert always_seen(traced(lambda x: functional.pad(x.float(), (3, 0)))) is None


@pytest.mark.parametrize("start", [0, 5, 20], ids=["first", "between", "last"])
@pytest.mark.parametrize("heads", [4, 2])
def test_in_two_parts(start: int, heads: int) -> None:
    """Equal to a mask over all keys, also where a batch item sees none of the few."""
    torch.manual_seed(0)
    query, (key, value) = torch.randn(2, 4, 7, 8), torch.randn(2, 2, heads, 25, 8)
    mask = torch.rand(2, 1, 1, 5) > 0.5
    mask[1] = False
    args = (query, key, value, mask, start, 0.3)
    want = attend_masked.reference(*args)
    whole = functional.pad(mask, (start, 20 - start), value=True)
    plain = scaled_dot_product_attention(query, key, value, whole, scale=0.3, enable_gqa=heads != 4)
    torch.testing.assert_close(want, plain)
    got = kernel.launch(*args)
    torch.testing.assert_close(got, want)
    assert got.stride() == want.stride()


class Masked(torch.nn.Module):
    """Blocks of five frames of four tokens and three of text, of which a mask hides some."""

    def __init__(self, value: float = True) -> None:
        super().__init__()
        self.blocks = torch.nn.ModuleList(Joint(value) for _ in range(3))

    def forward(self, video: Tensor, text: Tensor, mask: Tensor) -> Tensor:
        x = torch.cat([video, text], 1)
        for block in self.blocks:
            x = block(x, mask)
        return x[:, :-3]


class Joint(torch.nn.Module):
    def __init__(self, value: float) -> None:
        super().__init__()
        self.qkv = torch.nn.Linear(16, 48)
        self.value = value

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        parts = self.qkv(x).unflatten(-1, (3, 2, 8)).movedim(2, 0).transpose(2, 3)
        seen = functional.pad(mask, (x.shape[1] - 3, 0), value=self.value)[:, None, None]
        return x + scaled_dot_product_attention(*parts, attn_mask=seen).transpose(1, 2).flatten(2)


def program(value: float = True) -> tuple[Program, dict[str, Tensor]]:
    torch.manual_seed(0)
    inputs = {"video": torch.randn(1, 20, 16), "text": torch.randn(1, 3, 16)}
    inputs["mask"] = torch.tensor([[True, False, True]])
    return fisopt.capture(Masked(value).eval().requires_grad_(False), inputs, VIDEO), inputs


def attentions(module: fx.GraphModule) -> list[Any]:
    targets = (n.target for stage in stages_of(module) for n in stage.graph.nodes)
    return [t for t in targets if "attend" in str(t) or "attention" in str(t)]


@pytest.fixture
def on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Split on a CPU as on a GPU, few keys though there are."""
    monkeypatch.setattr("fisopt.codegen.compile.split_masks", lambda: split_masks("cpu"))
    monkeypatch.setattr(partly_masked, "MANY", 8)
    monkeypatch.setattr(partly_masked, "SHARE", 0.75)


@pytest.mark.usefixtures("on_cpu")
@pytest.mark.parametrize(
    ("passes", "wanted"),
    [
        ([], {attend_masked}),
        ([FrameInterleave(stride=2)], {attend_masked}),
        ([TileAttention(mask=1)], {tile_attend_masked}),
        ([FrameInterleave(stride=2), TileAttention(mask=1)], {tile_attend_masked}),
    ],
    ids=["dense", "frames", "tiles", "frames and tiles"],
)
def test_blocks_with_text_that_is_masked(passes: list[Any], wanted: set[Operator]) -> None:
    dense, inputs = program()
    made = fisopt.PassManager(passes).run(dense)
    module = lowered(made, KernelOptions(), [], split=True)
    assert set(attentions(module)) == {one.target for one in wanted}
    (got,) = bind_weights(module, made.source.model)(*inputs.values())
    torch.testing.assert_close(got, made(**inputs))


@pytest.mark.usefixtures("on_cpu")
def test_what_is_left_alone() -> None:
    dense, _ = program()
    plain = {torch.ops.aten.scaled_dot_product_attention.default}
    for options in (KernelOptions(attention="sdpa"), KernelOptions(attention="flash")):
        assert attend_masked.target not in attentions(lowered(dense, options, [], split=True))
    assert set(attentions(lowered(dense, KernelOptions(), []))) == plain
    hidden, _ = program(value=False)
    assert set(attentions(lowered(hidden, KernelOptions(), [], split=True))) == plain


@pytest.mark.usefixtures("on_cpu")
def test_a_published_form() -> None:
    """HunyuanVideo 1.5 in tiny, whose layers dispatch to what diffusers was told: nothing."""
    program = captured("hunyuan_video15")
    options, said = with_told(KernelOptions(), program.source.model)
    assert not said
    module = lowered(program, options, [], split=True)
    assert attentions(module).count(attend_masked.target) == 2, "a kind of block each"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("start", [0, 9000], ids=["first", "last"])
def test_a_video_on_a_gpu(start: int, dtype: torch.dtype) -> None:
    """Through the operator, so with what is chosen there, and by the kernel alone."""
    operands = torch.randn(3, 2, 9333, 4, 128, dtype=dtype, device="cuda").transpose(2, 3)
    mask = torch.rand(2, 1, 1, 333, device="cuda") < 0.5
    mask[1] = False
    args = (*operands, mask, start, None)
    want = attend_masked.reference(*args)
    for got in (kernel.launch(*args), attend_masked.target(*args)):
        torch.testing.assert_close(got, want, rtol=0, atol=5e-3)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_a_published_form_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(partly_masked, "MANY", 8)
    monkeypatch.setattr(partly_masked, "SHARE", 0.75)
    case = zoo()["hunyuan_video15"]
    model, inputs = copy.deepcopy(case.model).bfloat16().cuda(), case.inputs(5, 3, 4)
    inputs = {
        k: v.cuda().to(torch.bfloat16 if v.is_floating_point() else v.dtype)
        for k, v in inputs.items()
        if isinstance(v, Tensor)
    }
    fast = fisopt.optimize(model, [], inputs)
    with torch.no_grad():
        want, got = model(**inputs, return_dict=False)[0], fast(**inputs, return_dict=False)[0]
    assert "attend_masked" in str(fast.report)
    torch.testing.assert_close(got, want, rtol=0, atol=0.05)
