"""Trials: runs of a model on fake tensors of any shapes, to see what it returns."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
)
from torch.utils import _pytree as pytree

from fisopt.errors import CaptureError
from fisopt.rewrite.tools.tool import traced
from fisopt.rewrite.tracing.carried import Carried, carries
from fisopt.rewrite.tracing.given_values import given_values
from fisopt.rewrite.tracing.inner import faked
from fisopt.rewrite.tracing.inputs import Inputs
from fisopt.rewrite.tracing.pins import Pins
from fisopt.rewrite.tracing.untouched import untouched
from fisopt.rewrite.tracing.weights import weight_places


def user_line(error: BaseException) -> str:
    """The last line of a traceback that is neither torch's nor ours, as ``file:line: text``."""
    own = Path(torch.__file__).parent
    frames = traceback.extract_tb(error.__traceback__)
    here = Path(__file__).parent
    theirs = [f for f in frames if not {own, here} & {*Path(f.filename).parents}]
    if not theirs:
        return ""
    last = theirs[-1]
    return f"{last.filename}:{last.lineno}: {last.line}"


@contextmanager
def silent(name: str) -> Iterator[None]:
    """Keep a logger quiet: shapes that a model refuses are an answer here, no error."""
    logger = logging.getLogger(name)
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before


Shape = tuple[int, ...]


@dataclass(frozen=True)
class Shapes:
    """What a run on fake tensors gave: shapes of what each block returned, and the model."""

    blocks: tuple[tuple[Shape, ...], ...]
    results: tuple[Shape, ...]


Trial = Callable[[Inputs], Shapes]
"""Runs a model on fake tensors; raises what it raises."""


class Trials(NamedTuple):
    """Runs of one model on fake tensors, after which it is as it was.

    Attributes:
        run: one run.
        changed: names of what the runs changed in the model.
        pinned: kernels of attention that it chose itself.
        carried: why a call differs from one before it, given inputs; "" if none does.
    """

    run: Trial
    changed: Collection[str]
    pinned: Collection[str]
    carried: Callable[[Inputs], str]


@contextmanager
def shape_trials(model: nn.Module, blocks: Sequence[nn.Module], inputs: Inputs) -> Iterator[Trials]:
    """Inside, runs of a model on fake tensors of any shapes; the model is left as it is.

    Args:
        model: the model.
        blocks: its blocks.
        inputs: the user's inputs, whose tensors are left as they are.

    Yields:
        What runs it.
    """
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with traced(model), untouched(model, inputs.leaves) as held, Pins() as pins:
        fakes = {place.path: faked(mode, place.tensor) for place in weight_places(model)}

        valued = False

        def trial(resized: Inputs) -> Shapes:
            nonlocal valued
            try:
                return _run_fake(model, dict(fakes), mode, blocks, resized)
            except (DataDependentOutputException, DynamicOutputShapeException):
                held.restore()
                valued = True
                return _run_fake(model, dict(fakes), mode, blocks, resized, valued=True)
            finally:
                held.restore()

        def carried(inputs: Inputs) -> str:
            watch = Carried(fakes.values())
            try:
                return carries(
                    watch, lambda: _run_fake(model, fakes, mode, (), inputs, watch, valued)
                )
            finally:
                held.restore()

        yield Trials(trial, held.changed, pins.found, carried)


def _run_fake(
    model: nn.Module,
    fakes: dict[str, torch.Tensor],
    mode: FakeTensorMode,
    blocks: Sequence[nn.Module],
    inputs: Inputs,
    watch: Carried | None = None,
    valued: bool = False,
) -> Shapes:
    leaves = [mode.from_tensor(x) if isinstance(x, torch.Tensor) else x for x in inputs.leaves]
    returned: list[tuple[Shape, ...]] = []
    with ExitStack() as stack:
        for block in blocks:
            hook = block.register_forward_hook(lambda _, __, out: returned.append(_shapes(out)))
            stack.callback(hook.remove)
        stack.enter_context(mode)
        stack.enter_context(torch.no_grad())
        stack.enter_context(silent("torch._subclasses.fake_tensor"))
        if valued:
            pairs = [(leaves[i], given) for i, given in inputs.tensors()]
            stack.enter_context(given_values(mode, pairs))
        if watch is not None:
            watch.begin(leaves)
            stack.enter_context(watch)
        result = torch.func.functional_call(
            model, fakes, (), inputs.replaced(leaves).kwargs(), tie_weights=False
        )
    _check_open(model, result)
    return Shapes(tuple(returned), _shapes(result))


def _check_open(model: nn.Module, result: Any) -> None:
    """Refuse results in which tensors are hidden: what is not seen cannot follow the frames."""
    for leaf in pytree.tree_leaves(result):
        held = getattr(leaf, "__dict__", {})
        if not isinstance(leaf, torch.Tensor) and any(
            isinstance(x, torch.Tensor) for x in pytree.tree_leaves(held)
        ):
            kind = type(leaf).__name__
            raise CaptureError(
                f"{type(model).__name__} returns an object of type {kind}, in which torch sees no "
                "tensors; return a tuple, a dict or a NamedTuple, or for a dataclass call "
                f"torch.export.register_dataclass({kind}) before"
            )


def _shapes(result: Any) -> tuple[Shape, ...]:
    leaves = pytree.tree_leaves(result)
    return tuple(tuple(x.shape) for x in leaves if isinstance(x, torch.Tensor))
