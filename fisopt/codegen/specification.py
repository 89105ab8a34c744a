"""The specification that lowering keeps: the same arguments and results, each stage as it says."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from typing import Any

import torch
from torch import fx

from fisopt.errors import LoweringError
from fisopt.rewrite.analysis import results
from fisopt.rewrite.outline import value_key
from fisopt.rewrite.program import Program
from fisopt.rewrite.template import MODE

Values = tuple[Hashable, ...]


def check_lowered(program: Program, module: fx.GraphModule) -> None:
    """Insist that a lowered graph computes what its Program does.

    Shapes, types and devices of arguments and results are the Program's; every stage takes what
    its calls pass and, run on fake tensors, returns what they say.

    Raises:
        LoweringError: it does not.
    """
    for what, find in (("takes", _arguments), ("returns", results)):
        want, got = (_keys(find(graph)) for graph in (program.graph, module.graph))
        if got != want:
            raise LoweringError(f"the lowered graph {what} {got}, the Program {want}")
    returned: dict[str, Values] = {}
    for call in module.graph.nodes:
        if call.op != "call_module":
            continue
        name, stage = str(call.target), module.get_submodule(str(call.target))
        if not isinstance(stage, fx.GraphModule):
            raise LoweringError(f"{call}: stage {name} is no graph")
        passed = _keys(n for n in call.args if isinstance(n, fx.Node))
        if passed != (taken := _keys(_arguments(stage.graph))):
            raise LoweringError(f"{call} passes {passed}, stage {name} takes {taken}")
        if name not in returned:
            returned[name] = _computed(name, stage)
        if (said := value_key(call)) != returned[name]:
            raise LoweringError(f"{call} says {said}, stage {name} computes {returned[name]}")


def _computed(name: str, stage: fx.GraphModule) -> Values:
    """What a stage returns when it runs on fake tensors."""
    try:
        stage.graph.lint()
        with stage.meta[MODE], torch.no_grad():
            given = [n.meta["val"] for n in _arguments(stage.graph)]
            values: Any = fx.Interpreter(stage).run(*given)
    except Exception as error:
        raise LoweringError(
            f"stage {name} does not run: {type(error).__name__}: {error}"
        ) from error
    values = values if isinstance(values, (tuple, list)) else [values]
    return tuple((tuple(v.shape), v.dtype, v.device) for v in values)


def _arguments(graph: fx.Graph) -> list[fx.Node]:
    return [n for n in graph.nodes if n.op == "placeholder"]


def _keys(nodes: Iterable[fx.Node]) -> list[Values]:
    return [value_key(node) for node in nodes]
