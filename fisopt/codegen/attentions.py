"""Attention of the user's choice: what runs where a lowered graph attends, chosen after passes.

torch's backends are those that torch itself would run if no other were allowed: the operators that
an attention becomes are traced and put in its place.  Other functions become one operator.
"""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor, fx
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from fisopt.codegen.attention_packages import PACKAGES, Package
from fisopt.codegen.choose import Choice
from fisopt.codegen.kernel_options import Attention
from fisopt.codegen.lowering import check, signature
from fisopt.codegen.stages import stages_of, traced
from fisopt.concurrency import tracing
from fisopt.rewrite.analysis.fused import FUSED, FusedAttention, fused
from fisopt.rewrite.edit.graph_editor import GraphEditor
from fisopt.rewrite.edit.local import NodeRule, rewrite
from fisopt.rewrite.ops.attend_by import attend_by, name_of

_BACKENDS = {
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
}
_SILENT = re.compile(r"not used because|runtime disabled|No available kernel|No viable backend")


class _Refused(Exception):  # noqa: N818 - it is no error: the next one runs
    """Why something does not take an attention."""


Make = Callable[[GraphEditor, FusedAttention], Any]


def use_attention(module: fx.GraphModule, wanted: Attention) -> Choice:
    """Let the attentions of a lowered graph run by a kernel or a function, in place.

    What it does not take is left to torch.

    Returns:
        What runs where, for the report.
    """
    name, make = _maker(wanted)
    left: Counter[str] = Counter()
    count = 0
    for stage in stages_of(module):
        editor = GraphEditor.of(stage.module, f"attention by {name}")
        refused: list[str] = []
        rule = NodeRule(editor.name, {FUSED}, partial(_made, make, refused))
        with tracing():
            applied = rewrite(editor, [rule], once=True).applied
            if applied:
                stage.graph.eliminate_dead_code()
                check(stage.module, signature(stage.graph), editor.name)
                stage.module.recompile()
        count += applied * len(stage.calls)
        for reason in refused:
            left[reason] += len(stage.calls)
    why = "; ".join(f"{n} by torch's choice: {reason}" for reason, n in left.items())
    every = count + left.total()
    chosen, by = f"{name} in {count} of {every} calls", name if count else ""
    return Choice("attention", chosen, why or "as asked for", by)


def _maker(wanted: Attention) -> tuple[str, Make]:
    """The name of an attention, and what inserts it."""
    if callable(wanted):
        name = name_of(wanted)
        return name, partial(_function, name)
    assert wanted is not None
    if wanted in _BACKENDS:
        return wanted, partial(_backend, wanted)
    return wanted, partial(_package, wanted, PACKAGES[wanted])


def _made(make: Make, refused: list[str], editor: GraphEditor, node: fx.Node) -> Any:
    """What stands for an attention now, None if it is not taken, which is noted."""
    read = fused(node)
    assert read is not None
    try:
        _check_plain(read)
        return make(editor, read)
    except _Refused as reason:
        refused.append(str(reason))
        return None


def _check_plain(read: FusedAttention) -> None:
    if read.causal or read.dropout:
        raise _Refused("it is causal, or drops out")
    if any(n.meta["val"].ndim != 4 for n in (read.query, read.key, read.value)):
        raise _Refused("it has no four dimensions")


def _operands(read: FusedAttention) -> list[fx.Node]:
    """Queries, keys, values, and the mask if there is one."""
    return [read.query, read.key, read.value, *([] if read.mask is None else [read.mask])]


def _scale(read: FusedAttention) -> float:
    query: Tensor = read.query.meta["val"]
    return float(query.shape[-1] ** -0.5 if read.scale is None else read.scale)


def _backend(name: str, editor: GraphEditor, read: FusedAttention) -> Any:
    """Insert what torch runs where it has this backend alone."""
    grouped = read.query.meta["val"].shape[1] != read.key.meta["val"].shape[1]

    def attend(query: Tensor, key: Tensor, value: Tensor, *mask: Tensor) -> Tensor:
        return scaled_dot_product_attention(
            query, key, value, mask[0] if mask else None, scale=_scale(read), enable_gqa=grouped
        )

    operands = _operands(read)
    with warnings.catch_warnings(record=True) as said, sdpa_kernel([_BACKENDS[name]]):
        warnings.simplefilter("always")
        try:
            graph = traced(editor, attend, *operands)
        except RuntimeError as error:
            reasons = [str(w.message).partition(" (Triggered")[0] for w in said]
            first = next((r for r in reasons if not _SILENT.search(r)), str(error).split("\n")[0])
            here = operands[0].meta["val"].device.type
            raise _Refused(f"no {here} device has it" if _SILENT.search(first) else first) from None
    if not any(f"_{name}_attention" in str(n.target) for n in graph.nodes):
        raise _Refused(f"torch has no {name} attention for it")
    return editor.copy(graph, operands)


def _package(name: str, package: Package, editor: GraphEditor, read: FusedAttention) -> Any:
    """Insert the attention of a package, if it is there and takes the operands."""
    values = [operand.meta["val"] for operand in _operands(read)]
    if (reason := package.refuses(*values)) is not None:
        raise _Refused(reason)
    return _function(name_of(package.attend, name), editor, read)


def _function(name: str, editor: GraphEditor, read: FusedAttention) -> Any:
    """Insert a call of a function."""
    operands = (read.query, read.key, read.value, read.mask)
    return editor.call(attend_by.target, *operands, _scale(read), name, True)
