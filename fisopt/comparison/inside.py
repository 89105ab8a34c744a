"""What ran inside of a configuration: time by step, FLOPs by block, a block before and after."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from fisopt.comparison.configurations import Ready
from fisopt.overview.summary import summary
from fisopt.page.data import BlockGraph, Choice, Stage
from fisopt.page.graph_svg import block_svg
from fisopt.rewrite.axes import axes_of
from fisopt.rewrite.block import Block
from fisopt.rewrite.cost import Cost, graph_cost
from fisopt.rewrite.measured import UndecidedError
from fisopt.rewrite.pass_base import Pass, Step
from fisopt.rewrite.program import Program
from fisopt.rewrite.variants import Variant
from fisopt.runtime.optimized import OptimizedModule

BRANCHES = ("self-attention", "cross-attention", "linear")
"""The classes of operators whose share is told apart."""
ALIKE = 0.005
"""A share that differs by no more is that of the same operators."""


def predicted_ratio(ready: Ready, since: float) -> float | None:
    """Dense FLOPs over those of all calls since a moment; None where fisopt made none."""
    calls = [c for m in ready.optimised.values() for c in m.calls if c.began.seconds >= since]
    work = sum(call.made.work for call in calls)
    return sum(c.made.work / c.made.density for c in calls) / work if work else None


def stages_of(
    ready: Ready, pipeline: Any, seconds: float, dense: Mapping[str, float]
) -> list[Stage]:
    """The time of each step of the newest clip, and of all that is no transformer.

    Args:
        ready: the configuration.
        pipeline: the pipeline, running it; the clip is the last that any of its transformers made.
        seconds: what the clip took.
        dense: milliseconds of the dense model's steps, by name; what FLOPs promise of those of
            this one is taken from them.
    """
    if not ready.optimised:
        return []
    steps, found = summary(pipeline).steps, []
    for step in steps:
        if step.measured_ms is not None:
            name = f"step {step.step}" + (f", {step.transformer}" if len(ready.modules) > 1 else "")
            promised = dense[name] / step.speed_up if name in dense else None
            found.append(Stage(ready.name, name, step.measured_ms, promised))
    if len(found) == len(steps):
        rest = 1e3 * seconds - sum(stage.measured for stage in found)
        found.append(Stage(ready.name, "text, VAE and the rest", max(0.0, rest)))
    return found


def choices_of(ready: Ready, steps: int) -> Iterator[Choice]:
    """The share of the dense FLOPs that each block computes, by class of operator and by step."""
    for component, module in ready.optimised.items():
        if module.last_inputs is None:
            continue
        dense = module.rewritten(module.last_inputs, Variant())
        for first, last, program in _programs(module, steps):
            said = str(first) if first == last else f"{first}-{last}"
            active = _active(module.passes, Step(last, steps))
            for choice in _of_program(dense, program, active):
                yield replace(choice, steps=said, configuration=ready.name, transformer=component)


def graph_of(ready: Ready, steps: int) -> BlockGraph | None:
    """The middle one of the blocks that a configuration has changed."""
    for module in ready.optimised.values():
        if module.last_inputs is None:
            continue
        dense = module.rewritten(module.last_inputs, Variant())
        for _, _, program in _programs(module, steps):
            before = {block.path: block for block in dense.blocks}
            changed = [b for b in program.blocks if not _alike(before[b.path], b)]
            if changed:
                block, frames = changed[len(changed) // 2], dense.layout.frames
                pair = [block_svg(b, frames) for b in (before[block.path], block)]
                return BlockGraph(f"{block.path}, {ready.name}", *pair)
    return None


def _programs(module: OptimizedModule, steps: int) -> Iterator[tuple[int, int, Program]]:
    """The Program of each run of equal steps, with the first and the last of them."""
    inputs = module.last_inputs
    assert inputs is not None
    runs: list[list[Any]] = []
    for index in range(steps):
        try:
            program = module.program(inputs.kwargs(), Step(index, steps))
        except UndecidedError:  # a step cache decides in the run
            return
        if runs and runs[-1][2] is program:
            runs[-1][1] = index
        else:
            runs.append([index, index, program])
    for first, last, program in runs:
        yield first, last, program


def _alike(before: Block, after: Block) -> bool:
    same = _counted(before) == _counted(after)
    return same and abs(_share(_cost(after), _cost(before)) - 1) < ALIKE


def _counted(block: Block) -> int:
    return sum(node.op == "call_function" for node in block.body.graph.nodes)


def _active(passes: Sequence[Pass], step: Step) -> dict[str, Pass]:
    """What runs at a step, by the class of the pass that it stands for."""
    found = ((type(each).__name__, each.at(step)) for each in passes)
    return {name: active for name, active in found if active is not None}


def _of_program(dense: Program, program: Program, passes: Mapping[str, Pass]) -> Iterator[Choice]:
    ran = {block.path: block for block in program.blocks}
    for block in dense.blocks:
        before, after = _cost(block), ran.get(block.path)
        now = Cost() if after is None else _cost(after)
        said = _words(block, after, dense.layout.frames, passes)
        yield Choice(block.index, "block", "", said, _share(now, before))
        for name in BRANCHES:
            if before.flops[name]:
                share = now.flops[name] / before.flops[name]
                yield Choice(block.index, name, "", said, share)


def _words(before: Block, after: Block | None, frames: int, passes: Mapping[str, Pass]) -> str:
    """What a block does, in words."""
    if after is None:
        decided = all(type(each).then is Pass.then for each in passes.values())
        return "reused" if decided else "reused, or computed where it changed"
    if _alike(before, after):
        return "dense"
    axes = [axis for node in after.results for axis in axes_of(node) if axis is not None]
    held = min((axis.frames for axis in axes), default=frames)
    return f"{held} of {frames} frames" if held < frames else " + ".join(passes)


def _share(now: Cost, before: Cost) -> float:
    return now.work / before.work if before.work else 1.0


def _cost(block: Block) -> Cost:
    return graph_cost(block.body.graph)
