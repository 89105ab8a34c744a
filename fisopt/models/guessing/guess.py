"""Guess where the blocks and the tokens of a model are, from one call's arguments or from none."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from torch import nn

from fisopt.errors import CaptureError, FisoptError, InputError
from fisopt.models.guessing.proposals import proposals
from fisopt.models.guessing.readings import Reading, readings
from fisopt.models.registry import known_inside, spec_of
from fisopt.rewrite.axes import TokenLayout
from fisopt.rewrite.tracing.attending import Seen, seen
from fisopt.rewrite.tracing.block_paths import outer_lists
from fisopt.rewrite.tracing.follow import Search, shapes_of
from fisopt.rewrite.tracing.inputs import Inputs, bind_example, check_example
from fisopt.rewrite.tracing.readiness import unhooked
from fisopt.rewrite.tracing.trials import shape_trials, user_line
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
class _Candidate:
    """A reading, and the blocks that return as many tokens as it says."""

    reading: Reading
    grid: TokenLayout
    blocks: tuple[str, ...]

    @property
    def spec(self) -> ModelSpec:
        return ModelSpec(blocks=self.blocks, grid=self.reading)

    @property
    def key(self) -> tuple[Any, ...]:
        """What differs between readings that say different things of other calls too."""
        return self.grid, self.blocks, getattr(self.reading, "layout", None)

    @property
    def why(self) -> str:
        return f"{self.grid} from {self.reading}; blocks {', '.join(self.blocks)}"

    def guess(self, inputs: Inputs) -> Guess:
        return Guess(self.spec, inputs.kwargs(), self.why)


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
    except InputError as error:
        if known_inside(model):
            raise
        if not any(_lists(model)):
            raise InputError(f"{error}{_alike(model)}") from error
        return guessed_spec


def _alike(model: nn.Module) -> str:
    """Name layers of one class that are attributes, the largest ones; empty if there are none."""
    kinds: dict[type[nn.Module], list[str]] = {}
    for name, layer in model.named_children():
        kinds.setdefault(type(layer), []).append(name)
    found = {kind: names for kind, names in kinds.items() if len(names) > 1}
    if not found:
        return ""
    layers = dict(model.named_children())
    kind = max(found, key=lambda kind: sum(p.numel() for p in layers[found[kind][0]].parameters()))
    return f"; {', '.join(found[kind])} are all {kind.__name__}: are these its blocks?"


def guessed_spec(model: nn.Module, inputs: Mapping[str, Any]) -> tuple[ModelSpec, str]:
    """Return the spec of a guess from a call's arguments, and what a report says of it."""
    found = guess(model, inputs)
    return found.spec, (
        f"no adapter for {type(model).__name__}; guessed from the first call: {found.why}. Where "
        f"this is wrong, give spec="
    )


def _from(model: nn.Module, inputs: Inputs) -> Guess:
    check_example(model, inputs)
    plain = unhooked(model)
    found = _run(plain, list(_lists(model)), inputs)
    attending = {name: seen for name, seen in found.items() if seen.attends}
    refused = ""
    for lists in dict.fromkeys((tuple(attending), tuple(found))):
        taken = _among(plain, {name: found[name] for name in lists}, inputs)
        if isinstance(taken, _Candidate):
            return taken.guess(inputs)
        refused = refused or taken
    lists = tuple(f"{name}.*" for name in found)
    raise InputError(
        f"{type(model).__name__}: no reading of {shapes_of(inputs)} fits the blocks "
        f"{list(lists)} ({refused}). Give spec=fisopt.ModelSpec(blocks={lists or '(...)'}, "
        "grid=...): the paths of the modules that process the video, and a function of the "
        "arguments that returns (frames, rows, columns) in tokens; for images, images=True and "
        "(rows, 1, columns)"
    )


