"""Warming up: every stage of some plans runs once, and so is compiled, under a progress bar."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import fx, nn
from tqdm import tqdm

from fisopt.codegen.compile import Runnable
from fisopt.rewrite.inputs import Inputs
from fisopt.rewrite.program import Program


def warm_up(
    plans: Sequence[tuple[Program, Runnable]], inputs: Inputs, progress: bool = True
) -> None:
    """Run plans once, in order; what one leaves for later steps is taken by those after it.

    Args:
        plans: Programs and what runs them.
        inputs: one forward call's inputs, of the shapes that the Programs were made for.
        progress: show a bar over the distinct stages.
    """
    stages = {id(s) for _, run in plans for s in _stages(run)}
    held: dict[str, torch.Tensor] = {}
    with tqdm(total=len(stages), desc="compiling", unit="stage", disable=not progress) as bar:
        done: set[int] = set()
        for program, run in plans:
            values = [x for _, x in inputs.tensors()]
            state = [held[name] for name in program.loads if name in held]
            if len(state) < len(program.loads):
                continue
            runner = _Runner(run, bar, done).run if isinstance(run, fx.GraphModule) else run
            with torch.no_grad():
                returned = runner(*values, *state)
            held.update(program.split(returned).state)


class _Runner(fx.Interpreter):
    """Runs a graph of stages and counts those that ran for the first time."""

    def __init__(self, module: fx.GraphModule, bar: tqdm[Any], done: set[int]) -> None:
        super().__init__(module)
        self._bar, self._done = bar, done

    def call_module(self, target: Any, args: Any, kwargs: Any) -> Any:
        """Run one stage."""
        result = super().call_module(target, args, kwargs)
        stage = id(self.fetch_attr(target))
        if stage not in self._done:
            self._done.add(stage)
            self._bar.update()
        return result


def _stages(run: Runnable) -> list[nn.Module]:
    if not isinstance(run, fx.GraphModule):
        return []
    called = {str(node.target) for node in run.graph.nodes if node.op == "call_module"}
    return [run.get_submodule(name) for name in sorted(called)]
