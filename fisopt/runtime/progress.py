"""Warming up: every stage of some plans runs once, and so is compiled, under a progress bar."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from fisopt.codegen.compile import Runnable
from fisopt.rewrite.program import Program
from fisopt.rewrite.tracing.inputs import Inputs


def warm_up(
    plans: Sequence[tuple[Program, Runnable]],
    stages: Iterable[Runnable],
    inputs: Inputs,
    progress: bool = True,
) -> None:
    """Run plans once, in order; what one leaves for later steps is taken by those after it.

    Args:
        plans: Programs and what runs them.
        stages: the compiled graphs that they call.
        inputs: one forward call's inputs, of the shapes that the Programs were made for.
        progress: show a bar over the stages.
    """
    held: dict[str, torch.Tensor] = {}
    values = [x for _, x in inputs.tensors()]
    with _bar(stages, progress), torch.no_grad():
        for program, run in plans:
            if held.keys() >= set(program.loads):
                returned = run(*values, *(held[name] for name in program.loads))
                held.update(program.split(returned).state)


@contextmanager
def _bar(stages: Iterable[Runnable], progress: bool) -> Iterator[None]:
    """Inside, show how many of some stages have run."""
    modules = {stage for stage in stages if isinstance(stage, nn.Module)}
    with (
        ExitStack() as hooks,
        tqdm(total=len(modules), desc="compiling", unit="stage", disable=not progress) as bar,
    ):

        def ran(stage: nn.Module, *_: Any) -> None:
            if stage in modules:
                modules.remove(stage)
                bar.update()

        for stage in modules:
            hooks.callback(stage.register_forward_hook(ran).remove)
        yield
