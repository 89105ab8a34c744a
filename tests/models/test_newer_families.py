"""Families that meet each pass once: capture, and every pass against its plain form."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers.models.transformers import transformer_cosmos
from diffusers.models.transformers.transformer_cosmos import CosmosTransformer3DModel
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

import fisopt
from fisopt import (
    FrameInterleave,
    PassManager,
    PreconditionError,
    TileAttention,
    TileMask,
    models,
    predicted_ratio,
)
from fisopt.passes.token_reduction import Reduction
from tests.conftest import GRID, captured
from tests.passes.any_loop import any_interleaved, compared
from tests.passes.dense_reduction import Attend, reduced
from tests.passes.dense_reduction import Options as Reduced
from tests.passes.loop import Block, Options, Video
from tests.passes.tiled import tiled
from tests.zoo import Case, newer

TOLERANCE = 1e-5
FRAMES, ROWS, COLUMNS = GRID
TOKENS = ROWS * COLUMNS
JOINED = {"easyanimate", "motif_video", "framepack"}
"""Families whose attention joins text to the video."""
AHEAD = {"easyanimate": 12, "helios": 32, "framepack": 32, "minimax_h3": 12 + 2 * 9}
"""Tokens before the video: text, a history at 3 x 4 tokens a frame, text and audio."""
LINEAR = {"sana_video"}
"""Families without an attention that has pairs of tokens."""
every_case = pytest.mark.parametrize("case", newer().values(), ids=newer())


def in_turn(place: int) -> pytest.MarkDecorator:
    """Every form with an attention; in a quick run each one meets one of the three passes."""
    found = []
    for turn, (name, case) in enumerate(newer().items()):
        if case.family.name not in LINEAR or place == 0:
            marks = () if (turn + place) % 3 == 0 else (pytest.mark.slow,)
            found.append(pytest.param(case, id=name, marks=marks))
    return pytest.mark.parametrize("case", found)


def first(output: Any) -> Tensor:
    found: Tensor = tree_leaves(output)[0]
    return found


def run(model: nn.Module, inputs: dict[str, Any]) -> Any:
    with torch.no_grad():
        return model(**inputs)


def assert_equal(got: Any, want: Any) -> None:
    assert type(got) is type(want)
    mine, theirs = tree_leaves(got), tree_leaves(want)
    for x, y in zip(mine, theirs, strict=True):
        assert x.shape == y.shape
        assert float((x - y).abs().max()) / max(1.0, float(y.abs().max())) <= TOLERANCE


@every_case
@pytest.mark.parametrize("shape", [(*GRID, 2), (7, 4, 3, 1)], ids=str)
def test_equals_the_model(case: Case, shape: tuple[int, int, int, int]) -> None:
    """At two frame counts and two resolutions."""
    *grid, batch = shape
    inputs = case.inputs(*grid, batch=batch)
    program = captured(case.name).at(inputs)
    assert str(program.layout) == "x".join(map(str, grid))
    fisopt.verify(program)
    assert_equal(program(**inputs), run(case.model, inputs))


@in_turn(0)
@pytest.mark.parametrize("kv", ["anchors", pytest.param("all", marks=pytest.mark.slow)])
def test_frame_interleave_equals_the_loop(case: Case, kv: str) -> None:
    inputs, longer = (case.inputs(f, ROWS, COLUMNS, batch=2) for f in (FRAMES, FRAMES + 1))
    before = AHEAD.get(case.family.name, 0)
    seen = compared(case.model, case.spec.blocks, (inputs, longer), FRAMES, before)
    sparse = PassManager([FrameInterleave(2, kv=kv, blocks=":")]).run(captured(case.name))
    with any_interleaved(seen, Options(2, kv=kv), FRAMES):
        want = run(case.model, inputs)
    assert_equal(sparse(**inputs), want)
    assert not torch.allclose(first(want), first(run(case.model, inputs)), atol=1e-3)


@in_turn(1)
def test_tile_attention_equals_the_mask(case: Case) -> None:
    inputs = case.inputs(*GRID, batch=2)
    text, ahead = case.family.name in JOINED, AHEAD.get(case.family.name, 0)
    blocks = [
        Block(
            case.model.get_submodule(block.path),
            Video(1, inner=TOKENS),
            attention=Video(2, inner=TOKENS),
            text="behind" if text else "none",
            ahead=ahead,
        )
        for block in captured(case.name).blocks
    ]
    sparse = PassManager([TileAttention(1)]).run(captured(case.name))
    with tiled(blocks, [TileMask(1)] * len(blocks), FRAMES) as loop:
        want = run(case.model, inputs)
    assert len(loop.applied) == len(blocks)
    assert_equal(sparse(**inputs), want)
    assert not torch.allclose(first(want), first(run(case.model, inputs)), atol=1e-4)


@in_turn(2)
def test_token_reduction_equals_the_loops(case: Case) -> None:
    inputs = case.inputs(*GRID, batch=2)
    options = Reduced(0.5, 0.3)
    short = PassManager([Reduction(**vars(options))]).run(captured(case.name))  # type: ignore[arg-type]
    attend = Attend(options, lambda _: GRID, front=False, ahead=AHEAD.get(case.family.name, 0))
    with reduced(case.model, case.spec.blocks, attend):
        want = run(case.model, inputs)
    assert attend.seen
    assert_equal(short(**inputs), want)


@pytest.mark.parametrize("case", [newer()["sana_video"]], ids=["sana_video"])
def test_linear_attention_has_no_pairs(case: Case) -> None:
    with pytest.raises(PreconditionError, match="no block has self-attention across frames"):
        TileAttention(1)(captured(case.name))
    with pytest.raises(PreconditionError, match="no self-attention was found in it"):
        fisopt.TokenReduction(0.5, 0.3)(captured(case.name))


FEW: dict[str, dict[str, Any]] = {
    "cosmos": {"num_layers": 2, "concat_padding_mask": False},  # the mask needs torchvision
    "easyanimate": {"num_layers": 2, "mmdit_layers": 1},
    "framepack": {"num_layers": 1, "num_single_layers": 1},
    "kandinsky5": {"num_visual_blocks": 2, "num_text_blocks": 1},
    "kandinsky6": {"num_visual_blocks": 2, "num_text_blocks": 1},
    "motif_video": {"num_layers": 1, "num_single_layers": 1},
    "wan_animate": {"num_layers": 5},
    "wan_vace": {"num_layers": 2, "vace_layers": [0]},
}
FAMILIES = sorted({case.family.name for case in newer().values()})


@pytest.mark.parametrize(
    "family",
    [pytest.param(f, marks=() if f == "easyanimate" else pytest.mark.slow) for f in FAMILIES],
)
def test_published_shapes_without_weights(family: str) -> None:
    """Few blocks on the meta device; EasyAnimate makes its rotary tables on the CPU."""
    model = models.build(family, **FEW.get(family, {"num_layers": 2}))
    program = fisopt.capture(model, models.example_inputs(model))
    sparse = PassManager([FrameInterleave(2, blocks=":")]).run(program)
    assert predicted_ratio(program, sparse) > 1.2


def test_cosmos_says_what_resizes_its_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(transformer_cosmos, "transforms", raising=False)
    model = models.build("cosmos-predict2.5-2b", num_layers=1)
    inputs = models.example_inputs(model, height=64, width=64, num_frames=9)  # as the catalog does
    with pytest.raises(fisopt.InputError, match="install torchvision"):
        fisopt.capture(model, inputs)


def test_cosmos_pads_its_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    """The published models resize a mask of padding by torchvision, here by torch."""

    def resize(mask: Tensor, size: list[int], interpolation: object) -> Tensor:
        assert interpolation == "nearest"
        return nn.functional.interpolate(mask, size, mode="nearest")

    modes = SimpleNamespace(NEAREST="nearest")
    shim = SimpleNamespace(functional=SimpleNamespace(resize=resize), InterpolationMode=modes)
    monkeypatch.setattr(transformer_cosmos, "transforms", shim, raising=False)
    case = newer()["cosmos_world"]
    config = case.family.config({**case.config, "concat_padding_mask": True, "num_layers": 2})
    torch.manual_seed(0)
    model = CosmosTransformer3DModel(**config).eval().requires_grad_(False)
    size = {"height": 48, "width": 64}
    calls = [case.family.example_inputs(config, **size, num_frames=n) for n in (17, 25)]
    program = fisopt.capture(model, calls[0])
    for inputs in calls:
        assert_equal(program.at(inputs)(**inputs), run(model, inputs))
    assert FrameInterleave(2)(program).modified


def test_a_convolution_over_time_that_reads_anchors_is_named() -> None:
    result = FrameInterleave(stride=2)(captured("sana_video"))
    assert "is computed from several frames, such as by a convolution over time" in str(
        result.notes
    )
