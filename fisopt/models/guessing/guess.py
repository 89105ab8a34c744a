"""Guess where the blocks and the tokens of a model are, from one call's arguments or from none."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from math import prod
from typing import Any

from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fisopt.errors import CaptureError, FisoptError, InputError
from fisopt.models.guessing.proposals import proposals
from fisopt.models.guessing.readings import readings
from fisopt.models.registry import known_inside, spec_of
from fisopt.rewrite.axes import TokenLayout
from fisopt.rewrite.tracing.follow import Search, shapes_of
from fisopt.rewrite.tracing.inputs import Inputs, bind_example, check_example
from fisopt.rewrite.tracing.readiness import unhooked
from fisopt.rewrite.tracing.trials import Shape, Trial, shape_trials, user_line
from fisopt.spec import ModelSpec, SpecOf


@dataclass(frozen=True)
class Guess:
    """What a model's blocks and grid seem to be.

    Attributes:
        spec: to be passed as ``spec=`` of `capture` and `optimize`.
        inputs: arguments of one forward call that the model takes.
        why: how the grid was read, and which blocks carry it, in a sentence.
    """

    spec: ModelSpec
    inputs: Mapping[str, Any]
    why: str


@dataclass(frozen=True)
class _Fit:
    """A reading that fits, by how many frames more the model runs (0: none), and its sentence."""

    spec: ModelSpec
    step: int
    why: str


def guess(model: nn.Module, inputs: Mapping[str, Any] | None = None) -> Guess:
    """Guess the blocks and the token grid of a video transformer that no adapter knows.

    The model runs on fake tensors, at two frame counts, and stays as it was. A guess that two
    readings of the inputs fit is none.

    Args:
        model: a module in evaluation mode.
        inputs: keyword arguments of one forward call; without, they are made from the signature
            and the config, as models of diffusers take them.

    Raises:
        InputError: no reading fits, or two do; the message names them.
    """
    if inputs is not None:
        return _from(model, bind_example(model, inputs))
    refused: dict[str, None] = {}
    for proposed in proposals(model):
        try:
            return _from(model, bind_example(model, proposed))
        except FisoptError as error:
            refused[str(error)] = None
    raise InputError(
        f"{type(model).__name__}: no inputs can be made from its signature "
        f"{list(inspect.signature(model.forward).parameters)}; pass the keyword arguments of one "
        f"forward call. Tried: {next(reversed(refused), 'nothing')}"
    )


def spec_for(model: nn.Module) -> ModelSpec | SpecOf:
    """Return the spec of a known family, or what guesses it from the arguments of a call.

    Raises:
        InputError: No adapter knows the model, and it has no blocks to guess, or it holds one that
            an adapter knows.
    """
    try:
        return spec_of(model)
    except InputError:
        if known_inside(model) or not any(_lists(model)):
            raise
        return guessed_spec


def guessed_spec(model: nn.Module, inputs: Mapping[str, Any]) -> tuple[ModelSpec, str]:
    """Return the spec of a guess from a call's arguments, and what a report says of it."""
    found = guess(model, inputs)
    return found.spec, (
        f"no adapter for {type(model).__name__}; guessed from the first call: {found.why}. Where "
        f"this is wrong, give spec="
    )


def _from(model: nn.Module, inputs: Inputs) -> Guess:
    check_example(model, inputs)
    plain, found = unhooked(model), list(_lists(model))
    refused = "it has no list of blocks"
    fitting: dict[tuple[Any, ...], _Fit] = {}
    with shape_trials(plain, [], inputs) as (trial, _, _):
        try:
            returned = _returned(plain, found, trial, inputs)
        except Exception as error:
            raise InputError(
                f"{type(model).__name__} does not run on shapes alone: {type(error).__name__}: "
                f"{error}\n    {user_line(error)}"
            ) from error
    for reading in readings(inputs.kwargs(), getattr(model, "config", {})):
        grid = TokenLayout(*reading(inputs.kwargs()))
        blocks = tuple(f"{name}.*" for name in found if _carries(returned[name], grid, inputs))
        key = (grid.frames, grid.height, grid.width, getattr(reading, "layout", None), blocks)
        if not blocks or key in fitting:
            continue
        spec = ModelSpec(blocks=blocks, grid=reading)
        try:
            step = _follow(plain, spec, inputs, grid)
        except CaptureError as error:
            refused = f"{reading}: {error}"
        else:
            fitting[key] = _Fit(spec, step, f"{grid} from {reading}; blocks {', '.join(blocks)}")
    found_fits = [fit for fit in fitting.values() if fit.step] or list(fitting.values())
    if len(found_fits) > 1:
        both = " or ".join(fit.why for fit in found_fits)
        raise InputError(
            f"{type(model).__name__}: two readings fit, so none is taken: {both}. Say which: "
            f"spec=fisopt.ModelSpec(blocks=..., grid=...)"
        )
    if not found_fits:
        raise InputError(
            f"{type(model).__name__}: no reading of {shapes_of(inputs)} fits the blocks "
            f"{[f'{name}.*' for name in found]} ({refused}); give "
            'spec=fisopt.ModelSpec(blocks=("layers.*",), grid=(frames, rows, columns))'
        )
    (fit,) = found_fits
    return Guess(fit.spec, inputs.kwargs(), fit.why)


def _lists(model: nn.Module) -> Iterator[str]:
    """Paths of the outermost lists of modules of one class each."""
    taken: list[str] = []
    for name, module in model.named_modules():
        if any(name.startswith(f"{before}.") for before in taken):
            continue
        if isinstance(module, nn.ModuleList) and len({type(m) for m in module}) == 1:
            taken.append(name)
            yield name


def _returned(
    model: nn.Module, lists: Sequence[str], trial: Trial, inputs: Inputs
) -> dict[str, list[Shape]]:
    """Shapes of what the modules of each list return."""
    found: dict[str, list[Shape]] = {name: [] for name in lists}
    with ExitStack() as stack:
        for name in lists:
            shapes = found[name]

            def note(_: Any, __: Any, out: Any, shapes: list[Shape] = shapes) -> None:
                leaves = pytree.tree_leaves(out)
                shapes.extend(tuple(x.shape) for x in leaves if isinstance(x, Tensor))

            for module in model.get_submodule(name).children():
                stack.callback(module.register_forward_hook(note).remove)
        trial(inputs)
    return found


def _carries(shapes: Sequence[Shape], grid: TokenLayout, inputs: Inputs) -> bool:
    """Whether what a list returns holds the tokens, alone or joined to another sequence."""
    lengths = {x.shape[1] for _, x in inputs.tensors() if x.ndim == 3}
    batch = max((x.shape[0] for _, x in inputs.tensors() if x.ndim > 2), default=1)
    return any(
        prod(shape[:-1]) == batch * grid.tokens
        or any(size == grid.tokens or size - grid.tokens in lengths for size in shape[1:-1])
        for shape in shapes
    )


def _follow(model: nn.Module, spec: ModelSpec, inputs: Inputs, grid: TokenLayout) -> int:
    """Return how many frames more the model takes, 0 for none.

    Raises:
        CaptureError: the blocks do not return the grid's tokens.
    """
    patterns = {pattern.removesuffix(".*") for pattern in spec.blocks}
    blocks = [m for name in patterns for m in model.get_submodule(name).children()]
    with shape_trials(model, blocks, inputs) as (trial, _, _):
        return Search(inputs, grid, spec, trial, trial(inputs)).run().step
