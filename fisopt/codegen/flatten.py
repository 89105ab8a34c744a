"""Flatten: a Program as one graph of operators, with no calls of blocks in it."""

from __future__ import annotations

from torch import fx

from fisopt.codegen.inline import inline_calls, inline_references
from fisopt.codegen.lowering import LoweringPass, run_passes
from fisopt.rewrite.outline import outputs_of
from fisopt.rewrite.program import Program
from fisopt.rewrite.tracing.weights import refresh

FLATTENING = (
    LoweringPass("inline calls", lambda module, root: [inline_calls(root)]),
    LoweringPass("inline references", lambda module, root: [inline_references(module)]),
)
"""What makes a flat graph; the second pass makes it portable."""


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
    count = program.own_results + len(program.stores)
    module.graph.output_node().args = (tuple(outputs_of(module.graph))[:count],)
    run_passes(FLATTENING if portable else FLATTENING[:1], module, module)
    root = fx.GraphModule(module, module.graph, class_name="Flat")
    root.meta.update(module.meta)
    return root
