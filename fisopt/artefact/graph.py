"""One variant as a torch.export program: flat, functional, with its tensors by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import fx
from torch.export import ExportedProgram

from fisopt.codegen.gathering import sharded
from fisopt.errors import ExportError
from fisopt.rewrite.outline import outputs_of
from fisopt.rewrite.program import Program


def placeholders(program: Program) -> list[fx.Node]:
    """The tensors that a Program takes: those of the call, then the state that it loads."""
    return [n for n in program.graph.nodes if n.op == "placeholder"]


def results_of(program: Program, graph: fx.Graph) -> dict[str, fx.Node]:
    """The model's own results in a graph of a Program, as artefacts name them, in order."""
    held = outputs_of(graph)[: program.out_structure.num_leaves]
    return {f"output_{i}" if i else "output": node for i, node in enumerate(held)}


def exported(module: fx.GraphModule, shapes: Any = None) -> ExportedProgram:
    """Export a flat graph; its tensors become keyword arguments.

    Args:
        module: the graph; operators in it may change their operands.
        shapes: dynamic shapes as torch.export takes them; None for the sizes that it has.

    Raises:
        ExportError: torch.export refuses the graph.
    """
    values = {n.name: _example(n) for n in module.graph.nodes if n.op == "placeholder"}
    try:
        with torch.no_grad():
            traced = torch.export.export(module, (), values, dynamic_shapes=shapes, strict=False)
            functional: ExportedProgram = traced.run_decompositions({})
    except Exception as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else ""
        raise ExportError(
            f"torch.export rejects the rewritten graph: {type(error).__name__}: {first}; leave "
            "out passes to find the one that causes it"
        ) from error
    _check_open(functional, shapes or {})
    return functional


def _check_open(program: ExportedProgram, shapes: Mapping[str, Any]) -> None:
    """Insist that torch.export has left open what it was asked to."""
    for node in program.graph.nodes:
        if node.op == "placeholder" and shapes.get(node.name):
            value = node.meta["val"]
            closed = [d for d in shapes[node.name] if isinstance(value.shape[d], int)]
            if closed:
                raise ExportError(
                    f"torch.export fixes dimension {closed[0]} of {node.name} to "
                    f"{value.shape[closed[0]]}: export with dynamic=False (--static)"
                )


def refuse_meta(program: Program) -> None:
    """Raise for a model whose weights are not there, or not whole."""
    if sharded(program.source.model):
        raise ExportError(
            f"{type(program.source.model).__name__} holds a part of its weights on each rank; "
            "export the model before they are divided: leave out shard_weights"
        )
    if any(p.device.type == "meta" for p in program.source.model.parameters()):
        raise ExportError(
            f"{type(program.source.model).__name__} is on the meta device and has no weights to "
            "export; load them, or export its graph with format='text'"
        )


def refuse_writes(program: Program) -> None:
    """Raise for a model that changes its inputs or buffers, which no artefact gives back.

    And for one that may read a position, which an artefact would hold as a constant.
    """
    if positions := [program.inputs.names[i] for i, _ in program.inputs.positions]:
        raise ExportError(
            f"{type(program.source.model).__name__} may read {', '.join(positions[:4])}, whole "
            "numbers in tensors of a dict or a list, and an artefact would keep their values: "
            "pass plain numbers, which it checks at every call, or tensors that are arguments "
            "themselves, which it reads"
        )
    changed = [*(p.name for p in program.puts), *(w.name for w in program.writes)]
    if changed:
        names = ", ".join(map(repr, changed[:4]))
        raise ExportError(
            f"{type(program.source.model).__name__} changes {names}"
            + (", ..." if len(changed) > 4 else "")
            + " in place, and an artefact returns results only: let the model return the new "
            "values instead, or run it through fisopt.optimize, which writes them back"
        )


def _example(node: fx.Node) -> torch.Tensor:
    value = node.meta["val"]
    return torch.zeros(value.shape, dtype=value.dtype, device=value.device)
