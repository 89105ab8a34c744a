"""Guesses against what adapters say, of classes that have none, and what is refused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

import fisopt
from fisopt import CaptureError, FrameInterleave, InputError
from fisopt.models import guess
from tests.zoo import forms

CALLED = [
    "allegro",
    "anyflow",
    "chronoedit",
    "cogvideox_2b",
    "easyanimate",
    "framepack",
    "helios",
    "hunyuan_video15",
    "hunyuan_video15_i2v",
    "kandinsky5",
    "kandinsky6",
    "latte",
    "ltx",
    "ltx2",
    "mochi",
    "motif_video",
    "sana_video",
    "skyreels_v2",
    "wan",
    "wan_ti2v",
]
"""Forms whose call says enough, also where the adapter rewrites the model in `prepare`."""
MADE = [
    "allegro",
    "anyflow",
    "cogvideox_2b",
    "easyanimate",
    "helios",
    "kandinsky6",
    "latte",
    "ltx",
    "motif_video",
    "sana_video",
    "skyreels_v2",
    "wan",
    "wan_vace",
]
"""Forms whose call can be made from signature and config."""
KINDS = {"wan", "ltx"}


def some(names: list[str]) -> pytest.MarkDecorator:
    params = [
        pytest.param(name, marks=() if name in KINDS else (pytest.mark.slow,)) for name in names
    ]
    return pytest.mark.parametrize("name", params)


@some(CALLED)
def test_guesses_what_the_adapter_says(name: str) -> None:
    """From the arguments of a call, without a look at the adapter."""
    case = forms()[name]
    found = guess(case.model, case.inputs(5, 3, 4))
    assert set(found.spec.blocks) == set(case.spec.blocks)
    for grid in ((5, 3, 4), (7, 4, 3)):
        assert found.spec.grid_of(case.inputs(*grid)) == grid
    assert "5x3x4 from" in found.why


@some(MADE)
def test_makes_the_arguments_of_a_call(name: str) -> None:
    case = forms()[name]
    found = guess(case.model)
    assert set(found.spec.blocks) == set(case.spec.blocks)
    assert found.spec.grid_of(found.inputs) == case.spec.grid_of(found.inputs)
    with torch.no_grad():
        case.model(**found.inputs)


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, 2, -1)).permute(2, 0, 3, 1, 4)
        y = nn.functional.scaled_dot_product_attention(q, k, v)
        return x + self.out(y.transpose(1, 2).flatten(2))


class Unknown(nn.Module):
    """A video model that nobody has seen, without a config."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Linear(4, 16)
        self.layers = nn.ModuleList(Block(16) for _ in range(3))
        self.head = nn.Linear(16, 4)

    def forward(self, hidden_states: Tensor, timestep: Tensor) -> Tensor:
        x = hidden_states * timestep[:, None, None, None, None]
        tokens = self.patch(x.flatten(2).transpose(1, 2))
        for layer in self.layers:
            tokens = layer(tokens)
        return self.head(tokens)


def unknown() -> Unknown:
    torch.manual_seed(0)
    return Unknown().eval().requires_grad_(False)


def call(*shape: int) -> dict[str, Any]:
    return {"hidden_states": torch.randn(shape), "timestep": torch.ones(shape[0])}


def test_optimize_guesses_at_the_first_call_and_says_so() -> None:
    model, inputs = unknown(), call(2, 4, 7, 2, 3)
    fast = fisopt.optimize(model, passes=[FrameInterleave(2, blocks=":")], backend="eager")
    got = fast(**inputs)
    spec = fisopt.ModelSpec(blocks=("layers.*",), grid=(7, 2, 3))
    told = fisopt.optimize(
        model,
        passes=[FrameInterleave(2, blocks=":")],
        spec=spec,
        example_inputs=inputs,
        backend="eager",
    )
    torch.testing.assert_close(got, told(**inputs), rtol=0, atol=0)
    line = "no adapter for Unknown; guessed from the first call: 7x2x3 from hidden_states [B, C, F"
    assert line in str(fast.report)
    assert "guessed" not in str(told.report)
    assert fast(**call(2, 4, 5, 3, 2)).shape == (2, 30, 4)


def test_capture_guesses_from_its_inputs() -> None:
    program = fisopt.capture(unknown(), call(1, 4, 7, 2, 3))
    assert str(program.layout) == "7x2x3"
    assert any("guessed" in note for note in program.source.notes)


