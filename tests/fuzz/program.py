"""One random program: a model, the shapes it is called with, and lists of passes; and its check."""

from __future__ import annotations

import copy
import hashlib
import random
import re
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

import fisopt
from fisopt import FrameInterleave, ModelSpec, Pass, SlidingWindow, TileAttention, TokenReduction
from fisopt.errors import FisoptError
from tests.fuzz.form import Form, draw
from tests.fuzz.model import Model, Shape, build, grid_of, inputs, sample
from tests.fuzz.oracle import Oracle
from tests.fuzz.untouched import differences, snapshot

Passes = tuple[Pass, ...]

LISTS = 5
"""Lists of passes for one model: capturing it takes longest."""


@dataclass(frozen=True)
class Case:
    """A random program.

    Attributes:
        seed: of the weights and inputs.
        form: what the model is made of.
        shapes: of the calls, in order.
        passes: lists of passes; each list optimises the model anew.
        fixed: whether the spec gives the grid of the first call as numbers.
        warm: whether the model has run before it is captured.
        double: whether numbers have 64 bits.
    """

    seed: int
    form: Form
    shapes: tuple[Shape, ...]
    passes: tuple[Passes, ...]
    fixed: bool = False
    warm: bool = False
    double: bool = True

    @property
    def dtype(self) -> torch.dtype:
        return torch.float64 if self.double else torch.float32

    @property
    def digest(self) -> str:
        """Tells a case from one that an earlier generator made of the same seed."""
        return hashlib.blake2b(repr(self).encode(), digest_size=6).hexdigest()


def case(seed: int) -> Case:
    """The random program of a seed."""
    source = random.Random(seed)
    form = draw(source)
    shapes = tuple(draw_shapes(source, form))
    passes = tuple(draw_passes(source, form, shapes[0]) for _ in range(LISTS))
    fixed, warm = source.random() < 0.2, source.random() < 0.3
    reduces = any(isinstance(p, TokenReduction) for each in passes for p in each)
    return Case(seed, form, shapes, passes, fixed, warm, reduces or source.random() < 0.5)


def draw_shapes(source: random.Random, form: Form) -> Iterator[Shape]:
    """One or two shapes; sizes that happen to be equal are likely."""
    del form
    sides = [1, 2, 2, 3, 4]
    first = Shape(
        source.choice([1, 2, 3, 4, 5, 5, 6, 7]),
        source.choice(sides),
        source.choice(sides),
        source.choice([1, 1, 2, 3]),
        source.choice([1, 4, 5, 6, 7, 12]),
    )
    yield first
    for _ in range(source.choice([0, 1, 1])):
        frames, height, width, batch, text = (
            first.frames, first.height, first.width, first.batch, first.text
        )  # fmt: skip
        change = source.choice(["frames", "frames", "frames", "grid", "batch", "text", "all"])
        if change in ("frames", "all"):
            frames = source.choice([1, 3, 4, 5, 6, 7, 9])
        if change in ("grid", "all"):
            height, width = source.choice(sides), source.choice(sides)
        if change in ("batch", "all"):
            batch = source.choice([1, 2, 3, 4])
        if change in ("text", "all"):
            text = source.choice([2, 3, 5, 8])
        yield Shape(frames, height, width, batch, text)


def draw_passes(source: random.Random, form: Form, shape: Shape) -> Passes:
    """A random list of passes."""
    kinds = source.choices(
        ["", "f", "t", "r", "ft", "tf", "fr", "rf", "tr"], [2, 6, 3, 3, 1, 1, 1, 1, 0.3]
    )[0]
    if form.loops:  # every frame is an attention of its own, with destinations of its own
        kinds = kinds.replace("r", "")
    made = {"f": draw_interleave, "t": draw_tiles, "r": draw_reduction}
    return tuple(made[kind](source, form, shape) for kind in kinds)


def draw_interleave(source: random.Random, form: Form, shape: Shape) -> Pass:
    """Frame-interleaved sparsity with random options."""
    if source.random() < 0.3:
        return draw_branches(source, form)
    return FrameInterleave(
        stride=source.choice([2, 2, 3, min(4, max(shape.frames, 2))]),
        blocks=f"{source.choice(['', '0', '1', '-1'])}:{source.choice(['', '', form.layers])}",
        fill=source.choice(["residual", "residual", "state", "carry"]),
        kv=source.choice(["anchors", "anchors", "all"]),
        scope=source.choice(["block", "block", "attention"]),
    )


def draw_branches(source: random.Random, form: Form) -> Pass:
    """Frame-interleaved sparsity with random strides of some branches, for all blocks or each."""

    def strides() -> Any:
        if source.random() < 0.6:
            return source.choice([1, 2, 2, 3])
        return [source.choice([1, 2, 3]) for _ in range(form.layers)]

    kv = [source.choice(["anchors", "all"]) for _ in range(form.layers)]
    branches = source.sample(["self_attention", "cross_attention", "feed_forward"], k=2)
    return FrameInterleave(
        stride=source.choice([1, 1, 2]),
        blocks=f"{source.choice(['', '1'])}:",
        fill=source.choice(["residual", "residual", "carry"]),
        kv=source.choice([kv[0], kv]),  # type: ignore[arg-type]
        **{branch: strides() for branch in branches},
    )


def draw_tiles(source: random.Random, form: Form, shape: Shape) -> Pass:
    """Tile-sparse attention with random options."""
    masks = [1, min(2, shape.frames), SlidingWindow(1), fisopt.RadialDecay(1)]
    return TileAttention(source.choice(masks), blocks=source.choice([":", ":", "1:", ":-1"]))


