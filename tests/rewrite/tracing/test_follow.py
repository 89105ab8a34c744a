"""Which input dimensions carry frames, over sizes that coincide and models that refuse some."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.models import attention_dispatch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch._higher_order_ops.out_dtype import out_dtype

import fisopt
from fisopt import CaptureError, ModelSpec, TokenLayout
from fisopt.rewrite.axes import axes_of
from fisopt.rewrite.cost import program_cost
from fisopt.rewrite.tracing.follow import Followed, Search
from fisopt.rewrite.tracing.inputs import Inputs
from fisopt.rewrite.tracing.shape_numbers import shape_numbers
from fisopt.rewrite.tracing.trials import shape_trials
from tests import plain_dit
from tests.plain_dit import FORMS, Form
from tests.zoo import zoo


def follow(model: nn.Module, inputs: dict[str, Any], spec: ModelSpec) -> Followed:
    bound = Inputs.of(inputs)
    blocks = [model.get_submodule(f"layers.{i}") for i in range(len(model.layers))]
    with shape_trials(model, blocks, bound) as (trial, *_):
        layout = TokenLayout(*spec.grid_of(inputs))
        return Search(bound, layout, spec, trial, trial(bound)).run()


def found(inputs: dict[str, Any], followed: Followed) -> dict[str, list[int]]:
    names = Inputs.of(inputs).names
    return {names[i]: [g.dim for g in growths] for i, growths in followed.dims.items()}


@st.composite
def coincidences(draw: st.DrawFn) -> tuple[Form, tuple[int, int, int], int, int]:
    """A form, a grid, a batch and a text length that are likely to coincide."""
    form = draw(st.sampled_from(list(FORMS.values())))
    grid = draw(
        st.tuples(st.integers(1, 5), st.sampled_from([1, 2, 4]), st.sampled_from([1, 2, 8]))
    )
    tokens = grid[0] * grid[1] * grid[2]
    batch = draw(st.sampled_from([1, 2, 3, grid[0], min(tokens, 12)]))
    text = draw(st.sampled_from([1, 5, 6, 32, grid[0], tokens, 2 * tokens, batch]))
    return form, grid, batch, text


@settings(max_examples=15)
@given(coincidences())
def test_the_video_is_found(case: tuple[Form, tuple[int, int, int], int, int]) -> None:
    """Whatever equals what: the video follows the frames, text and batch never do."""
    form, grid, batch, text = case
    model = plain_dit.build(form)
    inputs = plain_dit.inputs(form, *grid, batch=batch, text=text)
    followed = follow(model, inputs, ModelSpec(blocks=("layers.*",), grid=grid))
    assert followed.step == 1
    wanted = {"video": [1]} | ({"time": [1]} if form.per_token else {})
    assert found(inputs, followed) == wanted


class Masked(nn.Module):
    """Text and its mask, which must be of one length, and another text beside them."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(2))

    def forward(self, video: Tensor, text: Tensor, mask: Tensor, other: Tensor) -> Tensor:
        for layer in self.layers:
            words = nn.functional.scaled_dot_product_attention(
                video, text, text, attn_mask=mask[:, None, :] > 0
            )
            more = nn.functional.scaled_dot_product_attention(video, other, other)
            video = video + layer(video + words + more)
        return video


@pytest.mark.parametrize("length", [5, 6])
@pytest.mark.parametrize("other", [4, 6])
def test_texts_and_masks_as_long_as_the_video(length: int, other: int) -> None:
    model, grid = Masked().eval(), (3, 2, 1)
    inputs = {
        "video": torch.randn(1, 6, 8),
        "text": torch.randn(1, length, 8),
        "mask": torch.ones(1, length),
        "other": torch.randn(1, other, 8),
    }
    followed = follow(model, inputs, ModelSpec(blocks=("layers.*",), grid=grid))
    assert found(inputs, followed) == {"video": [1]}