class Masked(Unknown):
    """Runs on as many rows of a text as its mask says, and needs the video in a list."""

    def forward(self, videos: list[Tensor], text: Tensor, mask: Tensor) -> Tensor:
        tokens = self.patch(videos[0].flatten(2).transpose(1, 2))
        joined = torch.cat([tokens, text[:, : int(mask.sum())]], 1)
        for layer in self.layers:
            joined = layer(joined)
        return self.head(joined[:, : tokens.shape[1]])


def test_values_of_arguments_decide_what_runs() -> None:
    """It is guessed; a capture names the line that reads a value."""
    model = Masked().eval().requires_grad_(False)
    inputs = {
        "videos": [torch.randn(1, 4, 7, 2, 3)],
        "text": torch.randn(1, 9, 16),
        "mask": torch.tensor([1, 1, 1, 1, 0, 0, 0, 0, 0]),
    }
    found = guess(model, inputs)
    assert found.why.startswith("7x2x3 from videos [B, C, F, H, W]")
    assert found.spec.grid_of({"videos": [torch.randn(1, 4, 5, 3, 2)]}) == (5, 3, 2)
    with pytest.raises(CaptureError, match=r"(?s)int\(mask\.sum\(\)\).*depends on values"):
        fisopt.capture(model, inputs, found.spec)
    with pytest.raises(InputError, match="no reading of"):  # whose grid would it be?
        guess(model, {**inputs, "videos": 2 * inputs["videos"]})


class Beside(Unknown):
    """Blocks over the text, and over the video behind a history that is no argument."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.ModuleList(Block(16) for _ in range(2))

    def forward(self, hidden_states: Tensor, past: Tensor, text: Tensor) -> Tensor:
        history = past.flatten(2).transpose(1, 2)
        for layer in self.words:
            text = layer(text)
        tokens = torch.cat([history, hidden_states.flatten(2).transpose(1, 2)], 1)
        joined = torch.cat([self.patch(tokens), text], 1)
        for layer in self.layers:
            joined = layer(joined)
        return self.head(joined[:, history.shape[1] : -text.shape[1]])


def test_what_follows_the_frames_comes_before_what_has_as_many_tokens() -> None:
    """Read as [B, F, C, H, W], the history has as many tokens as the text, at any length."""
    model = Beside().eval().requires_grad_(False)
    inputs = {
        "hidden_states": torch.randn(1, 4, 7, 2, 3),
        "past": torch.randn(1, 4, 2, 2, 3),
        "text": torch.randn(1, 24, 16),
    }
    found = guess(model, inputs)
    assert found.spec.blocks == ("layers.*",)
    assert found.spec.grid_of(inputs) == (7, 2, 3)


class Two(nn.Module):
    """Two videos, each with blocks of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = unknown(), unknown()

    def forward(self, hidden_states: Tensor, other: Tensor, timestep: Tensor) -> Any:
        return self.first(hidden_states, timestep), self.second(other, timestep)


def test_two_readings_are_named_and_none_is_taken() -> None:
    model = Two().eval()
    inputs = {**call(1, 4, 7, 2, 3), "other": torch.randn(1, 4, 5, 3, 3)}
    both = (
        r"two readings fit, so none is taken: 7x2x3 from hidden_states .* blocks first\.layers\.\*"
        r" or 5x3x3 from other .* blocks second\.layers\.\*.*spec="
    )
    with pytest.raises(InputError, match=both):
        guess(model, inputs)
    fast = fisopt.optimize(model, passes=[], backend="eager")
    with pytest.raises(InputError, match=both):
        fast(**inputs)
    fisopt.restore(fast)


def test_nothing_fits() -> None:
    """The message has the shapes, the lists of the model, and what to write."""
    inputs = {"hidden_states": torch.randn(1, 4, 7), "timestep": torch.ones(1)}

    class Sequence(Unknown):
        def forward(self, hidden_states: Tensor, timestep: Tensor) -> Tensor:
            return super().forward(hidden_states[..., None, None], timestep)

    model = Sequence().eval().requires_grad_(False)
    said = r"no reading of \{'hidden_states': \(1, 4, 7\).* fits the blocks \['layers\.\*'\].*spec="
    with pytest.raises(InputError, match=said):
        guess(model, inputs)


def test_a_model_that_does_not_run() -> None:
    """Its own line is shown, and so are the arguments that were tried."""
    with pytest.raises(
        InputError, match=r"does not run on shapes alone: RuntimeError.*\n.*self\.patch"
    ):
        guess(unknown(), call(1, 5, 7, 2, 3))


