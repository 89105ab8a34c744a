"""The shape classes for which kernels are compiled ahead of time: one call of each, on the CPU.

What a kernel becomes depends on types, widths, masks and strides, not on the number of tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fisopt.codegen.kernels import match_tokens, reduce_attend_restore, tile_attention
from fisopt.codegen.kernels.launching import Launch

TOKENS = 1024
HEADS = 4


@dataclass(frozen=True)
class Case:
    """A kernel at a shape class.

    Attributes:
        kernel: its name.
        shape_class: what the compiled code depends on, in words.
        configs: its tile choices.
        default: the choice without a measurement on an architecture such as 90.
        prepare: makes the call for a tile choice.
    """

    kernel: str
    shape_class: str
    configs: list[Any]
    default: Callable[[int], Any]
    prepare: Callable[[Any], Launch]


def _attention(
    width: int, dtype: torch.dtype, mask: str
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]:
    """Query, key, value and result as models lay them out, and a mask."""
    query, key, value, out = (
        torch.empty(1, TOKENS, HEADS, width, dtype=dtype).transpose(1, 2) for _ in range(4)
    )
    extra = {
        "padding": torch.empty(1, 1, 1, TOKENS, dtype=torch.bool),
        "bias": torch.empty(1, 1, TOKENS, TOKENS, dtype=dtype),
    }.get(mask)
    return query, key, value, out, extra


def _tile_attention(width: int, dtype: torch.dtype, mask: str, lse: bool, config: Any) -> Launch:
    query, key, value, out, extra = _attention(width, dtype, mask)
    rows = torch.tensor([0, TOKENS // 2, TOKENS], dtype=torch.int32)
    keys = torch.zeros(1, 2, 2, 2, dtype=torch.int32)
    room = query.new_empty(query.shape[:-1], dtype=torch.float32) if lse else None
    return tile_attention.prepare(query, key, value, extra, rows, keys, None, out, room, config)


def _match_tokens(width: int, dtype: torch.dtype, config: Any) -> Launch:
    video = torch.empty(HEADS, TOKENS, width, dtype=dtype)
    chosen, sources = video[:, :256].contiguous(), torch.arange(TOKENS - 256)
    norm = torch.empty(HEADS, 256)
    found = torch.empty(HEADS, TOKENS - 256, dtype=torch.int32)
    distance, own = torch.empty(2, HEADS, TOKENS - 256)
    return match_tokens.prepare(video, sources, chosen, norm, found, distance, own, config)


def _reduce_attend_restore(
    width: int, dtype: torch.dtype, mask: str, all_keys: bool, config: Any
) -> Launch:
    query, key, value, out, extra = _attention(width, dtype, mask)
    kept, origin = (torch.zeros(1, HEADS, TOKENS, dtype=torch.int32) for _ in range(2))
    keys = None if all_keys else kept
    return reduce_attend_restore.prepare(
        query, key, value, extra, kept, keys, origin, None, out, config
    )


def _name(width: int, dtype: torch.dtype, *more: str) -> str:
    words = [f"d{width}", str(dtype).removeprefix("torch."), *more]
    return ", ".join(word for word in words if word not in ("", "none"))


def cases() -> Iterator[Case]:
    """Every kernel at every shape class."""
    bf16, fp16 = torch.bfloat16, torch.float16
    for width, dtype, mask, lse in (
        (128, bf16, "none", False),
        (64, bf16, "none", False),
        (96, bf16, "none", False),
        (256, bf16, "none", False),
        (128, fp16, "none", False),
        (128, bf16, "padding", False),
        (128, bf16, "bias", False),
        (128, bf16, "none", True),
    ):
        yield Case(
            "tile_attention",
            _name(width, dtype, mask, "log-sum-exp" if lse else ""),
            _tile_configs(width, mask),
            partial(_tile_default, width, mask),
            partial(_tile_attention, width, dtype, mask, lse),
        )
    for width, dtype in ((128, bf16), (64, bf16), (128, fp16)):
        yield Case(
            "match_tokens",
            _name(width, dtype),
            match_tokens.CONFIGS,
            lambda arch: match_tokens.default_config(arch >= 90),
            partial(_match_tokens, width, dtype),
        )
    for width, dtype, mask, all_keys in (
        (128, bf16, "none", False),
        (64, bf16, "none", False),
        (128, fp16, "padding", False),
        (128, bf16, "none", True),
    ):
        yield Case(
            "reduce_attend_restore",
            _name(width, dtype, mask, "all keys" if all_keys else ""),
            reduce_attend_restore.CONFIGS,
            partial(reduce_attend_restore.default_config, width),
            partial(_reduce_attend_restore, width, dtype, mask, all_keys),
        )


def _tile_configs(width: int, mask: str) -> list[Any]:
    fits = tile_attention.overlaps(width, 90, True, _masked(mask))
    return [*tile_attention.CONFIGS, *([tile_attention.OVERLAPPED] if fits else [])]


def _tile_default(width: int, mask: str, architecture: int) -> Any:
    place = (width, architecture, architecture >= 90, _masked(mask))
    overlapped = tile_attention.overlaps(*place)
    return tile_attention.OVERLAPPED if overlapped else tile_attention.default_config(*place)


def _masked(mask: str) -> tile_attention.Masked:
    rows: dict[str, tile_attention.Masked] = {"padding": "alike", "bias": "each"}
    return rows.get(mask, "no")
