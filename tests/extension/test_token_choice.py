"""A user's pass: some blocks compute the tokens of largest norm, each batch item its own."""

import operator
from collections.abc import Callable
from dataclasses import dataclass

import torch
from diffusers import WanTransformer3DModel
from torch import Tensor

import fisopt

aten = torch.ops.aten


@dataclass(frozen=True)
class KeepLargest(fisopt.BlockPass):
    keep: int

    def run(self, rewriter: fisopt.Rewriter) -> None:
        for block in self.chosen(rewriter.program):
            with rewriter.edit(block) as edit:
                x, result = block.passed(block.stream), block.results[0]
                norms = rewriter.call(aten.linalg_vector_norm.default, x, 2, [-1])
                best = rewriter.call(aten.topk.default, norms, self.keep)
                index = rewriter.call(operator.getitem, best, 1)
                tokens = fisopt.Tokens(index, rewriter.program.layout)
                edit.compute({result: tokens}, cut=block.body.graph.nodes)
                (piece,) = edit.place()
                edit.give(result, tokens.spread(rewriter, piece, fisopt.axes_of(x), full=x))
        rewriter.note(f"blocks {self.blocks} on {self.keep} tokens")


def largest(forward: Callable[..., Tensor], keep: int) -> Callable[..., Tensor]:
    def chosen(x: Tensor, text: Tensor, time: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
        index, items = x.norm(dim=2).topk(keep).indices, torch.arange(len(x))[:, None]
        tables = tuple(table.expand(len(x), -1, -1, -1)[items, index] for table in rotary)
        out = x.clone()
        out[items, index] = forward(x[items, index], text, time, tables)
        return out

    return chosen


def test_a_pass_that_keeps_tokens_by_content() -> None:
    heads = {"num_attention_heads": 2, "attention_head_dim": 12, "rope_max_seq_len": 32}
    sizes = {"in_channels": 4, "out_channels": 4, "text_dim": 16, "freq_dim": 32, "ffn_dim": 48}
    model = WanTransformer3DModel(**heads, **sizes, num_layers=3).eval()
    inputs = {"hidden_states": torch.randn(2, 4, 5, 4, 6), "timestep": torch.tensor([500, 300])}
    inputs["encoder_hidden_states"] = torch.randn(2, 7, 16)
    program = fisopt.capture(model, inputs)
    result = fisopt.PassManager([KeepLargest(12, blocks=(0, 2))]).run(program)(**inputs).sample
    for i in (0, 2):
        model.blocks[i].forward = largest(model.blocks[i].forward, 12)
    with torch.no_grad():
        torch.testing.assert_close(result, model(**inputs).sample)
