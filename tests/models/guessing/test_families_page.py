"""The page that lists the video transformers of diffusers."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from torch import nn

import fisopt
from fisopt import CaptureError, InputError, models
from fisopt.models import guess

PAGE = Path(__file__).parents[3] / "docs" / "families.md"
ROW = re.compile(r"^\| `(\w+)` \| (\w+) \|", re.MULTILINE)
OTHERS = {"JoyImageEditTransformer3DModel", "JoyImageEditPlusTransformer3DModel"}
"""Models of images that are named like those of videos."""
HEADS = {"num_attention_heads": 2, "attention_head_dim": 16, "num_layers": 2}
GUESSED: dict[str, dict[str, Any]] = {
    "ConsisIDTransformer3DModel": {
        **HEADS,
        "in_channels": 4,
        "out_channels": 4,
        "time_embed_dim": 8,
        "text_embed_dim": 8,
        "max_text_seq_length": 8,
        "use_rotary_positional_embeddings": True,
    },
    "Kandinsky6SRTransformer3DModel": {
        "in_visual_dim": 4,
        "out_visual_dim": 4,
        "time_dim": 32,
        "model_dim": 48,
        "ff_dim": 64,
        "num_visual_blocks": 2,
        "axes_dims": (8, 8, 8),
    },
    "SanaWMTransformer3DModel": {
        "in_channels": 4,
        "num_layers": 4,
        "hidden_size": 48,
        "num_attention_heads": 2,
        "linear_head_dim": 24,
        "caption_channels": 16,
        "chunk_plucker_channels": 6,
    },
    "Cosmos3OmniTransformer": {
        "head_dim": 6,
        "hidden_act": "relu2",
        "hidden_size": 12,
        "intermediate_size": 24,
        "latent_channel": 2,
        "latent_patch_size": 1,
        "num_attention_heads": 2,
        "num_hidden_layers": 2,
        "num_key_value_heads": 1,
        "patch_latent_dim": 2,
        "qk_norm_for_text": False,
        "rms_norm_eps": 1e-5,
        "rope_axes_dim": [1, 1, 1],
        "rope_theta": 1e8,
        "vocab_size": 32,
    },
}
NOT_GUESSED: dict[str, dict[str, Any]] = {
    "AnyFlowFARTransformer3DModel": {
        **HEADS,
        "in_channels": 4,
        "out_channels": 4,
        "text_dim": 16,
        "freq_dim": 32,
        "ffn_dim": 32,
    },
    "SanaWMLTX2RefinerTransformer3DModel": {
        **HEADS,
        "in_channels": 4,
        "out_channels": 4,
        "cross_attention_dim": 32,
        "audio_num_attention_heads": 2,
        "audio_attention_head_dim": 8,
        "audio_cross_attention_dim": 16,
        "caption_channels": 16,
    },
    "WanAnimate2Transformer3DModel": {
        "text_len": 16,
        "in_dim": 8,
        "dim": 32,
        "ffn_dim": 32,
        "freq_dim": 16,
        "text_dim": 16,
        "out_dim": 4,
        "num_heads": 2,
        "num_layers": 2,
    },
}


def _omni() -> dict[str, Any]:
    """A call of a sequence of seven words and a video of 5x3x4 tokens."""
    words, (frames, rows, columns) = 7, (5, 3, 4)
    video = torch.arange(words, words + frames * rows * columns)
    return {
        "input_ids": torch.arange(words),
        "text_indexes": torch.arange(words),
        "position_ids": torch.zeros(3, words + len(video), dtype=torch.long),
        "und_len": words,
        "sequence_length": words + len(video),
        "vision_tokens": [torch.randn(1, 2, frames, rows, columns)],
        "vision_token_shapes": [(frames, rows, columns)],
        "vision_sequence_indexes": video,
        "vision_mse_loss_indexes": video,
        "vision_timesteps": torch.full((len(video),), 500.0),
        "vision_noisy_frame_indexes": [torch.arange(frames)],
        "return_dict": False,
    }


CALLS = {"Cosmos3OmniTransformer": _omni}
"""A call of classes whose arguments cannot be made from signature and config."""


def rows() -> dict[str, str]:
    return dict(ROW.findall(PAGE.read_text()))


def build(name: str, config: dict[str, Any]) -> nn.Module:
    torch.manual_seed(0)
    made: nn.Module = getattr(diffusers, name)(**config)
    return made.eval().requires_grad_(False)


def test_lists_every_class() -> None:
    names = {name for name in dir(diffusers) if name.endswith("Transformer3DModel")} - OTHERS
    assert set(rows()) == names | {"Cosmos3OmniTransformer"}
    by_adapter = {family.transformer.__name__ for family in models.families().values()}
    assert {name for name, by in rows().items() if by == "adapter"} == by_adapter
    assert {name for name, by in rows().items() if by == "guess"} == set(GUESSED)
    assert {name for name, by in rows().items() if by == "no"} == set(NOT_GUESSED)


@pytest.mark.slow
@pytest.mark.parametrize("name", GUESSED)
def test_guesses(name: str) -> None:
    model = build(name, GUESSED[name])
    if name in CALLS:
        with pytest.raises(InputError, match=rf"{name}: no inputs can be made"):
            guess(model)
    found = guess(model, CALLS[name]() if name in CALLS else None)
    assert len(found.spec.blocks) == 1
    if "not captured" in PAGE.read_text().split(f"`{name}`")[1].splitlines()[0]:
        with pytest.raises(CaptureError):
            fisopt.capture(model, found.inputs, found.spec)
        return
    program = fisopt.capture(model, found.inputs, found.spec)
    torch.testing.assert_close(program(**found.inputs)[0], model(**found.inputs)[0])


@pytest.mark.slow
@pytest.mark.parametrize("name", NOT_GUESSED)
def test_says_what_is_missing(name: str) -> None:
    with pytest.raises(InputError, match=rf"{name}: no inputs can be made from its signature"):
        guess(build(name, NOT_GUESSED[name]))
