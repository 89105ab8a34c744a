"""Running a model to learn about it: export it, or try shapes on fake tensors."""

from __future__ import annotations

import functools
import logging
import traceback
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import fx, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.export import _unlift
from torch.utils import _pytree as pytree

from fisopt.errors import CaptureError
from fisopt.rewrite.tools.tool import traced
from fisopt.rewrite.tracing.composites import decompositions
from fisopt.rewrite.tracing.frame_dims import INT, FrameDims
from fisopt.rewrite.tracing.inputs import Inputs
from fisopt.rewrite.tracing.pins import Pins
from fisopt.rewrite.tracing.shape_numbers import shape_numbers
from fisopt.rewrite.tracing.training import SWITCHES, GradientSwitches
from fisopt.rewrite.tracing.untouched import untouched


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


def symbolic_dims(inputs: Inputs, frame_dims: FrameDims | None) -> Any:
    """Which input dimensions export leaves open: the frames, or (None) all of them."""
    auto = torch.export.Dim.AUTO

    def dims(i: int, leaf: Any) -> Any:
        places = None if frame_dims is None else {g.dim for g in frame_dims.get(i, ())}
        if isinstance(leaf, torch.Tensor):
            open_dims = range(leaf.ndim) if places is None else places
            return {d: auto for d in open_dims if leaf.shape[d] > 1} or None
        if isinstance(leaf, int) and not isinstance(leaf, bool) and leaf > 1:
            return auto if places is None or INT in places else None
        return None

    leaves = [dims(i, leaf) for i, leaf in enumerate(inputs.leaves)]
    return pytree.tree_unflatten(leaves, inputs.structure)


def export(model: nn.Module, inputs: Inputs, shapes: Any) -> fx.GraphModule:
    """Trace a model with torch.export; ``shapes`` are its dynamic shapes, None for static ones.

    Raises:
        CaptureError: export cannot trace the model; the message shows the model's own line.
    """
    leaves = [x.detach() if isinstance(x, torch.Tensor) else x for x in inputs.leaves]
    kwargs = inputs.replaced(leaves).kwargs()  # export marks the tensors that it is given
    try:
        with (
            traced(model),
            untouched(model, inputs.leaves),
            torch.no_grad(),
            warnings.catch_warnings(),
            _numbers_from_shapes(model) as switches,
        ):
            warnings.filterwarnings("ignore", message="The tensor attribute")  # they are put back
            for parameter in model.parameters():  # integers cannot have gradients; put back too
                parameter.requires_grad_(False)
            program = torch.export.export(
                model, (), kwargs, dynamic_shapes=shapes, strict=False
            ).run_decompositions(decompositions())
            with _guards():
                module: fx.GraphModule = program.module(check_guards=True)
            module.meta[SWITCHES] = switches.found
    except Exception as error:
        line = user_line(error)
        first = str(error).strip().splitlines()[0] if str(error).strip() else ""
        raise CaptureError(
            f"torch.export cannot trace {type(model).__name__}"
            + (f" at\n    {line}\n" if line else ": ")
            + f"{type(error).__name__}: {first}\n"
            "Data-dependent control flow must leave the traced part, and so must kernels that "
            "torch does not know (or be a torch.library.custom_op with a fake): rewrite that line "
            "with tensor operations, or give ModelSpec a `prepare` function that does."
        ) from error
    return module


@contextmanager
def _guards() -> Iterator[None]:
    """Inside, graphs say which sizes they are for, whatever the files of the callers are called.

    Torch leaves that out where some file on the stack has the name of a few projects in its path.
    """
    name = "_ok_to_generate_guards_fn"
    asked = getattr(_unlift, name, None)
    setattr(_unlift, name, lambda: True)
    try:
        yield
    finally:
        setattr(_unlift, name, asked)


@contextmanager
def _numbers_from_shapes(model: nn.Module) -> Iterator[GradientSwitches]:
    """Inside, calls of a model make numbers from shapes; it is a mode inside those of export.

    Yields:
        What notices that the model turns gradients off or on.
    """
    own, forward = vars(model).get("forward"), model.forward
    switches = GradientSwitches()

    @functools.wraps(forward)
    def call(*args: Any, **kwargs: Any) -> Any:
        with switches, shape_numbers():
            return forward(*args, **kwargs)

    model.forward = call
    try:
        yield switches
    finally:
        if own is None:
            del model.forward
        else:
            model.forward = own


@contextmanager
def _silent(name: str) -> Iterator[None]:
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


@contextmanager
def shape_trials(
    model: nn.Module, blocks: Sequence[nn.Module], inputs: Inputs
) -> Iterator[tuple[Trial, Collection[str], Collection[str]]]:
    """Inside, runs of a model on fake tensors of any shapes; the model is left as it is.

    Args:
        model: the model.
        blocks: its blocks.
        inputs: the user's inputs, whose tensors are left as they are.

    Yields:
        What runs the model, names of what the runs changed in the model, and kernels of attention
        that it chose itself.
    """
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with traced(model), untouched(model, inputs.leaves) as held, Pins() as pins:
        fakes = {name: mode.from_tensor(x) for name, x in _weights(model)}

        def trial(resized: Inputs) -> Shapes:
            try:
                return _run_fake(model, dict(fakes), mode, blocks, resized)
            except DataDependentOutputException:
                held.restore()
                with shape_numbers():
                    return _run_fake(model, dict(fakes), mode, blocks, resized)
            finally:
                held.restore()

        yield trial, held.changed, pins.found


def _weights(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Every place of a parameter or a buffer once, though its module may have several names."""
    for path, module in model.named_modules():
        for name, x in (*module._parameters.items(), *module._buffers.items()):
            if x is not None:
                yield (f"{path}.{name}" if path else name), x


def _run_fake(
    model: nn.Module,
    fakes: dict[str, torch.Tensor],
    mode: FakeTensorMode,
    blocks: Sequence[nn.Module],
    inputs: Inputs,
) -> Shapes:
    leaves = [mode.from_tensor(x) if isinstance(x, torch.Tensor) else x for x in inputs.leaves]
    returned: list[tuple[Shape, ...]] = []
    with ExitStack() as stack:
        for block in blocks:
            hook = block.register_forward_hook(lambda _, __, out: returned.append(_shapes(out)))
            stack.callback(hook.remove)
        stack.enter_context(mode)
        stack.enter_context(torch.no_grad())
        stack.enter_context(_silent("torch._subclasses.fake_tensor"))
        result = torch.func.functional_call(
            model, fakes, (), inputs.replaced(leaves).kwargs(), tie_weights=False
        )
    return Shapes(tuple(returned), _shapes(result))


def _shapes(result: Any) -> tuple[Shape, ...]:
    leaves = pytree.tree_leaves(result)
    return tuple(tuple(x.shape) for x in leaves if isinstance(x, torch.Tensor))
