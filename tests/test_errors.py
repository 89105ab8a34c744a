"""Bad input: errors that say where, what was got, what was wanted; nothing half-changed."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import (
    FasterCacheConfig,
    FirstBlockCacheConfig,
    MagCacheConfig,
    PyramidAttentionBroadcastConfig,
    TaylorSeerCacheConfig,
)
from torch import Tensor, nn

import fisopt
from fisopt import CaptureError, FrameInterleave, InputError, ModelSpec, PreconditionError, Program
from fisopt.rewrite.axes import KEY, FrameAxis, TokenLayout
from fisopt.rewrite.capture import _check_tokens_per_frame
from tests import plain_dit
from tests.plain_dit import FORMS
from tests.zoo import zoo

GRID = (5, 2, 3)
SPEC = ModelSpec(blocks=("layers.*",), grid=GRID)
FORM = FORMS["fused"]


def model() -> plain_dit.PlainDiT:
    return plain_dit.build(FORM)


def inputs() -> dict[str, Any]:
    return plain_dit.inputs(FORM, *GRID)


def test_no_block_matches() -> None:
    with pytest.raises(CaptureError) as error:
        fisopt.capture(model(), inputs(), spec=ModelSpec(blocks=("blocks.*",), grid=GRID))
    text = str(error.value)
    assert "PlainDiT has no module that matches blocks=['blocks.*']" in text
    assert "did you mean layers.*? its lists of layers are layers.* (" in text
    assert "name those that process the video" in text


def test_the_list_that_holds_the_blocks() -> None:
    with pytest.raises(CaptureError, match=r"\['layers'\] .*; write blocks=\('layers\.\*',\)"):
        fisopt.capture(model(), inputs(), spec=ModelSpec(blocks=("layers",), grid=GRID))


@pytest.mark.parametrize("grid", [(5, 2, 4), (4, 3, 3), (7, 1, 1)])
def test_grid_is_not_that_of_the_tokens(grid: tuple[int, int, int]) -> None:
    with pytest.raises(CaptureError) as error:
        fisopt.capture(model(), inputs(), spec=ModelSpec(blocks=("layers.*",), grid=grid))
    text = str(error.value)
    assert f"{grid[0]}x{grid[1]}x{grid[2]}" in text
    assert f"({grid[0] * grid[1] * grid[2]} tokens)" in text
    assert "'video': (1, 30, 6)" in text
    assert "check the grid" in text


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ((1, 5, 6), r"says \(1, 5, 6\) with 2 frames too; .* if the model makes images, the rows"),
        ((5, 2, 3), r"says \(5, 2, 3\) with 6 frames too; let it count the frames of the inputs"),
        (None, r"grid must be three positive ints .*, got None"),
        (7, r"grid must be three positive ints .*, got 7"),
    ],
)
def test_a_grid_function_that_does_not_follow_its_inputs(grid: Any, message: str) -> None:
    spec = ModelSpec(blocks=("layers.*",), grid=lambda _: grid)
    with pytest.raises(CaptureError, match=message):
        fisopt.capture(model(), inputs(), spec=spec)


def test_grid_of_latents_and_not_of_tokens() -> None:
    axes = (None, FrameAxis(5, inner=6, after=4), None)

    def check(rows: int, columns: int, batch: int = 1) -> None:
        value = torch.empty(batch, 34, 8)
        call = SimpleNamespace(meta={KEY: axes, "val": value}, users=())
        block = SimpleNamespace(call=call)
        program: Any = SimpleNamespace(blocks=[block], layout=TokenLayout(5, rows, columns))
        _check_tokens_per_frame(program)

    with pytest.raises(CaptureError, match="5x4x6 has 24 tokens a frame, the blocks return 6"):
        check(4, 6)
    check(2, 3)
    check(1, 5)  # the sixth is a register token
    check(4, 6, batch=4)  # rows that are folded into the batch


@pytest.mark.parametrize("grid", [(5, 0, 3), (5, 2), (5, 2.0, 3)])
def test_grid_is_no_grid(grid: Any) -> None:
    with pytest.raises(CaptureError, match="three positive ints"):
        fisopt.capture(model(), inputs(), spec=ModelSpec(blocks=("layers.*",), grid=grid))


@pytest.mark.parametrize("stride", [0, -1, 1.5, "2", True])
def test_stride_is_no_count(stride: Any) -> None:
    with pytest.raises(ValueError, match=f"int of at least 1, got {stride!r}"):
        FrameInterleave(stride=stride)


def test_stride_exceeds_the_frames(wan: Program) -> None:
    with pytest.raises(PreconditionError) as error:
        FrameInterleave(stride=6)(wan)
    assert "[FrameInterleave]" in str(error.value)
    assert "stride 6 is more than the 5 latent frames of 5x3x4" in str(error.value)
    assert "use a stride of 1 to 5" in str(error.value)
    assert error.value.pass_name == "FrameInterleave"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"blocks": "5:"}, "blocks='5:': 5 is outside the model's 4 video blocks"),
        ({"blocks": "-5:"}, "-5 is outside the model's 4 video blocks"),
        ({"blocks": ":9"}, "9 is outside the model's 4 video blocks"),
        ({"blocks": (0, 4)}, "blocks='0,4': 4 is outside"),
        ({"blocks": "2:2"}, "blocks='2:2': these are none of the model's 4 video blocks"),
        ({"blocks": "2:-3"}, "blocks='2:-3': these are none"),
    ],
)
def test_block_range(wan: Program, options: Any, message: str) -> None:
    with pytest.raises(PreconditionError, match=message):
        FrameInterleave(**options)(wan)


@pytest.mark.parametrize(
    ("option", "value"), [("fill", "copy"), ("kv", "some"), ("scope", "model")]
)
def test_option_value(option: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{option} must be one of .* got '{value}'"):
        FrameInterleave(**{option: value})


@pytest.mark.parametrize(
    ("option", "value"),
    [("blocks", 0.5), ("blocks", "a:"), ("steps", ()), ("steps", (0.5,)), ("blocks", "1::-1")],
)
def test_option_type(option: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{option} must .* got "):
        FrameInterleave(**{option: value})


def test_unknown_preset() -> None:
    with pytest.raises(
        ValueError, match=r"unknown pass or preset 'fis_a'; did you mean .*fis-a"
    ) as error:
        fisopt.optimize(zoo()["wan"].model, passes=["fis_a"])
    assert all(name in str(error.value) for name in fisopt.PRESETS)


@pytest.mark.parametrize(
    ("passes", "message"),
    [
        ([FrameInterleave], r"Pass objects or preset names, got .*; write FrameInterleave\(\)"),
        ([3], r"got 3 \(int\)"),
        ("fis-a", r"must be a list, got 'fis-a' \(str\); write passes=\['fis-a'\]"),
        (FrameInterleave(), "must be a list"),
    ],
)
def test_passes_of_a_wrong_type(passes: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        fisopt.optimize(zoo()["wan"].model, passes=passes)


def test_a_pass_as_text() -> None:
    with pytest.raises(ValueError, match="give a pass as an object, not as text"):
        fisopt.optimize(zoo()["wan"].model, passes=["FrameInterleave(stride=2)"])


def test_one_pattern_that_is_no_tuple() -> None:
    with pytest.raises(TypeError, match=r"got 'layers\.\*'; write blocks=\('layers\.\*',\)"):
        ModelSpec(blocks="layers.*", grid=GRID)  # type: ignore[arg-type]


def test_unknown_backend() -> None:
    with pytest.raises(ValueError, match=r"one of \['inductor', 'eager'\], got 'tensorrt'"):
        fisopt.optimize(zoo()["wan"].model, backend="tensorrt")  # type: ignore[arg-type]


def test_example_inputs_missing() -> None:
    with pytest.raises(InputError, match=r"example_inputs is missing.*keyword arguments"):
        fisopt.capture(model(), spec=SPEC)
    with pytest.raises(InputError, match="example_inputs is missing"):
        fisopt.optimize(model(), spec=SPEC)
    with pytest.raises(InputError, match="missing a required argument: 'text'"):
        fisopt.capture(model(), {"video": inputs()["video"]}, spec=SPEC)
    with pytest.raises(
        InputError, match=r"unexpected keyword argument 'pixels'.*'video', 'text'.*got .*'pixels'"
    ):
        fisopt.capture(model(), {**inputs(), "pixels": 1}, spec=SPEC)
    with pytest.raises(InputError, match="got list, wanted the dict of keyword arguments"):
        fisopt.capture(model(), [1], spec=SPEC)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="got an empty dict, wanted the dict of keyword arguments"):
        fisopt.capture(model(), {}, spec=SPEC)
    with pytest.raises(
        InputError, match=r"got tuple, wanted the dict.* takes \['video', 'text', 'time'\]"
    ):
        fisopt.optimize(model(), example_inputs=tuple(inputs().values()), spec=SPEC)  # type: ignore[arg-type]


def test_example_inputs_of_a_wrong_rank() -> None:
    case = zoo()["wan"]
    bad = case.inputs(5, 3, 4)
    bad["hidden_states"] = bad["hidden_states"][0]
    with pytest.raises(InputError, match=r"hidden_states: got shape .*wanted a tensor of rank 5"):
        fisopt.capture(case.model, bad)


def test_example_inputs_hold_nan() -> None:
    bad = inputs()
    bad["text"][0, 0, :3] = torch.nan
    with pytest.raises(InputError, match="input 'text' holds 3 NaN of 160 values"):
        fisopt.capture(model(), bad, spec=SPEC)


def test_example_inputs_need_gradients() -> None:
    bad = inputs()
    bad["video"].requires_grad_()
    with pytest.raises(InputError, match=r"input 'video' needs gradients.*detached"):
        fisopt.capture(model(), bad, spec=SPEC)


def test_model_in_training_mode() -> None:
    training = model().train()
    with pytest.raises(InputError, match=r"PlainDiT is in training mode.*model\.eval\(\)"):
        fisopt.capture(training, inputs(), spec=SPEC)
    with pytest.raises(InputError, match="training mode"):
        fisopt.optimize(training, example_inputs=inputs(), spec=SPEC)
    assert training.training


@pytest.mark.parametrize(
    "config",
    [
        FirstBlockCacheConfig(threshold=0.1),
        MagCacheConfig(mag_ratios=[1.0] * 28),
        TaylorSeerCacheConfig(cache_identifiers=["blocks.*attn1"]),
        FasterCacheConfig(
            spatial_attention_block_skip_range=2, current_timestep_callback=lambda: 500
        ),
        PyramidAttentionBroadcastConfig(
            spatial_attention_block_skip_range=2, current_timestep_callback=lambda: 500
        ),
    ],
    ids=lambda x: type(x).__name__,
)
def test_model_under_hooks(config: Any) -> None:
    model: Any = zoo()["wan"].model
    model.enable_cache(config)
    try:
        with pytest.raises(InputError, match=r"runs under hooks \(\w+\), .*disable_cache"):
            fisopt.optimize(model)
    finally:
        model.disable_cache()
    fisopt.optimize(model, backend="eager")


def test_optimized_module_refuses_what_it_would_not_see() -> None:
    optimized = fisopt.optimize(zoo()["wan"].model, backend="eager")
    with pytest.raises(InputError, match=r"enable_cache of an optimised.*FasterCacheConfig"):
        optimized.enable_cache(FasterCacheConfig())
    assert not optimized.original.is_cache_enabled


class Deciding(nn.Module):
    """Decides on data, which no export can trace."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(6, 6) for _ in range(2))

    def forward(self, video: Tensor) -> Tensor:
        for layer in self.layers:
            if video.mean() > 0:  # the line to show
                video = video + layer(video)
        return video


