"""Stand-ins for the tiny repositories that diffusers' tests load, for a machine without the Hub.

They take the form of a cache of the Hub: configurations, and tokenizers whose words are characters.
Tests that compare numbers with those of the true repositories fail under them, with fisopt or not.
"""

from __future__ import annotations

import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

import transformers

LETTERS = [c for c in string.printable if not c.isspace()]
Save = Callable[[Path], Any]


def make(cache: Path) -> None:
    """Write every stand-in into a folder that ``HF_HUB_CACHE`` may name."""
    for repository, save in STAND_INS.items():
        folder = cache / f"models--{repository.replace('/', '--')}"
        save(folder / "snapshots" / "0")
        (folder / "refs").mkdir(parents=True, exist_ok=True)
        (folder / "refs" / "main").write_text("0")


def _t5(folder: Path) -> None:
    config = transformers.T5Config(
        vocab_size=1103, d_model=32, d_kv=8, d_ff=37, num_layers=5, num_heads=4
    )
    config.save_pretrained(folder)
    words = ["<pad>", "</s>", "<unk>", "\u2581", *LETTERS]
    transformers.T5Tokenizer([(word, -1.0) for word in words]).save_pretrained(folder)


def _llama(folder: Path) -> None:
    words = ["<unk>", "<s>", "</s>", "<pad>", "\u2581", *(f"<0x{i:02X}>" for i in range(256))]
    vocabulary = {word: i for i, word in enumerate([*words, *LETTERS])}
    tokenizer = transformers.LlamaTokenizer(vocabulary, [], pad_token="<pad>")
    tokenizer.save_pretrained(folder / "tokenizer")


def _clip(folder: Path) -> None:
    ends = ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {w: i for i, w in enumerate([*LETTERS, *(f"{c}</w>" for c in LETTERS), *ends])}
    transformers.CLIPTokenizer(vocabulary, []).save_pretrained(folder)


def _qwen(folder: Path) -> None:
    words = ["<|endoftext|>", "\u0120", "\u010a", *LETTERS]
    tokenizer = transformers.Qwen2Tokenizer({word: i for i, word in enumerate(words)}, [])
    tokenizer.chat_template = (
        "{% for said in messages %}{{ said.role }}: {{ said.content }}\n{% endfor %}"
    )
    tokenizer.save_pretrained(folder)


def _siglip(folder: Path) -> None:
    config = transformers.SiglipVisionConfig(
        hidden_size=32,
        intermediate_size=37,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=30,
        patch_size=2,
    )
    transformers.SiglipVisionModel(config).save_pretrained(folder)
    transformers.SiglipImageProcessor().save_pretrained(folder)


STAND_INS: dict[str, Save] = {
    "hf-internal-testing/tiny-random-t5": _t5,
    "hf-internal-testing/tiny-random-clip": _clip,
    "hf-internal-testing/tiny-random-SiglipVisionModel": _siglip,
    "hf-internal-testing/tiny-random-Qwen2VLForConditionalGeneration": _qwen,
    "finetrainers/dummy-hunyaunvideo": _llama,
}
