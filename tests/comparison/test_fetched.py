from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torchmetrics.image import lpip
from transformers import CLIPConfig, CLIPModel

import fisopt
from fisopt.comparison.scoring import scored


def clip_model(folder: Path) -> Path:
    """An untrained CLIP of one layer, saved as a trained one is."""
    torch.manual_seed(0)
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    text = {**small, "num_attention_heads": 2, "vocab_size": 30, "max_position_embeddings": 12}
    text |= {"bos_token_id": 16, "eos_token_id": 17}
    vision = {**small, "num_attention_heads": 2, "image_size": 16, "patch_size": 8}
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)
    CLIPModel(config).save_pretrained(folder)
    letters = [*"abcdelru", *(f"{x}</w>" for x in "abcdelru")]
    words = [*letters, "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 12}
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    picture = {
        "image_processor_type": "CLIPImageProcessor",
        "processor_class": "CLIPProcessor",
        "size": {"shortest_edge": 16},
        "crop_size": {"height": 16, "width": 16},
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(picture))
    return folder


def test_clip_scorer_is_the_cosine(tmp_path: Path) -> None:
    folder = clip_model(tmp_path)
    rng = np.random.default_rng(0)
    clip = rng.random((6, 24, 32, 3)).astype(np.float32)
    scorer = fisopt.clip_scorer(str(folder), frames=3)
    found = scored(scorer, clip, "a red cube")
    assert list(found) == ["CLIP"]
    assert -1 <= found["CLIP"] <= 1
    assert scored(scorer, clip, "blue") != found
    assert scored(scorer, clip, "a red cube") == found
    assert scored(scorer, 1 - clip, "a red cube") != found


def test_clip_model_that_is_not_there_is_named() -> None:
    with pytest.raises(fisopt.OptionError, match="nowhere"):
        fisopt.clip_scorer("./nowhere")


def test_lpips_takes_frames_in_the_unit_range(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the distance of another network in the place of AlexNet's, which is fetched."""
    asked: dict[str, Any] = {}

    class Distance(torch.nn.Module):
        def __init__(self, **options: Any) -> None:
            super().__init__()
            asked.update(options)

        def forward(self, ours: torch.Tensor, theirs: torch.Tensor) -> torch.Tensor:
            asked["shape"] = tuple(ours.shape)
            return (ours - theirs).square().mean()

    module = ModuleType("torchvision")
    module.__spec__ = sys.__spec__
    monkeypatch.setitem(sys.modules, "torchvision", module)
    monkeypatch.setattr(lpip, "LearnedPerceptualImagePatchSimilarity", Distance, raising=False)
    clip = np.random.default_rng(0).random((20, 8, 12, 3)).astype(np.float32)
    assert fisopt.lpips(frames=5)(clip, clip) == 0
    assert asked == {"net_type": "alex", "normalize": True, "shape": (5, 3, 8, 12)}


def test_lpips_without_torchvision_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(fisopt.OptionError, match=r"fisopt\[eval\]"):
        fisopt.lpips()