def test_model_that_cannot_be_traced() -> None:
    with pytest.raises(CaptureError) as error:
        fisopt.capture(Deciding().eval(), {"video": torch.randn(1, 30, 6)}, spec=SPEC)
    text = str(error.value)
    assert "Deciding cannot be traced" in text
    assert "if video.mean() > 0:  # the line to show" in text
    assert "test_errors.py" in text
    assert "prepare" in text


def test_model_that_refuses_the_inputs() -> None:
    bad = inputs()
    bad["text"] = bad["text"][..., :7]
    with pytest.raises(InputError) as error:
        fisopt.capture(model(), bad, spec=SPEC)
    assert "PlainDiT does not run on the example inputs" in str(error.value)
    assert "'text': (1, 5, 7)" in str(error.value)
    assert "plain_dit.py" in str(error.value)


def test_unknown_model_without_spec() -> None:
    with pytest.raises(fisopt.FisoptError) as error:
        fisopt.capture(model(), inputs())
    assert "PlainDiT" in str(error.value)
    assert "ModelSpec" in str(error.value)


def test_pipeline_without_transformer() -> None:
    pipeline = SimpleNamespace(unet=nn.Linear(2, 2), scheduler=object())
    with pytest.raises(InputError, match=r"has no transformer to optimise; it holds \['unet'\]"):
        fisopt.optimize(pipeline)
    with pytest.raises(InputError, match="has no transformer"):
        fisopt.optimize(3)


def test_failed_optimize_leaves_the_pipeline_alone() -> None:
    """The second transformer is in training mode, so the first is not replaced either."""
    first, second = zoo()["wan"].model, zoo()["wan_i2v"].model_for(5)
    pipeline = SimpleNamespace(transformer=first, transformer_2=second, scheduler=None)
    second.train()
    try:
        with pytest.raises(InputError, match="training mode"):
            fisopt.optimize(pipeline, passes=[FrameInterleave()])
    finally:
        second.eval()
    assert pipeline.transformer is first
    assert pipeline.transformer_2 is second
    with pytest.raises(ValueError, match="unknown pass or preset"):
        fisopt.optimize(pipeline, passes=["nothing like it"])
    assert pipeline.transformer is first


def test_optimized_module_refuses_to_train() -> None:
    optimized = fisopt.optimize(zoo()["wan"].model, backend="eager")
    with pytest.raises(InputError, match=r"no training mode.*leave out \.train\(\)"):
        optimized.train()
    assert optimized.eval() is optimized
