"""Frame-interleaved sparsity over the blocks of any model: what carries frames is what grows.

For families that `tests.passes.loop` has no words for: the model runs at one frame more, and the
dimensions of what its blocks take and return that are longer then carry the frames.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from fisopt.rewrite.tracing.block_paths import matches
from tests.passes.loop import Block, Loop, Options, Video


def continued(module: nn.Module, result: int) -> tuple[int, ...]:
    """The arguments by place whose sum a result of a block is an update of."""
    if type(module).__name__ == "CosmosTransformerBlock":
        return (0, 6)  # every block adds its positions again
    if type(module).__name__ != "WanVACETransformerBlock":
        return (0,)
    control = (2,) if module.proj_in is None else (0,)
    return control if result else ()  # the first is a hint, a projection of the second


@dataclass(frozen=True)
class Grown:
    """A dimension that is longer for a frame more; ``before`` entries of others are ahead."""

    dim: int
    inner: int
    before: int
    after: int


@dataclass(frozen=True)
class Seen:
    """What a block took and returned: the grown dimension of each leaf, if there is one."""

    inputs: tuple[Grown | None, ...]
    results: tuple[Grown | None, ...]


def sizes(leaf: Any) -> tuple[int, ...]:
    if isinstance(leaf, Tensor):
        return tuple(leaf.shape)
    return (leaf,) if isinstance(leaf, int) and not isinstance(leaf, bool) else ()


def calls(model: nn.Module, blocks: Sequence[nn.Module], inputs: Any) -> dict[nn.Module, Any]:
    """Sizes of the leaves that each block takes and returns, in the order in which they run."""
    found: dict[nn.Module, Any] = {}

    def look(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        found[module] = [[sizes(x) for x in tree_leaves(part)] for part in ((args, kwargs), output)]

    with ExitStack() as stack, torch.no_grad():
        for block in blocks:
            stack.callback(block.register_forward_hook(look, with_kwargs=True).remove)
        model(**inputs)
    return found


def grown(
    size: tuple[int, ...], more: tuple[int, ...], frames: int, before: int | None
) -> Grown | None:
    """The dimension that differs; without a number, what is no frames is behind."""
    dims = [d for d, (a, b) in enumerate(zip(size, more, strict=True)) if a != b]
    if not dims:
        return None
    (dim,) = dims
    inner = more[dim] - size[dim]
    rest = size[dim] - frames * inner
    ahead = min(rest, before or 0)
    return Grown(dim, inner, ahead, rest - ahead)


def compared(
    model: nn.Module,
    patterns: tuple[str, ...],
    inputs: tuple[Mapping[str, Any], Mapping[str, Any]],
    frames: int,
    before: int = 0,
) -> dict[nn.Module, Seen]:
    """Blocks of a model in their order, and where their frames are; inputs at F and F + 1."""
    blocks = [module for name, module in model.named_modules() if matches(name, patterns)]
    few, many = (calls(model, blocks, each) for each in inputs)
    return {
        module: Seen(
            *(
                tuple(grown(a, b, frames, before) for a, b in zip(x, y, strict=True))
                for x, y in zip(few[module], many[module], strict=True)
            )
        )
        for module in few
    }


class AnyLoop(Loop):
    """Hooks that make blocks frame-sparse, by what was seen of them."""

    def __init__(self, seen: Mapping[nn.Module, Seen], frames: int, options: Options) -> None:
        super().__init__([Block(module, Video(1)) for module in seen], frames, options)
        self.seen = seen
        self.given: list[Any] = []

    def enter(self, module: nn.Module, args: Any, kwargs: Any) -> Any:
        kept = self.blocks[module][1]
        self.given, structure = tree_flatten((args, kwargs))
        if self.options.kv == "all":
            return args, kwargs
        leaves = [
            self.fewer(leaf, where, kept)
            for leaf, where in zip(self.given, self.seen[module].inputs, strict=True)
        ]
        return tree_unflatten(leaves, structure)

    def fewer(self, leaf: Any, where: Grown | None, kept: list[int]) -> Any:
        if where is None:
            return leaf
        if isinstance(leaf, int):
            return leaf - (self.frames - len(kept)) * where.inner
        video = Video(where.dim, inner=where.inner)
        return self.take(leaf, video, kept, where.before, where.after)

    def leave(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        del args, kwargs
        kept = self.blocks[module][1]
        leaves, structure = tree_flatten(output)
        filled, seen = [], self.seen[module]
        for i, (leaf, where) in enumerate(zip(leaves, seen.results, strict=True)):
            filled.append(leaf if where is None else self.filled(module, i, leaf, where, kept))
        return tree_unflatten(filled, structure)

    def filled(self, module: nn.Module, i: int, y: Tensor, where: Grown, kept: list[int]) -> Tensor:
        if self.options.kv == "all":
            y = self.fewer(y, where, kept)
        video = Video(where.dim, inner=where.inner)
        end = y.shape[where.dim] - where.before - where.after

        def middle(x: Tensor, size: int) -> Tensor:
            return x.narrow(where.dim, where.before, size)

        places = continued(module, i)
        streams = [self.given[n] for n in places if isinstance(self.given[n], Tensor)]
        options = self.options
        if streams:
            stream = middle(sum(streams), self.frames * where.inner)  # type: ignore[arg-type]
        else:
            stream, self.options = None, replace(options, fill="state")
        spread = self.spread(stream, middle(y, end), video, kept)
        self.options = options
        head = y.narrow(where.dim, 0, where.before)
        tail = y.narrow(where.dim, where.before + end, where.after)
        return torch.cat([head, spread, tail], where.dim)


@contextmanager
def any_interleaved(
    seen: Mapping[nn.Module, Seen], options: Options, frames: int
) -> Iterator[None]:
    """Inside, the blocks are frame-sparse."""
    loop = AnyLoop(seen, frames, options)
    with ExitStack() as stack:
        for module in seen:
            for handle in (
                module.register_forward_pre_hook(loop.enter, with_kwargs=True),
                module.register_forward_hook(loop.leave, with_kwargs=True),
            ):
                stack.callback(handle.remove)
        yield
