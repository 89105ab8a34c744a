"""The repeated blocks of a model: which modules they are, and which of them runs."""

from __future__ import annotations

import fnmatch
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn

BLOCK = "fisopt.block"
"""Where a node says the path of the block that it was traced in."""


def matches(path: str, patterns: tuple[str, ...]) -> bool:
    """Whether a module path matches one of the patterns, ``*`` standing for one component."""
    parts = path.split(".")
    return any(
        len(parts) == len(wanted := pattern.split("."))
        and all(fnmatch.fnmatchcase(part, want) for part, want in zip(parts, wanted, strict=True))
        for pattern in patterns
    )


def blocks_of(model: nn.Module, patterns: tuple[str, ...]) -> dict[str, nn.Module]:
    """The modules whose paths match, by path."""
    return {path: m for path, m in model.named_modules() if matches(path, patterns)}


def outer_lists(model: nn.Module) -> dict[str, list[nn.Module]]:
    """The layers of lists that lie in no other list, by path.

    A `ModuleList` is one, and so are several layers of one class in a `Sequential` or `ModuleDict`.
    """
    found: dict[str, list[nn.Module]] = {}
    for name, module in model.named_modules():
        inside = any(name.startswith(f"{before}.") for before in found)
        layers = list(module.children())
        if name and layers and not inside and _is_list(module, layers):
            found[name] = layers
    return found


def _is_list(module: nn.Module, layers: Sequence[nn.Module]) -> bool:
    if isinstance(module, nn.ModuleList):
        return True
    alike = len({type(layer) for layer in layers}) == 1 < len(layers)
    composed = any(True for layer in layers for _ in layer.children())
    return isinstance(module, (nn.Sequential, nn.ModuleDict)) and alike and composed


class RunningBlock:
    """Which block runs at the moment, if any.

    Attributes:
        path: that of the outermost block; ``path@n`` at its n-th call again; None outside.
    """

    def __init__(self) -> None:
        self.path: str | None = None
        self._calls: Counter[str] = Counter()
        self._depth = 0

    def enter(self, path: str) -> None:
        """Note that a block begins."""
        if not self._depth:
            again, self._calls[path] = self._calls[path], self._calls[path] + 1
            self.path = f"{path}@{again}" if again else path
        self._depth += 1

    def leave(self) -> None:
        """Note that the block that began last has returned."""
        self._depth -= 1
        if not self._depth:
            self.path = None


@contextmanager
def running_block(blocks: Mapping[str, nn.Module]) -> Iterator[RunningBlock]:
    """Inside, calls of blocks are noted.

    Yields:
        The block that runs.
    """
    now = RunningBlock()

    def begins(path: str) -> Any:
        return lambda *_: now.enter(path)

    def ends(*_: Any) -> None:
        now.leave()

    with ExitStack() as stack:
        for path, block in blocks.items():
            stack.callback(block.register_forward_pre_hook(begins(path)).remove)
            stack.callback(block.register_forward_hook(ends).remove)
        yield now
