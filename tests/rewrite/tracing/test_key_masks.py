"""Masks of pairs that are those of tokens: what is recognised, and that nothing changes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.functional import scaled_dot_product_attention

from fisopt import Program
from fisopt.rewrite.tracing.key_masks import Insert, separate_masks
from tests.zoo import zoo

TOKENS = 9
OUTER: dict[str, Callable[[Tensor], Tensor]] = {
    "broadcast": lambda v: v[:, None, None, :] & v[:, None, :, None],
    "repeated, and its transpose": lambda v: (
        (m := v.view(2, 1, 1, TOKENS).repeat(1, 1, TOKENS, 1)) & m.transpose(2, 3)
    ),
    "of pairs, then of heads": lambda v: torch.logical_and(
        v[:, :, None].expand(2, TOKENS, TOKENS), v[:, None, :].expand(2, TOKENS, TOKENS)
    ).unsqueeze(1),
    "permuted": lambda v: (
        v[:, None, None, :].expand(2, 1, TOKENS, TOKENS).permute(0, 1, 3, 2)
        & v[:, None, None, :].bool().clone()
    ),
    "keys alone": lambda v: v[:, None, None, :].repeat(1, 1, TOKENS, 1),
    "queries alone": lambda v: v[:, None, :, None].repeat(1, 1, 1, TOKENS),
    "in three parts": lambda v: (
        v[:, None, None, :] & v[:, None, :, None] & v.flip(1)[:, None, None, :]
    ),
}
NO_PRODUCT: dict[str, Callable[[Tensor], Tensor]] = {
    "or": lambda v: v[:, None, None, :] | v[:, None, :, None],
    "a band": lambda v: torch.ones(TOKENS, TOKENS, dtype=torch.bool).tril() & v[:, None, None, :],
    "added": lambda v: (v[:, None, None, :] & v[:, None, :, None]).float().log(),
    "of other heads": lambda v: torch.cat(
        [m := v[:, None, None, :] & v[:, None, :, None], m, m.logical_not()], 1
    ),
}


def traced(mask: Callable[[Tensor], Tensor]) -> tuple[fx.GraphModule, list[Tensor]]:
    """An attention under a mask of valid tokens, of which the second prompt lacks some."""

    def run(q: Tensor, k: Tensor, v: Tensor, valid: Tensor) -> Tensor:
        return scaled_dot_product_attention(q, k, v, attn_mask=mask(valid)) * 2

    valid = torch.ones(2, TOKENS, dtype=torch.bool)
    valid[1, 5:] = False
    values = [*torch.randn(3, 2, 3, TOKENS, 8), valid]
    return make_fx(run, tracing_mode="fake", pre_dispatch=True)(*values), values


def insert_for(place: fx.Node, after: bool) -> Insert:
    def insert(target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        here = place.graph.inserting_after if after else place.graph.inserting_before
        with here(place):
            new = place.graph.call_function(target, args, kwargs)
        held = lambda a: a.meta["val"] if isinstance(a, fx.Node) else a  # noqa: E731
        with place.meta["val"].fake_mode:
            new.meta["val"] = target(*map(held, args), **kwargs)
        return new

    return insert


def attention(module: fx.GraphModule) -> fx.Node:
    target = torch.ops.aten.scaled_dot_product_attention.default
    (found,) = module.graph.find_nodes(op="call_function", target=target)
    return found


@pytest.mark.parametrize("mask", OUTER.values(), ids=OUTER)
def test_an_outer_product_becomes_a_mask_of_keys(mask: Callable[[Tensor], Tensor]) -> None:
    module, values = traced(mask)
    want = module(*values)
    separate_masks(module.graph, insert_for)
    module.recompile()
    torch.testing.assert_close(module(*values), want, rtol=0, atol=1e-6)
    held = attention(module).args[3:4] or (None,)
    assert held[0] is None or held[0].meta["val"].shape[-2:] == (1, TOKENS)
    sizes = [n.meta["val"].numel() for n in module.graph.nodes if n.op == "call_function"]
    kinds = [n.meta["val"].dtype for n in module.graph.nodes if n.op == "call_function"]
    pairs = TOKENS**2
    assert all(s < pairs for s, k in zip(sizes, kinds, strict=True) if k is torch.bool)


@pytest.mark.parametrize("mask", NO_PRODUCT.values(), ids=NO_PRODUCT)
def test_other_masks_stay(mask: Callable[[Tensor], Tensor]) -> None:
    module, _ = traced(mask)
    before = str(module.graph)
    separate_masks(module.graph, insert_for)
    assert str(module.graph) == before


@pytest.mark.parametrize("case", [zoo()["hunyuan_video15"]], ids=["hunyuan_video15"])
def test_a_model_builds_no_table_of_all_pairs(program: Program) -> None:
    tokens = program.layout.tokens
    for block in program.blocks:
        for node in block.body.graph.nodes:
            value = node.meta.get("val")
            if isinstance(value, Tensor) and value.dtype == torch.bool:
                assert value.numel() < tokens**2, node.format_node()
