"""Image transformers: rows in the place of frames."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
import torch
from diffusers import (
    FluxTransformer2DModel,
    QwenImageTransformer2DModel,
    SanaTransformer2DModel,
    SD3Transformer2DModel,
)
from torch import nn

import fisopt
from fisopt import (
    CaptureError,
    FrameInterleave,
    ModelSpec,
    PassManager,
    PreconditionError,
    TileAttention,
    TileMask,
    TokenReduction,
)
from fisopt.passes.token_reduction import Reduction
from tests.passes.dense_reduction import Attend, Options, reduced
from tests.passes.loop import Block, Video
from tests.passes.tiled import tiled

ROWS, COLUMNS, TEXT = 6, 4, 7
HEADS = {"num_layers": 2, "attention_head_dim": 16, "num_attention_heads": 2}
TOLERANCE = 1e-5


@dataclass(frozen=True)
class Image:
    """A tiny image transformer.

    Attributes:
        front: whether its attention has the text before the image.
        linear: whether its attention is linear, without pairs of tokens.
    """

    make: Callable[[], nn.Module]
    call: Callable[[int, int], dict[str, Any]]
    blocks: tuple[str, ...]
    front: bool
    linear: bool = False

    @cache  # noqa: B019
    def model(self) -> nn.Module:
        torch.manual_seed(0)
        model = self.make()
        with torch.no_grad():
            for parameter in model.parameters():
                if not parameter.any():
                    parameter.normal_(std=0.02)
        return model.eval().requires_grad_(False)

    def inputs(self, rows: int = ROWS, columns: int = COLUMNS) -> dict[str, Any]:
        torch.manual_seed(rows)
        return {**self.call(rows, columns), "return_dict": False}

    @cache  # noqa: B019
    def program(self) -> fisopt.Program:
        spec = ModelSpec(self.blocks, (ROWS, 1, COLUMNS), images=True)
        return fisopt.capture(self.model(), self.inputs(), spec)


def _flux(rows: int, columns: int) -> dict[str, Any]:
    places = torch.zeros(rows, columns, 3)
    places[..., 1], places[..., 2] = torch.arange(rows)[:, None], torch.arange(columns)
    return {
        "hidden_states": torch.randn(1, rows * columns, 4),
        "encoder_hidden_states": torch.randn(1, TEXT, 32),
        "pooled_projections": torch.randn(1, 32),
        "timestep": torch.tensor([0.5]),
        "img_ids": places.flatten(0, 1),
        "txt_ids": torch.zeros(TEXT, 3),
    }


def _sd3(rows: int, columns: int) -> dict[str, Any]:
    return {
        "hidden_states": torch.randn(1, 4, 2 * rows, 2 * columns),
        "encoder_hidden_states": torch.randn(1, TEXT, 32),
        "pooled_projections": torch.randn(1, 16),
        "timestep": torch.tensor([500.0]),
    }


def _qwen(rows: int, columns: int) -> dict[str, Any]:
    return {
        "hidden_states": torch.randn(1, rows * columns, 16),
        "encoder_hidden_states": torch.randn(1, TEXT, 16),
        "encoder_hidden_states_mask": torch.ones(1, TEXT),
        "timestep": torch.tensor([0.5]),
        "img_shapes": [(1, rows, columns)],
    }


def _sana(rows: int, columns: int) -> dict[str, Any]:
    return {
        "hidden_states": torch.randn(1, 4, rows, columns),
        "encoder_hidden_states": torch.randn(1, TEXT, 16),
        "encoder_attention_mask": torch.ones(1, TEXT),
        "timestep": torch.tensor([500.0]),
    }


IMAGES = {
    "flux": Image(
        lambda: FluxTransformer2DModel(
            **HEADS,
            patch_size=1,
            in_channels=4,
            num_single_layers=2,
            joint_attention_dim=32,
            pooled_projection_dim=32,
            axes_dims_rope=(4, 4, 8),
        ),
        _flux,
        ("transformer_blocks.*", "single_transformer_blocks.*"),
        front=True,
    ),
    "sd3": Image(
        lambda: SD3Transformer2DModel(
            **HEADS,
            sample_size=32,
            patch_size=2,
            in_channels=4,
            out_channels=4,
            joint_attention_dim=32,
            caption_projection_dim=32,
            pooled_projection_dim=16,
        ),
        _sd3,
        ("transformer_blocks.*",),
        front=False,
    ),
    "qwen": Image(
        lambda: QwenImageTransformer2DModel(
            **HEADS,
            patch_size=2,
            in_channels=16,
            out_channels=4,
            joint_attention_dim=16,
            axes_dims_rope=(8, 4, 4),
        ),
        _qwen,
        ("transformer_blocks.*",),
        front=True,
    ),
    "sana": Image(
        lambda: SanaTransformer2DModel(
            **HEADS,
            in_channels=4,
            out_channels=4,
            num_cross_attention_heads=2,
            cross_attention_head_dim=16,
            cross_attention_dim=32,
            caption_channels=16,
        ),
        _sana,
        ("transformer_blocks.*",),
        front=False,
        linear=True,
    ),
}
every_image = pytest.mark.parametrize("image", IMAGES.values(), ids=IMAGES)
PAIRED = {name: image for name, image in IMAGES.items() if not image.linear}
every_paired = pytest.mark.parametrize("image", PAIRED.values(), ids=PAIRED)


def run(model: nn.Module, inputs: dict[str, Any]) -> torch.Tensor:
    with torch.no_grad():
        output: torch.Tensor = model(**inputs)[0]
    return output


def assert_equal(got: torch.Tensor, want: torch.Tensor) -> None:
    assert float((got - want).abs().max()) / max(1.0, float(want.abs().max())) <= TOLERANCE


@every_image
def test_equals_the_model(image: Image) -> None:
    inputs = image.inputs()
    assert_equal(image.program()(**inputs)[0], run(image.model(), inputs))
    taller = image.inputs(ROWS + 2)
    program = image.program().at(taller)
    assert str(program.layout) == f"{ROWS + 2}x1x{COLUMNS}"
    assert_equal(program(**taller)[0], run(image.model(), taller))


def test_another_shape() -> None:
    image = IMAGES["sd3"]
    wider = image.inputs(4, 7)
    program = image.program().at(wider)
    assert str(program.layout) == "4x1x7"
    assert_equal(program(**wider)[0], run(image.model(), wider))


@every_paired
def test_token_reduction_equals_the_loops(image: Image) -> None:
    """Cells of 2x2x2 tokens are those of two rows and two columns."""
    inputs, options = image.inputs(), Options(0.5, 0.3, (2, 1, 2))
    short = PassManager([Reduction(**vars(options))]).run(image.program())  # type: ignore[arg-type]
    attend = Attend(options, lambda _: (ROWS, 1, COLUMNS), front=image.front)
    attend.ahead = TEXT if image.front else 0
    with reduced(image.model(), image.blocks, attend):
        want = run(image.model(), inputs)
    assert attend.seen
    assert_equal(short(**inputs)[0], want)
    assert TokenReduction(0.5, 0.3)(image.program()).modified


@every_paired
def test_tile_attention_equals_the_mask(image: Image) -> None:
    inputs = image.inputs()
    blocks = [
        Block(
            image.model().get_submodule(block.path),
            Video(1, inner=COLUMNS),
            attention=Video(2, inner=COLUMNS),
            text="front" if image.front else "behind",
        )
        for block in image.program().blocks
    ]
    sparse = PassManager([TileAttention(1)]).run(image.program())
    with tiled(blocks, [TileMask(1)] * len(blocks), ROWS) as loop:
        want = run(image.model(), inputs)
    assert len(loop.applied) == len(blocks)
    assert_equal(sparse(**inputs)[0], want)


def test_linear_attention_has_no_pairs() -> None:
    program = IMAGES["sana"].program()
    with pytest.raises(PreconditionError, match="no block has self-attention across frames"):
        TileAttention(1)(program)
    with pytest.raises(PreconditionError, match="no self-attention was found in it"):
        TokenReduction(0.5, 0.3)(program)


@every_image
def test_frame_interleave_refuses(image: Image) -> None:
    with pytest.raises(PreconditionError, match=r"the model makes images, with rows .* TokenRed"):
        FrameInterleave(2, blocks=":")(image.program())


def test_the_grid_of_an_image() -> None:
    image = IMAGES["sd3"]
    spec = ModelSpec(image.blocks, (1, ROWS, COLUMNS), images=True)
    with pytest.raises(CaptureError, match=r"images=True: the grid is \(rows, 1, columns\).*1x6x4"):
        fisopt.capture(image.model(), image.inputs(), spec)