class Timed(nn.Module):
    """A time for every frame, or for every two or four: its rows are spread over the tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(2))

    def forward(self, video: Tensor, time: Tensor, text: Tensor | None = None) -> Tensor:
        rows = time.repeat_interleave(video.shape[1] // time.shape[1], dim=1)[..., None]
        if text is not None:
            video = video + nn.functional.scaled_dot_product_attention(video, text, text)
        for layer in self.layers:
            video = video + layer(video * rows)
        return video


@pytest.mark.parametrize("text", [None, 7])
def test_rows_that_could_stay_as_they_are_follow_the_frames(text: int | None) -> None:
    """Two frames of two clips, twelve tokens: two rows would do for three frames."""
    model = Timed().eval().requires_grad_(False)
    inputs = {"video": torch.randn(2, 12, 8), "time": torch.rand(2, 2)}
    inputs |= {} if text is None else {"text": torch.randn(2, text, 8)}
    spec = ModelSpec(("layers.*",), (2, 2, 3))
    program = fisopt.capture(model, inputs, spec=spec)
    assert found(inputs, program.source.followed) == {"video": [1], "time": [1]}
    longer = inputs | {"video": torch.randn(2, 30, 8), "time": torch.rand(2, 5)}
    assert torch.equal(program.at(longer)(**longer), model(**longer))


FAMILIES = ["allegro", "cogvideox_5b", "ltx", "mochi", "wan_ti2v"]
GRIDS = [((5, 3, 4), 2), ((2, 1, 1), 2), ((4, 2, 2), 4)]


@pytest.mark.parametrize("name", FAMILIES)
def test_families_with_batches_like_frames(name: str) -> None:
    case = zoo()[name]
    model = case.spec.prepare(case.model) if case.spec.prepare else case.model
    got = []
    for grid, batch in GRIDS:
        inputs = case.inputs(*grid, batch=batch)
        bound = Inputs.of(inputs)
        with shape_trials(model, (), bound) as (trial, *_):
            search = Search(bound, TokenLayout(*grid), case.spec, trial, trial(bound))
            got.append(found(inputs, search.run()))
    assert got == got[:1] * len(GRIDS)


class Toy(nn.Module):
    """Blocks over tokens [B, N, 8]; subclasses say how their inputs become tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(8, 8), nn.GELU()) for _ in range(2))

    def tokens(self, **inputs: Any) -> Tensor:
        raise NotImplementedError

    def forward(self, video: Tensor, **inputs: Any) -> Tensor:
        x = self.tokens(video=video, **inputs)
        for layer in self.layers:
            x = x + layer(x)
        return x