def _among(model: nn.Module, found: Mapping[str, Seen], inputs: Inputs) -> _Candidate | str:
    """Return what fits the blocks of some lists, or why nothing does.

    What fits at one length alone counts only where the blocks return the tokens that it says.

    Raises:
        InputError: Two readings fit.
    """
    tiers: list[list[_Candidate]] = [[], [], []]
    for reading in readings(inputs.kwargs(), getattr(model, "config", {})):
        grid = TokenLayout(*reading(inputs.kwargs()))
        fits = {name: _tier(seen, grid, inputs, reading) for name, seen in found.items()}
        best = min((tier for tier in fits.values() if tier is not None), default=None)
        if best is not None:
            blocks = tuple(f"{name}.*" for name, tier in fits.items() if tier == best)
            tiers[best].append(_Candidate(reading, grid, blocks))
    refused = "no tensor in a usual order of latents has as many tokens"
    at_one_length: list[_Candidate] = []
    for tier in tiers:
        fitting: dict[Any, tuple[_Candidate, int]] = {}
        for candidate in tier:
            try:
                step = _follow(model, candidate.spec, inputs, candidate.grid)
            except CaptureError as error:
                refused = f"{candidate.reading}: {error}"
            else:
                fitting.setdefault(candidate.key, (candidate, step))
        if followed := [c for c, step in fitting.values() if step]:
            return _only(model, followed)
        if tier is not tiers[-1]:
            at_one_length = at_one_length or [c for c, _ in fitting.values()]
        elif fitting:
            refused = f"at this length alone: {' or '.join(c.why for c, _ in fitting.values())}"
    if at_one_length:
        return _only(model, at_one_length)
    return refused


def _only(model: nn.Module, chosen: Sequence[_Candidate]) -> _Candidate:
    """Return the one candidate there is.

    Raises:
        InputError: There are more.
    """
    if len(chosen) > 1:
        raise InputError(
            f"{type(model).__name__}: two readings fit, so none is taken: "
            f"{' or '.join(c.why for c in chosen)}. Say which: "
            "spec=fisopt.ModelSpec(blocks=..., grid=...)"
        )
    return chosen[0]


def _run(model: nn.Module, lists: Sequence[str], inputs: Inputs) -> Mapping[str, Seen]:
    """Run the model and see what the modules of its lists do.

    Raises:
        InputError: The model does not run.
    """
    with seen(model, lists) as found, shape_trials(model, [], inputs) as (trial, *_):
        try:
            trial(inputs)
        except FisoptError:
            raise
        except Exception as error:
            raise InputError(
                f"{type(model).__name__} does not run on shapes alone: {type(error).__name__}: "
                f"{error}\n    {user_line(error)}"
            ) from error
    return found


def _lists(model: nn.Module) -> Iterator[str]:
    """Paths of the outermost lists of modules, those of one class each."""
    for name, layers in outer_lists(model).items():
        if len({type(layer) for layer in layers}) == 1:
            yield name


def _tier(found: Seen, grid: TokenLayout, inputs: Inputs, reading: Reading) -> int | None:
    """How well what a list returns fits the tokens: 0 alone, 1 with text, 2 with anything."""
    batch = reading.clips(inputs.kwargs())
    if batch is None:
        batch = max((x.shape[0] for _, x in inputs.tensors() if x.ndim > 2), default=1)
    sizes = [size for shape in found.shapes for size in shape[1:-1]]
    if grid.tokens in sizes or any(prod(s[:-1]) == batch * grid.tokens for s in found.shapes):
        return 0
    lengths = {x.shape[1] for _, x in inputs.tensors() if x.ndim == 3}
    if lengths & {size - grid.tokens for size in sizes}:
        return 1
    return 2 if any(size > grid.tokens for size in sizes) else None


def _follow(model: nn.Module, spec: ModelSpec, inputs: Inputs, grid: TokenLayout) -> int:
    """Return how many frames more the model takes, 0 for none.

    Raises:
        CaptureError: the blocks do not return the grid's tokens.
    """
    patterns = {pattern.removesuffix(".*") for pattern in spec.blocks}
    blocks = [m for name in patterns for m in model.get_submodule(name).children()]
    with shape_trials(model, blocks, inputs) as (trial, *_):
        search = Search(inputs, grid, spec, trial, trial(inputs))
        followed = search.run()
        for i, growths in followed.dims.items():
            if any(growth.padded for growth in growths):
                _check_shortest(search, i)
    return followed.step


def _check_shortest(search: Search, i: int) -> None:
    """Insist that a length to which a model pads its tokens may be their number, and no less.

    Any smaller grid fits into what is padded; this alone says which is the video's.
    """
    leaves, name = search.inputs.leaves, search.inputs.names[i]
    tokens = search.grid.tokens

    def same(length: int) -> bool:
        shorter = search.inputs.replaced([*leaves[:i], length, *leaves[i + 1 :]])
        try:
            return search.trial(shorter).results == search.before.results
        except Exception:
            return False

    if not same(tokens) or same(tokens - 1):
        raise CaptureError(
            f"the blocks return {leaves[i]} tokens, as {name} says, and {tokens} is not the "
            f"smallest {name} with which the model returns as much"
        )