@pytest.mark.parametrize("model", [nn.Linear(2, 2), nn.ReLU()], ids=["linear", "relu"])
def test_without_blocks_there_is_nothing_to_guess(model: nn.Module) -> None:
    with pytest.raises(InputError, match=r"no adapter for .*spec="):
        fisopt.optimize(model.eval().requires_grad_(False))


class Clips(Unknown):
    """Clips without a batch in a list, padded to a length, as Wan's own code takes them."""

    def forward(self, x: list[Tensor], seq_len: int) -> list[Tensor]:
        rows = [self.patch(clip.flatten(1).mT) for clip in x]
        tokens = torch.stack([nn.functional.pad(r, (0, 0, 0, seq_len - len(r))) for r in rows])
        for layer in self.layers:
            tokens = layer(tokens)
        return [self.head(r[: len(s)]) for r, s in zip(tokens, rows, strict=True)]


@pytest.mark.parametrize("count", [1, 2])
def test_a_list_of_clips(count: int) -> None:
    def clips(*size: int) -> dict[str, Any]:
        tokens = size[0] * size[1] * size[2]
        return {"x": [torch.randn(4, *size) for _ in range(count)], "seq_len": tokens}

    model = Clips().eval().requires_grad_(False)
    found = guess(model, clips(7, 2, 3))
    assert found.why.startswith("7x2x3 from x [C, F, H, W] in patches of 1x1x1")
    assert found.spec.grid_of(clips(5, 3, 4)) == (5, 3, 4)
    fast = fisopt.optimize(model, passes=[FrameInterleave(1)], backend="eager")
    inputs = clips(5, 3, 4)
    for got, want in zip(fast(**inputs), model(**inputs), strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=1e-6)


@pytest.mark.parametrize("tail", [1, 4, 6, 30])
def test_clips_that_are_padded_beyond_their_tokens(tail: int) -> None:
    """Smaller grids fit into the padding too; only one is as long as the shortest length."""

    def clips(*size: int) -> dict[str, Any]:
        tokens = size[0] * size[1] * size[2]
        return {"x": [torch.randn(4, *size)], "seq_len": tokens + tail}

    model = Clips().eval().requires_grad_(False)
    found = guess(model, clips(8, 4, 6))
    assert found.why.startswith("8x4x6 from x [C, F, H, W] in patches of 1x1x1")
    fast = fisopt.optimize(model, passes=[FrameInterleave(1)], backend="eager")
    inputs = clips(5, 3, 4)
    torch.testing.assert_close(fast(**inputs)[0], model(**inputs)[0], rtol=0, atol=1e-6)


def test_a_smaller_grid_in_padded_tokens_is_no_reading() -> None:
    """The patch is one that no reading has: what fits into the padding is not taken."""

    class Threes(Clips):
        def forward(self, x: list[Tensor], seq_len: int) -> list[Tensor]:
            pooled = [clip.unflatten(-1, (-1, 3)).mean(-1) for clip in x]
            pooled = [clip.unflatten(-2, (-1, 3)).mean(-2) for clip in pooled]
            return super().forward(pooled, seq_len)

    model = Threes().eval().requires_grad_(False)
    with pytest.raises(InputError, match=r"no reading of .*spec="):
        guess(model, {"x": [torch.randn(4, 6, 12, 12)], "seq_len": 300})


class Arguments(NamedTuple):
    video: Tensor
    times: Tensor


class Nested(Unknown):
    def forward(self, given: Arguments | Mapping[str, Tensor]) -> Tensor:
        pair = given.values() if isinstance(given, Mapping) else given
        return super().forward(*pair)


@pytest.mark.parametrize("named", [True, False], ids=["named tuple", "dict"])
def test_latents_inside_of_an_argument(named: bool) -> None:
    def given(*size: int) -> dict[str, Any]:
        made = Arguments(torch.randn(1, 4, *size), torch.ones(1))
        return {"given": made if named else made._asdict()}

    found = guess(Nested().eval().requires_grad_(False), given(7, 2, 3))
    assert found.why.startswith("7x2x3 from given.video [B, C, F, H, W]")
    assert found.spec.grid_of(given(5, 3, 4)) == (5, 3, 4)


