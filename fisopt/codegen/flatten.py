"""Flatten: a Program as one graph of operators, with no calls of blocks in it."""

from __future__ import annotations

from torch import fx

from fisopt.codegen.inline import inline_calls, inline_references
from fisopt.concurrency import tracing
from fisopt.rewrite.program import Program
from fisopt.rewrite.weights import refresh


def flatten(program: Program, *, portable: bool = True) -> fx.GraphModule:
    """Return one graph of ATen operators that is equal to the Program.

    It takes the Program's tensors and the state that it loads, and returns a tuple of the model's
    own results and the state that it stores; measurements are left out.  Parameters are shared.

    Args:
        program: what to flatten; it is unchanged.
        portable: replace the declared operators by what they mean in plain torch; otherwise they
            stay.
    """
    program = program.copy()
    module = program.graph_module
    refresh(module, program.source.model)
    output = next(n for n in reversed(module.graph.nodes) if n.op == "output")
    count = program.own_results + len(program.stores)
    output.args = (tuple(output.args[0])[:count],)
    inline_calls(module, module)
    if portable:
        with tracing():
            inline_references(module)
    module.graph.eliminate_dead_code()
    root = fx.GraphModule(module, module.graph, class_name="Flat")
    root.meta.update(module.meta)
    return root
