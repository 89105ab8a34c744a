"""The implementations of a region on random operands: its reference, every cut of its kernel."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fisopt.codegen.emit import cache as disk
from fisopt.codegen.emit.kernel import Config, Kernel
from fisopt.codegen.emit.launch import launch
from fisopt.codegen.emit.region import Region


def candidates(
    region: Region, kernel: Kernel, device: torch.device
) -> dict[str, Callable[[], Sequence[Tensor]]]:
    """A region's implementations on random operands of its shapes."""
    values = random_operands(region, kernel, device)
    compiled = torch.compile(region.graph, fullgraph=True, dynamic=False)

    def reference() -> Sequence[Tensor]:
        with torch.no_grad():
            result: Sequence[Tensor] = compiled(*values)
        return result

    def emitted(config: Config) -> Sequence[Tensor]:
        written = launch(kernel, values, config)
        return [written[i] for i in kernel.gives]

    cut = {name: partial(emitted, config) for name, config in cuts(kernel).items()}
    return {"reference": reference, **cut}


def cuts(kernel: Kernel) -> dict[str, Config]:
    """The configs of an emitted kernel by their names as candidates."""
    return {f"emitted {config}": config for config in kernel.configs()}


def random_operands(region: Region, kernel: Kernel, device: torch.device) -> list[Tensor]:
    """Operands of a region's shapes and dtypes, seeded; indices in range."""
    generator = torch.Generator(device).manual_seed(0)
    place: Any = {"generator": generator, "device": device}
    sizes = dict(kernel.index_sizes)
    made = []
    for i, node in enumerate(region.operands):
        like: Tensor = node.meta["val"]
        if like.is_floating_point():
            x = torch.randn(like.shape, dtype=like.dtype, **place)
        else:
            high = 2 if like.dtype == torch.bool else sizes.get(i, 2)
            x = torch.randint(0, high, like.shape, **place).to(like.dtype)
        made.append(x)
    return made


def shape_class(kernel: Kernel, region: Region) -> str:
    """What regions share whose timings hold for each other: operators, row, dtypes, row count.

    Row counts of one class lie between two powers of two.
    """
    operators = [str(n.target) for n in region.graph.graph.nodes if n.op == "call_function"]
    dtypes = [str(node.meta["val"].dtype) for node in (*region.operands, *region.results)]
    words = kernel.name.rsplit("_", 1)[0]
    rows = (kernel.rows - 1).bit_length()
    form = disk.digest(json.dumps([operators, dtypes, *cuts(kernel)]))
    return f"{words} {form}, rows of {kernel.columns}, up to 2**{rows}, torch {torch.__version__}"