class Held(Unknown):
    """Blocks in what is no `ModuleList`."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        if kind == "dict":
            self.layers: Any = nn.ModuleDict({f"block{i}": x for i, x in enumerate(self.layers)})
        else:
            self.layers = nn.Sequential(*self.layers)

    def forward(self, hidden_states: Tensor) -> Tensor:
        x = self.patch(hidden_states.flatten(2).transpose(1, 2))
        for layer in self.layers.children():
            x = layer(x)
        return self.head(x)


@pytest.mark.parametrize("kind", ["dict", "sequential"])
def test_blocks_in_other_containers(kind: str) -> None:
    model = Held(kind).eval().requires_grad_(False)
    found = guess(model, {"hidden_states": torch.randn(1, 4, 7, 2, 3)})
    assert found.spec.blocks == ("layers.*",)
    assert found.why.startswith("7x2x3")


class Written(nn.Module):
    """Attention that torch has no operator for, or in a module of torch's own."""

    def __init__(self, own: bool) -> None:
        super().__init__()
        self.qkv = nn.Linear(16, 48)
        self.attend = nn.MultiheadAttention(16, 2, batch_first=True) if own else None

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, -1)
        if self.attend is not None:
            return x + self.attend(q, k, v, need_weights=False)[0]
        return x + torch.softmax(q @ k.mT, -1) @ v


class Refined(Unknown):
    """A list over the text has attention, and that over the video is written in another way."""

    def __init__(self, own: bool) -> None:
        super().__init__()
        self.words, self.layers = self.layers, nn.ModuleList(Written(own) for _ in range(3))

    def forward(self, hidden_states: Tensor, text: Tensor) -> Tensor:
        for layer in self.words:
            text = layer(text)
        tokens = self.patch(hidden_states.flatten(2).transpose(1, 2)) + text.mean(1, keepdim=True)
        for layer in self.layers:
            tokens = layer(tokens)
        return self.head(tokens)


@pytest.mark.parametrize("own", [True, False], ids=["module", "written"])
def test_attention_of_any_form_is_attention(own: bool) -> None:
    model = Refined(own).eval().requires_grad_(False)
    inputs = {"hidden_states": torch.randn(1, 4, 7, 2, 3), "text": torch.randn(1, 5, 16)}
    assert guess(model, inputs).spec.blocks == ("layers.*",)


@dataclass
class Output:
    sample: Tensor


class Hidden(Unknown):
    def forward(self, hidden_states: Tensor, timestep: Tensor) -> Any:
        return Output(super().forward(hidden_states, timestep))


def test_results_that_hide_tensors_are_refused() -> None:
    """Nothing of them follows the frames, so that any reading would do."""
    model, said = Hidden().eval().requires_grad_(False), r"type Output, .*register_dataclass"
    spec = fisopt.ModelSpec(blocks=("layers.*",), grid=(7, 2, 3))
    with pytest.raises(CaptureError, match=said):
        guess(model, call(1, 4, 7, 2, 3))
    with pytest.raises(CaptureError, match=said):
        fisopt.capture(model, call(1, 4, 7, 2, 3), spec)


class OneLength(Unknown):
    """Learned positions for one length, behind registers."""

    def __init__(self) -> None:
        super().__init__()
        self.places, self.registers = (
            nn.Parameter(torch.ones(42, 16)),
            nn.Parameter(torch.ones(3, 16)),
        )

    def forward(self, hidden_states: Tensor, timestep: Tensor) -> Tensor:
        tokens = self.patch(hidden_states.flatten(2).transpose(1, 2)) + self.places
        joined = torch.cat([self.registers[None], tokens], 1)
        for layer in self.layers:
            joined = layer(joined)
        return self.head(joined[:, 3:])


def test_more_tokens_than_a_reading_says_are_no_fit_at_one_length() -> None:
    model = OneLength().eval().requires_grad_(False)
    with pytest.raises(InputError, match=r"at this length alone: .*'layers\.\*',\), grid="):
        guess(model, call(1, 4, 7, 2, 3))


def test_blocks_that_are_attributes_are_named() -> None:
    class Apart(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head, self.tail = nn.Linear(2, 2), nn.Linear(2, 2)
            self.first, self.second = (
                nn.TransformerEncoderLayer(8, 2),
                nn.TransformerEncoderLayer(8, 2),
            )

        def forward(self, video: torch.Tensor) -> torch.Tensor:
            return video

    with pytest.raises(fisopt.InputError, match="first, second are all TransformerEncoderLayer"):
        fisopt.optimize(Apart().eval(), [fisopt.FrameInterleave(2)])
