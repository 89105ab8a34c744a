"""Lowering of masks that hide few keys: the others are attended to as if there were none.

    %m = aten::pad(%text, [111600, 0], True)
    %y = aten::scaled_dot_product_attention(%q, %k, %v, %m)

    %n = aten::slice(%m, -1, 111600, 113585)
    %y = fisopt::attend_masked(%q, %k, %v, %n, 111600)

Kernels of dense attention are slower with a mask: on an H100 cuDNN runs 111,600 tokens of video
beside 1,985 of text at 398 TFLOP/s with one, and at 591 in these two parts.
"""

from __future__ import annotations

import torch
from torch import fx

from fisopt.codegen.seen_keys import always_seen
from fisopt.rewrite.analysis.fused import FUSED, fused
from fisopt.rewrite.edit.graph_editor import GraphEditor
from fisopt.rewrite.edit.local import NodeRule
from fisopt.rewrite.ops.attend_masked import attend_masked

MANY = 1024
"""Keys that must be seen by all before a second attention is worth it."""
SHARE = 0.25
"""The largest share of keys that the mask may speak of."""


def split_masks(device: str = "cuda") -> NodeRule:
    """Every attention on a kind of device whose mask is proved to hide few keys at most."""

    def split(editor: GraphEditor, node: fx.Node) -> fx.Node | None:
        read = fused(node)
        if read is None or read.mask is None or read.causal or read.dropout:
            return None
        query, mask = read.query.meta["val"], read.mask.meta["val"]
        if query.device.type != device or query.ndim != 4 or mask.ndim != 4 or mask.shape[2] != 1:
            return None
        if (seen := always_seen(read.mask)) is None or (keys := _spoken_of(seen)) is None:
            return None
        few = editor.call(torch.ops.aten.slice.Tensor, read.mask, -1, *keys)
        return editor.call(
            attend_masked.target, read.query, read.key, read.value, few, keys[0], read.scale
        )

    return NodeRule("partly masked attention", {FUSED}, split)


def _spoken_of(seen: torch.Tensor) -> tuple[int, int] | None:
    """The keys, from the first to behind the last, that may be hidden; None if not few."""
    every = seen.flatten(0, -2).all(0)
    hidden = (~every).nonzero()
    if not len(hidden):
        return None
    first, last = int(hidden[0]), int(hidden[-1]) + 1
    few = last - first <= SHARE * len(every) and len(every) - (last - first) >= MANY
    return (first, last) if few else None
