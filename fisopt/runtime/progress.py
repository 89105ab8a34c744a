"""Warming up: every stage of some plans runs once, and so is compiled, under a progress bar."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from fisopt.codegen.compile import Runnable
from fisopt.rewrite.tracing.inputs import Inputs
from fisopt.rewrite.variants import Variant
from fisopt.runtime.plans import Plan


def warm_up(
    plan_of: Callable[[Variant], Plan],
    variants: Iterable[Variant],
    inputs: Inputs,
    progress: bool = True,
) -> None:
    """Run the plans of some variants once, in order, so that they are compiled.

    What one leaves for later steps is taken by those after it; what makes it runs before them.

    Args:
        plan_of: makes the plan of a variant.
        variants: the variants.
        inputs: one forward call's inputs, of the shapes that the plans are made for.
        progress: show a bar over the stages that are compiled.
    """
    plans: dict[Plan, None] = {}
    for variant in variants:
        plan = plan_of(variant)
        if plan.program.loads:
            plans[plan_of(variant.afresh())] = None
        plans[plan] = None
    held: dict[str, torch.Tensor] = {}
    values = [x for _, x in inputs.tensors()]
    with _bar([stage for plan in plans for stage in plan.stages], progress), torch.no_grad():
        for plan in plans:
            if held.keys() >= set(plan.program.loads):
                returned = plan.run(*values, *(held[name] for name in plan.program.loads))
                held.update(plan.program.split(returned).state)


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
