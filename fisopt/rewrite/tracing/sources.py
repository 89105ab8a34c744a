"""The texts of generated graphs, which torch.fx keeps as long as the process lives."""

from __future__ import annotations

import linecache
from collections.abc import Iterator
from contextlib import contextmanager

from torch.fx import graph_module


@contextmanager
def forgotten() -> Iterator[None]:
    """On leaving, let go of the texts of the graphs that were made inside.

    torch.fx keeps each one for tracebacks, also of graphs that are gone: where ever new shapes
    are met, ever more.  Graphs still print their code.
    """
    texts = getattr(getattr(graph_module, "_loader", None), "eval_cache", {})
    before = set(texts)
    try:
        yield
    finally:
        for name in [name for name in list(texts) if name not in before]:
            texts.pop(name, None)
            linecache.cache.pop(name, None)