def draw_reduction(source: random.Random, form: Form, shape: Shape) -> Pass:
    """Token reduction with random options."""
    del form
    cells = [
        tuple(min(a, b) for a, b in zip(stride, shape.grid, strict=True))
        for stride in ((2, 2, 2), (1, 2, 2), (3, 1, 1), (2, 1, 2))
    ]
    return TokenReduction(
        query=source.choice([0.0, 0.1, 0.5, 0.8]),
        value=source.choice([0.0, 0.3, 0.6]),
        destination_stride=source.choice(cells),  # type: ignore[arg-type]
        mode=source.choice(["replace", "replace", "mean"]),
        seed=source.choice([0, 1]),
        search=source.choice(["all", "near"]),
    )


@dataclass(frozen=True)
class Outcome:
    """What became of one call, or of the model.

    Attributes:
        kind: "equal", "refused", "wrong", "raw error", or "touched" (the model was changed).
        what: the reason of a refusal, names and numbers masked, or what is wrong.
        passes: which list of passes, by number.
        shape: which call, by number.
    """

    kind: str
    what: str
    passes: int
    shape: int


def check(case: Case) -> list[Outcome]:
    """Run a program and compare every call with the oracle."""
    model, pristine = (build(case.form, case.seed, case.dtype) for _ in range(2))
    given = [inputs(case.form, s, case.seed + i, case.dtype) for i, s in enumerate(case.shapes)]
    if case.warm:
        dense(model, given[0])
    before = snapshot(model, given)
    outcomes = list(calls(case, model, pristine, given))
    changed = differences(before, snapshot(model, given))
    if not changed and not torch.equal(dense(model, given[0]), dense(pristine, given[0])):
        changed = ["it computes something else"]
    return [*outcomes, *(Outcome("touched", what, 0, 0) for what in changed[:1])]


def dense(model: Model, given: dict[str, Any]) -> Tensor:
    """The video that a model makes; what it writes into its arguments is lost."""
    with torch.no_grad():
        return sample(model(**copy.deepcopy(given)))


def calls(
    case: Case, model: Model, pristine: Model, given: Sequence[dict[str, Any]]
) -> Iterator[Outcome]:
    """What becomes of every call under every list of passes."""
    grid = grid_of(case.form)
    spec = ModelSpec(model.patterns, grid(given[0]) if case.fixed else grid)
    current: Any = model
    for p, passes in enumerate(case.passes):
        fast: Any = None
        for i, shape in enumerate(case.shapes):
            mine, theirs = copy.deepcopy(given[i]), copy.deepcopy(given[i])
            try:
                if fast is None:
                    fast = fisopt.optimize(
                        current, passes, example_inputs=given[i], spec=spec, backend="eager"
                    )
                    current = fast  # what was captured serves the next list of passes
                got = [sample(fast(**mine)), *tensors(mine)]
            except FisoptError as error:
                yield Outcome("refused", reason(error), p, i)
            except Exception as error:
                yield Outcome("raw error", raw(error), p, i)
            else:
                want = [Oracle(pristine, shape, passes)(theirs), *tensors(theirs)]
                yield Outcome(*compared(case, got, want, dense=not passes), p, i)
            if fast is None:
                break


def tensors(given: Any) -> list[Tensor]:
    """The tensors among the arguments of a call: what a model has written into them counts."""
    return [x for x in pytree.tree_leaves(given) if isinstance(x, Tensor)]


def compared(
    case: Case, got: Sequence[Tensor], want: Sequence[Tensor], *, dense: bool
) -> tuple[str, str]:
    """Whether results and arguments after a call are equal, and what is different."""
    for i, (a, b) in enumerate(zip(got, want, strict=True)):
        where = "" if i == 0 else f" in argument {i - 1}"
        if type(a) is not type(b) or a.shape != b.shape or a.dtype != b.dtype:
            return "wrong", f"{type(a).__name__} {tuple(a.shape)} {a.dtype}{where}"
        if not a.is_floating_point():
            if not torch.equal(a, b):
                return "wrong", f"changed{where}"
            continue
        if not bool(b.isfinite().all()):
            return "wrong", f"the oracle's result is not finite{where}"
        difference = float((a - b).abs().max())
        tolerances = (1e-12, 2e-6) if case.double else (1e-6, 5e-5)
        if difference > tolerances[not dense] * max(1.0, float(b.abs().max())):
            return "wrong", f"by {difference:.1e}{where}"
    return "equal", ""


def reason(error: FisoptError) -> str:
    """The class and the message of a refusal without what differs from model to model."""
    text = re.sub(r"(?s)\n.*", "", str(error))
    text = re.sub(r"(layers|blocks)(\.\w+)+(, (layers|blocks)(\.\w+)+)*", "BLOCKS", text)
    text = re.sub(r"-?\d[\dx.]*", "#", text)
    text = re.sub(r"\{.*?\}|%\w+ : \[.*?\] = \w+\[.*?\]\(.*\)", "...", text)
    text = re.sub(r"; BLOCKS: .*?(?= \(strict|$)", "", text)  # the reason of the first blocks
    return f"{type(error).__name__}: {text[:240]}"


def raw(error: Exception) -> str:
    """An error that is none of fisopt's, and where it came from."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    own = [t for t in traceback.extract_tb(error.__traceback__) if "/fisopt/" in t.filename]
    place = own[-1] if own else last
    name = place.filename.rsplit("/fisopt/", 1)[-1]
    return f"{type(error).__name__}: {str(error)[:200]} ({name}:{place.lineno})"
