"""Inputs that a model does not take: named at capture and at later calls alike."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fisopt
from fisopt import FisoptError, FrameInterleave, InputError, ModelSpec, OptimizedModule
from tests import plain_dit
from tests.plain_dit import FORMS

FORM, GRID = FORMS["fused"], (5, 2, 3)
pytestmark = pytest.mark.xdist_group("refused inputs")  # captured in one process


def grid(given: Any) -> tuple[int, int, int]:
    return (given["video"].shape[1] // 6, 2, 3)


SPEC = ModelSpec(blocks=("layers.*",), grid=grid)


@cache
def optimised() -> OptimizedModule:
    """A model that has run once."""
    made: OptimizedModule = fisopt.optimize(
        plain_dit.build(FORM), [FrameInterleave(blocks=":")], inputs(), SPEC, "eager"
    )
    made(**inputs())
    return made


def inputs(**other: Any) -> dict[str, Any]:
    return {**plain_dit.inputs(FORM, *GRID), **other}


def refusals(given: dict[str, Any]) -> list[str]:
    """What is said of inputs by a capture and by a call of a model that runs already."""
    said = []
    for verb in (
        lambda: fisopt.capture(optimised().original, given, SPEC),
        lambda: optimised()(**given),
    ):
        with pytest.raises(FisoptError) as error:
            verb()
        said.append(str(error.value))
    return said


@pytest.mark.parametrize(
    ("name", "to", "message"),
    [
        ("video", torch.bfloat16, "'video' is bfloat16 on cpu, the model's weights are float32"),
        ("video", torch.float64, "'video' is float64 on cpu, the model's weights are float32"),
        ("video", torch.int64, "'video' is int64 on cpu, the model's weights are float32"),
        ("video", "meta", "'video' is float32 on meta, the model's weights are float32 on cpu"),
        ("text", "meta", "'text' is float32 on meta"),
    ],
)
def test_another_dtype_or_device(name: str, to: Any, message: str) -> None:
    for said in refusals(inputs(**{name: inputs()[name].to(to)})):
        assert "PlainDiT does not run on" in said
        assert message in said
        assert f"'{name}': (" in said


class Casting(nn.Module):
    """Takes any dtype."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(6, 6) for _ in range(2))

    def forward(self, video: Tensor, scale: Tensor) -> Tensor:
        video = video.to(self.layers[0].weight.dtype)
        for layer in self.layers:
            video = video + layer(video) * scale
        return video


class Strict(nn.Module):
    """Takes the dtype of its weights."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(6, 6) for _ in range(2))

    def forward(self, video: Tensor) -> Tensor:
        for layer in self.layers:
            video = video + layer(video)
        return video


def test_another_dtype_on_the_meta_device() -> None:
    """Nothing runs there, and nothing has to."""
    model = Strict().to("meta").eval().requires_grad_(False)
    given = {"video": torch.ones(1, 30, 6, dtype=torch.bfloat16, device="meta")}
    with pytest.raises(InputError, match=r"bfloat16 and float32; 'video' is bfloat16 on meta"):
        fisopt.capture(model, given, SPEC)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.int64])
def test_what_a_model_casts_itself_is_taken(dtype: torch.dtype) -> None:
    given = {"video": torch.ones(1, 30, 6, dtype=dtype), "scale": torch.tensor(2, dtype=dtype)}
    model = Casting().eval().requires_grad_(False)
    program = fisopt.capture(model, given, SPEC)
    torch.testing.assert_close(program(**given), model(**given), rtol=0, atol=0)


def test_other_widths_and_ranks() -> None:
    given = inputs()
    for name, other, message in (
        ("video", torch.cat([given["video"]] * 2, -1), "shapes cannot be multiplied"),
        ("text", given["text"][..., :7], "shapes cannot be multiplied"),
        ("video", given["video"][None], r"got (0, 2, 3)"),
        ("video", None, "grid function of the ModelSpec fails on ['text', 'time', 'video']"),
        ("video", [1.0], "AttributeError: 'list' object has no attribute 'shape'"),
        ("text", given["text"].numpy(), "an input of type ndarray cannot be part"),
    ):
        for said in refusals({**given, name: other}):
            assert message in said
            assert "Data-dependent" not in said
            assert len(said) < 900


def test_layouts_that_no_graph_takes() -> None:
    text = inputs()["text"]
    for other, kind in (
        (text.to_sparse(), "torch.sparse_coo; pass it dense: .to_dense()"),
        (text[0].to_sparse_csr(), "torch.sparse_csr; pass it dense"),
        (torch.nested.nested_tensor([*text]), "nested; pass it dense: .to_padded_tensor"),
        (torch.nested.nested_tensor([*text], layout=torch.jagged), "nested; pass it dense"),
    ):
        for said in refusals(inputs(text=other)):
            assert f"input 'text' is {kind}" in said


def test_a_video_without_values() -> None:
    for said in refusals({name: x[:0] for name, x in inputs().items()}):
        assert "input 'video' of shape (0, 30, 6) carries the frames and holds no values" in said
    for said in refusals(inputs(video=inputs()["video"][:, :0])):
        assert "got (0, 2, 3)" in said


@pytest.mark.parametrize(
    "value", [float("inf"), complex(0, float("inf")), complex(0, float("nan"))]
)
def test_example_inputs_are_numbers(value: Any) -> None:
    bad = inputs()
    if isinstance(value, complex):
        bad["text"] = bad["text"].to(torch.complex64)
    bad["text"][0, 0, :3] = value
    with pytest.raises(InputError, match=r"input 'text' holds 3 (infinite|NaN) of 160 values"):
        fisopt.capture(optimised().original, bad, SPEC)
    negative = inputs()
    negative["text"][0, 0, 0] = -torch.inf
    with pytest.raises(InputError, match="input 'text' holds 1 infinite"):
        fisopt.capture(optimised().original, negative, SPEC)


def test_a_mask_that_is_added_may_hold_minus_infinity() -> None:
    given = {"video": torch.ones(1, 30, 6), "scale": torch.zeros(1, 30, 1)}
    given["scale"][0, 3:6] = -torch.inf
    model = Casting().eval().requires_grad_(False)
    assert fisopt.capture(model, given, SPEC).blocks
