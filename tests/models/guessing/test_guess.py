"""Guesses against what adapters say, of classes that have none, and what is refused."""

from __future__ import annotations

from typing import Any

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
