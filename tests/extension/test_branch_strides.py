"""A user's pass: self-attention, cross-attention and feed-forward on frames of their own."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers import WanTransformer3DModel
from torch import Tensor

import fisopt

FRAMES, INNER = 7, 4


@dataclass(frozen=True)
class BranchStrides(fisopt.Pass):
    self_attention: int
    cross_attention: int
    feed_forward: int

    def run(self, rewriter: fisopt.Rewriter) -> None:
        for block in rewriter.program.blocks:
            kept = {b: every(getattr(self, b.kind)) for b in block.branches}
            parts = {b.update: fisopt.Frames(tuple(frames), FRAMES) for b, frames in kept.items()}
            with rewriter.edit(block) as edit:
                edit.compute(parts, cut=frozenset().union(*(b.nodes for b in kept)))
        rewriter.note(f"strides of {self}")


def every(stride: int) -> list[int]:
    return sorted({*range(0, FRAMES, stride), FRAMES - 1})


def on_frames(forward: Callable[..., Tensor], kept: list[int]) -> Callable[..., Tensor]:
    rows = torch.cat([torch.arange(INNER) + frame * INNER for frame in kept])
    hats = np.stack([np.interp(range(FRAMES), kept, hat) for hat in np.eye(len(kept))])

    def some(x: Tensor, *rest: Any) -> Tensor:
        taken = [tuple(t[:, rows] for t in r) if isinstance(r, tuple) else r for r in rest]
        known = forward(x[:, rows], *taken).unflatten(1, (len(kept), INNER))
        return torch.einsum("bkpd,kf->bfpd", known, torch.tensor(hats).float()).flatten(1, 2)

    return some


def test_a_stride_for_every_branch() -> None:
    heads = {"num_attention_heads": 2, "attention_head_dim": 12, "rope_max_seq_len": 32}
    sizes = {"in_channels": 4, "out_channels": 4, "text_dim": 16, "freq_dim": 32, "ffn_dim": 48}
    model = WanTransformer3DModel(**heads, **sizes, num_layers=2).eval()
    inputs = {"hidden_states": torch.randn(2, 4, FRAMES, 4, 4), "timestep": torch.tensor([9, 3])}
    inputs["encoder_hidden_states"] = torch.randn(2, 7, 16)
    program = fisopt.capture(model, inputs)
    result = fisopt.PassManager([BranchStrides(2, 3, 4)]).run(program)(**inputs).sample
    for block in model.blocks:
        for part, stride in ((block.attn1, 2), (block.attn2, 3), (block.ffn, 4)):
            part.forward = on_frames(part.forward, every(stride))
    with torch.no_grad():
        torch.testing.assert_close(result, model(**inputs).sample)