class Grouped(Toy):
    """Frames in groups of three, as models that denoise block by block take them."""

    def tokens(self, video: Tensor) -> Tensor:
        groups = video.unflatten(1, (video.shape[1] // 3, 3))
        if groups.shape[1] * 3 != video.shape[1]:
            raise ValueError("frames must come in threes")
        return groups.flatten(1, 4)


class Windows(Toy):
    """Windows of 2x2x2 tokens."""

    def tokens(self, video: Tensor) -> Tensor:
        batch, frames, rows, columns, width = video.shape
        windows = video.reshape(batch, frames // 2, 2, rows // 2, 2, columns // 2, 2, width)
        return windows.transpose(2, 3).transpose(4, 5).reshape(batch, -1, width)


class Driven(Toy):
    """A pose for all frames but the first, and pixels that are compressed by four."""

    def tokens(self, video: Tensor, pose: Tensor, face: Tensor) -> Tensor:
        pose = torch.cat([torch.zeros_like(pose[:, :1]), pose], dim=1)
        face = face.mean((-1, -2))
        face = torch.cat([face[:, :1].expand(-1, 3, -1), face], dim=1).unflatten(1, (-1, 4)).mean(2)
        first = torch.zeros_like(face[:, :1])
        return (video + pose + torch.cat([first, face], dim=1)[:, :, None, None]).flatten(1, 3)


class Counted(Toy):
    """The length of the sequence comes as a number."""

    def tokens(self, video: Tensor, seq_len: int) -> Tensor:
        flat = video.flatten(1, 3)
        return torch.cat([flat, flat.new_zeros(1, seq_len - flat.shape[1], 8)], dim=1)


class Padded(Counted):
    """The length is that of a longer sequence, and the tail is as long as two frames."""


class Joint(Toy):
    """Positions, and a number, for text and video together."""

    def tokens(self, video: Tensor, text: Tensor, positions: Tensor, total: int) -> Tensor:
        return (torch.cat([text, video], dim=1) + positions)[:, -total:]


class Paired(Toy):
    """Latents [B, C, F, H, W] with as many channels as tokens have frames, two frames a token."""

    def tokens(self, video: Tensor, time: Tensor) -> Tensor:
        video = torch.cat([video[:, :, :1], video], dim=2)
        x = video.unflatten(2, (-1, 2)).mean(3).flatten(2).mT @ torch.ones(6, 8)
        return x + time.repeat_interleave(4, dim=1)[..., None]


class Fixed(Toy):
    """Positions that were learned for four frames."""

    def __init__(self) -> None:
        super().__init__()
        self.positions = nn.Parameter(torch.rand(16, 8))

    def tokens(self, video: Tensor) -> Tensor:
        return video.flatten(1, 3) + self.positions


GRID = (6, 2, 2)
SPEC = ModelSpec(blocks=("layers.*",), grid=GRID)
VIDEO = (1, *GRID, 8)
TOYS: dict[type[Toy], tuple[dict[str, Any], int, dict[str, list[int]]]] = {
    Grouped: ({"video": torch.rand(VIDEO)}, 3, {"video": [1]}),
    Windows: ({"video": torch.rand(VIDEO)}, 2, {"video": [1]}),
    Driven: (
        {
            "video": torch.rand(VIDEO),
            "pose": torch.rand(1, 5, 2, 2, 8),
            "face": torch.rand(1, 17, 8, 5, 5),
        },
        1,
        {"video": [1], "pose": [1], "face": [1]},
    ),
    Paired: (
        {"video": torch.rand(1, 6, 11, 2, 2), "time": torch.rand(1, 6)},
        1,
        {"video": [2], "time": [1]},
    ),
    Counted: ({"video": torch.rand(VIDEO), "seq_len": 24}, 1, {"video": [1], "seq_len": [-1]}),
    Padded: ({"video": torch.rand(VIDEO), "seq_len": 32}, 1, {"video": [1], "seq_len": [-1]}),
    Joint: (
        {
            "video": torch.rand(1, 24, 8),
            "text": torch.rand(1, 5, 8),
            "positions": torch.rand(29, 8),
            "total": 29,
        },
        1,
        {"video": [1], "positions": [0], "total": [-1]},
    ),
}


@pytest.mark.parametrize("kind", TOYS, ids=lambda kind: kind.__name__)
def test_sizes_that_are_not_frames_alone(kind: type[Toy]) -> None:
    model = kind().eval().requires_grad_(False)
    inputs, step, wanted = TOYS[kind]
    program = fisopt.capture(model, inputs, spec=SPEC)
    followed = program.source.followed
    assert (followed.step, found(inputs, followed)) == (step, wanted)
    torch.testing.assert_close(program(**inputs), model(**inputs), rtol=0, atol=0)
    assert any("f6" in str(axis) for block in program.blocks for axis in axes_of(block.call))
    longer = program.resized(GRID[0] + step)
    assert longer.layout.frames == GRID[0] + step


def test_resized_is_said() -> None:
    """A length that nothing tells: the spec says how inputs follow the frames."""

    class Odd(Toy):
        def tokens(self, video: Tensor, table: Tensor) -> Tensor:
            frames = table.shape[0] - 11
            return (video + table[11:, None, None]).flatten(1, 3)[:, : frames * 4]

    def resized(inputs: Any, frames: int) -> dict[str, Any]:
        return {"video": torch.empty(1, frames, 2, 2, 8), "table": torch.empty(frames + 11, 8)}

    model = Odd().eval().requires_grad_(False)
    inputs = {"video": torch.rand(VIDEO), "table": torch.rand(17, 8)}
    spec = ModelSpec(blocks=("layers.*",), grid=GRID, resized=resized)
    program = fisopt.capture(model, inputs, spec=spec)
    assert found(inputs, program.source.followed) == {"video": [1], "table": [0]}
    assert [tuple(x.shape) for _, x in program.resized(8).inputs.tensors()] == [
        (1, 8, 2, 2, 8),
        (19, 8),
    ]


def test_a_frame_count_that_is_fixed_is_said() -> None:
    model = Fixed().eval().requires_grad_(False)
    inputs = {"video": torch.rand(1, 4, 2, 2, 8)}
    spec = ModelSpec(blocks=("layers.*",), grid=(4, 2, 2))
    fast = fisopt.optimize(model, example_inputs=inputs, spec=spec, backend="eager")
    torch.testing.assert_close(fast(**inputs), model(**inputs), rtol=0, atol=0)
    report = str(fast.report)
    assert "captured at 4 latent frames alone: with 5 frames RuntimeError" in report
    assert "video.flatten(1, 3) + self.positions" in report
    with pytest.raises(fisopt.PassError, match=r"(?s)4 latent frames alone.*ModelSpec\.resized"):
        fisopt.optimize(
            model,
            passes=[fisopt.FrameInterleave(stride=2, blocks=":")],
            example_inputs=inputs,
            spec=spec,
            backend="eager",
        )


def test_a_length_that_does_not_follow_the_frames_is_said() -> None:
    """Tokens are padded to a length that is no argument: the blocks never return more."""

    class Bounded(Toy):
        def tokens(self, video: Tensor) -> Tensor:
            flat = video.flatten(1, 3)
            return torch.cat([flat, flat.new_zeros(1, 40 - flat.shape[1], 8)], dim=1)

        def forward(self, video: Tensor) -> Tensor:
            return super().forward(video)[:, : video[0, ..., 0].numel()]

    model = Bounded().eval().requires_grad_(False)
    said = r"return \[\(1, 40, 8\)\] as before; if the model pads.*whole number of the call"
    with pytest.raises(CaptureError, match=said):
        fisopt.capture(model, {"video": torch.rand(VIDEO)}, spec=SPEC)


def test_the_models_own_error_is_shown() -> None:
    """A decision on data is no fault of the grid."""

    class Decides(Toy):
        def tokens(self, video: Tensor, height: Tensor) -> Tensor:
            return video[:, :, : height[0].item()].flatten(1, 3)

    model = Decides().eval().requires_grad_(False)
    inputs = {"video": torch.rand(VIDEO), "height": torch.tensor([2])}
    with pytest.raises(CaptureError, match=r"height\[0\]\.item\(\)") as error:
        fisopt.capture(model, inputs, spec=SPEC)
    assert "check the grid" not in str(error.value)


class Stacked(Toy):
    """Sizes as the original code of Wan reads them."""

    def tokens(self, video: Tensor) -> Tensor:
        frames, rows, columns = torch.stack([torch.tensor(u.shape[:3]) for u in video])[0].tolist()
        length = torch.prod(torch.tensor(video.shape[1:4])).item()
        x = video.reshape(1, frames * rows * columns, 8)
        return x[:, :length] + torch.arange(length)[:, None]


class Measured(Toy):
    """Numbers through int(), numpy and math, one of them changed after it was made."""

    def tokens(self, video: Tensor) -> Tensor:
        sizes = torch.tensor(video.shape)
        sizes[0] = 7 * sizes[0]
        longest = int(torch.tensor([u.shape[0] * 4 for u in video]).max())
        scale = math.sqrt(np.prod(video.shape[2:4]) / video[0, 0, :, :, 0].numel())
        return video.flatten(1, 3)[:, :longest] * scale + sizes[1:].numel()


@pytest.mark.parametrize("kind", [Stacked, Measured])
def test_numbers_made_from_shapes(kind: type[Toy]) -> None:
    model = kind().eval().requires_grad_(False)
    program = fisopt.capture(model, {"video": torch.rand(VIDEO)}, spec=SPEC)
    for frames in (6, 8):
        inputs = {"video": torch.rand(1, frames, 2, 2, 8)}
        torch.testing.assert_close(program.at(inputs)(**inputs), model(**inputs), rtol=0, atol=0)


def test_a_number_that_was_written_over_is_not_known() -> None:
    with shape_numbers():
        sizes = torch.tensor([2, 3])
        sizes[0] = 5
        assert sizes.tolist() == [5, 3]
        pair = torch.tensor([[1, 2], [3, 4]])
        assert [x.tolist() for x in pair.unbind(1)] == [[1, 3], [2, 4]]
        assert (pair * 2)[1].sum().item() == 14
        assert torch.tensor([7]).float().item() == 7.0


class Integers(nn.Module):
    """A block with a product of integers, as quantised linears write it."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Buffer(torch.randint(-9, 9, (16, 16), dtype=torch.int8))

    def forward(self, x: Tensor) -> Tensor:
        rows = (20 * x).round().clamp(-127, 127).to(torch.int8).flatten(0, 1)
        product = out_dtype(torch.ops.aten.mm.default, torch.int32, rows, self.weight)
        return x + product.unflatten(0, x.shape[:2]) / 400


def test_a_product_of_integers_is_written_out_in_operators_that_passes_know() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(Integers(), Integers()).eval()
    spec = ModelSpec(blocks=("*",), grid=lambda call: (call["input"].shape[1] // 4, 2, 2))
    inputs = {"input": torch.randn(1, 20, 16)}
    dense = fisopt.capture(model, inputs, spec)
    assert torch.equal(dense(**inputs), model(**inputs))
    sparse = fisopt.PassManager([fisopt.FrameInterleave(stride=2, blocks=":")]).run(dense)
    assert program_cost(sparse).total < 0.8 * program_cost(dense).total


def test_an_operator_that_calls_functions_is_refused() -> None:
    class Branches(Toy):
        def tokens(self, video: Tensor) -> Tensor:
            x = video.flatten(1, 3)
            return torch.cond(x.sum() > 0, lambda y: y + 1, lambda y: y - 1, (x,))

    model = Branches().eval().requires_grad_(False)
    with pytest.raises(CaptureError, match=r"(?s)cond .*choose another implementation"):
        fisopt.capture(model, {"video": torch.rand(VIDEO)}, spec=SPEC)


def test_a_pinned_attention_backend_is_no_part_of_a_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    case = zoo()["wan"]
    model = copy.deepcopy(case.model)
    del model.blocks[1:]
    registry = attention_dispatch._AttentionBackendRegistry  # pinning sets it for all models
    monkeypatch.setattr(registry, "_active_backend", registry._active_backend)
    model.set_attention_backend("flex")
    text = fisopt.format_graph(fisopt.capture(model, case.inputs(3, 2, 2)))
    assert "scaled_dot_product_attention" in text
    assert "flex" not in text


def test_a_grid_function_needs_no_example() -> None:
    def grid(call: Any) -> tuple[int, int, int]:
        return tuple(call["video"].shape[1:4])

    model = Stacked().eval().requires_grad_(False)
    spec = ModelSpec(blocks=("layers.*",), grid=grid)
    fast = fisopt.optimize(model, spec=spec, backend="eager")
    inputs = {"video": torch.rand(1, 3, 2, 4, 8)}
    torch.testing.assert_close(fast(**inputs), model(**inputs), rtol=0, atol=0)
    with pytest.raises(fisopt.InputError, match="give ModelSpec a function as grid"):
        fisopt.optimize(model, spec=SPEC, backend="eager")


def test_what_forward_keeps_is_said() -> None:
    class Keeps(Toy):
        def tokens(self, video: Tensor) -> Tensor:
            self.last = video
            return video.flatten(1, 3)

    model = Keeps().eval().requires_grad_(False)
    fast = fisopt.optimize(
        model, example_inputs={"video": torch.rand(VIDEO)}, spec=SPEC, backend="eager"
    )
    assert "capture: forward sets Keeps.last; the captured graph does not" in str(fast.report)


@pytest.mark.parametrize("frames", [(1, 5), (5, 1)], ids=["image first", "video first"])
def test_one_frame_and_many_in_either_order(frames: tuple[int, int]) -> None:
    """The batch of the later call is one that the first could have meant by frames."""
    model, form = plain_dit.build(FORMS["per_token"]), FORMS["per_token"]
    grid = (frames[0], 2, 3)
    first = plain_dit.inputs(form, *grid, batch=1)
    program = fisopt.capture(model, first, spec=ModelSpec(blocks=("layers.*",), grid=grid))
    for count, batch in ((frames[1], 1), (1, 4), (5, 4)):
        inputs = plain_dit.inputs(form, count, 2, 3, batch=batch)
        other = program.at(inputs)
        assert other.layout == TokenLayout(count, 2, 3)
        torch.testing.assert_close(other(**inputs), model(**inputs))
        if count > 2:
            assert [str(axis) for axis in axes_of(other.blocks[0].call)] == ["None", "f5*6", "None"]


def test_a_width_that_is_the_token_count() -> None:
    """The text is as wide as the video is long, at the first shape that is met."""
    model, form = plain_dit.build(Form()), Form()
    inputs = plain_dit.inputs(form, 4, 2, 4)
    assert inputs["text"].shape[-1] == inputs["video"].shape[1]
    program = fisopt.capture(model, inputs, spec=ModelSpec(blocks=("layers.*",), grid=(4, 2, 4)))
    torch.testing.assert_close(program(**inputs), model(**inputs), rtol=0, atol=0)


def test_rows_and_columns_follow_the_inputs() -> None:
    """A grid of numbers is scaled by what the inputs say, or the call is refused."""
    model = Counted().eval().requires_grad_(False)
    program = fisopt.capture(model, TOYS[Counted][0], spec=SPEC)
    wide = {"video": torch.rand(1, 5, 2, 4, 8), "seq_len": 40}
    assert program.at(wide).layout == TokenLayout(5, 2, 4)
    plain = plain_dit.build(Form())
    program = fisopt.capture(
        plain,
        plain_dit.inputs(Form(), 5, 2, 3),
        spec=ModelSpec(blocks=("layers.*",), grid=(5, 2, 3)),
    )
    with pytest.raises(fisopt.InputError, match="give ModelSpec a function as grid"):
        program.at(plain_dit.inputs(Form(), 5, 2, 4))


def test_a_grid_function_that_reads_values_is_told_so() -> None:
    """More frames are tried with zeros, in which a table of places says nothing."""

    class Placed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(2))

        def forward(self, tokens: Tensor, places: Tensor) -> Tensor:
            for layer in self.layers:
                tokens = layer(tokens + places.sum(-1, keepdim=True))
            return tokens

    def grid(call: dict[str, Any]) -> tuple[int, int, int]:
        frames, rows, columns = (int(x) + 1 for x in call["places"].amax(0))
        return frames, rows, columns

    places = torch.cartesian_prod(torch.arange(5), torch.arange(2), torch.arange(3)).float()
    inputs = {"tokens": torch.randn(1, 30, 4), "places": places}
    said = r"says \(1, 1, 1\), wanted \(6, 2, 3\); more frames are tried with zeros .*`resized`"
    with pytest.raises(CaptureError, match=said):
        fisopt.capture(
            Placed().eval().requires_grad_(False), inputs, ModelSpec(("layers.*",), grid)
        )
