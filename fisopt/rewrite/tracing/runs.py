"""Whether a model runs on some inputs at all: errors that say what of them it does not take."""

from __future__ import annotations

import torch
from torch import fx, nn

from fisopt.errors import InputError, shown
from fisopt.rewrite.tracing.inputs import Inputs
from fisopt.rewrite.tracing.readiness import unhooked
from fisopt.rewrite.tracing.trials import user_line
from fisopt.rewrite.tracing.untouched import untouched

aten = torch.ops.aten
_ONE_DTYPE = {
    aten.linear.default: 3,
    aten.mm.default: 2,
    aten.bmm.default: 2,
    aten.matmul.default: 2,
    aten.addmm.default: 3,
    aten.baddbmm.default: 3,
    aten.convolution.default: 3,
    aten.conv1d.default: 3,
    aten.conv2d.default: 3,
    aten.conv3d.default: 3,
    aten.scaled_dot_product_attention.default: 3,
}
"""Operators whose first operands must be of one dtype, and how many; export does not insist."""


def check_runs(model: nn.Module, inputs: Inputs, what: str = "these inputs") -> None:
    """Refuse inputs on which the model itself fails.

    Raises:
        InputError: it fails; the message shows its own line, and what dtypes and devices differ.
    """
    try:
        with untouched(model, inputs.leaves, real=True), torch.no_grad():
            unhooked(model)(**inputs.kwargs())
    except Exception as error:
        raise InputError(
            f"{_refusal(model, inputs, what)}: {type(error).__name__}: {error}"
            f"{_others(model, inputs)}\n    {user_line(error)}"
        ) from error


def check_dtypes(model: nn.Module, graph: fx.Graph, inputs: Inputs) -> None:
    """Refuse inputs whose dtypes meet others in an operator that takes one dtype only.

    Export accepts them, the operator does not.

    Raises:
        InputError: the model does not run on them.
    """
    for node in graph.nodes:
        given = node.args[: _ONE_DTYPE.get(node.target, 0)]
        values = [n.meta["val"] for n in given if isinstance(n, fx.Node)]
        dtypes = list(dict.fromkeys(_name(value.dtype) for value in values))
        if len(dtypes) > 1:
            check_runs(model, inputs)  # on the meta device nothing insists either
            if any(x.is_meta for _, x in inputs.tensors()):
                raise InputError(
                    f"{_refusal(model, inputs)}: {node.target} is given {' and '.join(dtypes)}"
                    f"{_others(model, inputs)}"
                )
            return


def _refusal(model: nn.Module, inputs: Inputs, what: str = "these inputs") -> str:
    shapes = {
        name: tuple(x.shape) if isinstance(x, torch.Tensor) else shown(x)
        for name, x in zip(inputs.names, inputs.leaves, strict=True)
    }
    return f"{type(model).__name__} does not run on {what} {shapes}"


def _others(model: nn.Module, inputs: Inputs) -> str:
    """The inputs that are of another dtype or on another device than the model's weights."""
    weight = next((p for p in model.parameters() if p.is_floating_point()), None)
    if weight is None:
        return ""
    other = [
        f"{inputs.names[i]!r} is {_name(x.dtype)} on {x.device}"
        for i, x in inputs.tensors()
        if (x.dtype, x.device) != (weight.dtype, weight.device)
    ]
    own = f"the model's weights are {_name(weight.dtype)} on {weight.device}"
    return f"; {', '.join(other)}, {own}" if other else ""


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
