"""Ranks that are simulated in one process, and tiny models with heads for many of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor, distributed
from torch.distributed._local_tensor import LocalTensorMode
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._pytree import tree_leaves, tree_map

import fisopt
from fisopt import Pass, Program
from tests.conftest import GRID
from tests.zoo import Case, forms

HEADS = 8


@contextmanager
def simulated(ranks: int) -> Iterator[None]:
    """A process group of some ranks, of which this process is the first."""
    distributed.init_process_group("fake", rank=0, world_size=ranks, store=FakeStore())
    try:
        yield
    finally:
        distributed.destroy_process_group()


def divided(program: Program, ranks: int, **options: Any) -> fisopt.PassResult:
    """What sequence parallelism makes of a Program."""
    with simulated(ranks):
        return fisopt.SequenceParallel(**options)(program)


def run(program: Program, inputs: Mapping[str, Any], ranks: int) -> list[list[Tensor]]:
    """What each simulated rank returns."""
    with LocalTensorMode(ranks) as mode:
        given = tree_map(lambda x: everywhere(mode, x), dict(inputs))
        returned: Any = tree_leaves(program(**given))
    return [[x._local_tensors[rank] for x in returned] for rank in range(ranks)]


def everywhere(mode: LocalTensorMode, x: object) -> object:
    """A tensor as each simulated rank has it."""
    return mode.rank_map(lambda rank: x) if isinstance(x, Tensor) else x


def check_equal(
    program: Program,
    inputs: Mapping[str, Any],
    ranks: int,
    passes: Sequence[Pass] = (fisopt.SequenceParallel(),),
) -> fisopt.PassResult:
    """Every rank returns what one alone does; the result of the last pass."""
    wanted = tree_leaves(program(**inputs))
    with simulated(ranks):
        manager = fisopt.PassManager(passes)
        every = run(manager.run(program), inputs, ranks)
    result = manager.applied[-1].result
    for returned in every:
        for got, want in zip(returned, wanted, strict=True):
            torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)
    return result


def many_heads(case: Case) -> Case:
    """The same tiny model with heads for eight ranks."""
    config = dict(case.config)
    if "num_attention_heads" in config:
        size = config["attention_head_dim"]
        width = config["num_attention_heads"] * size
        widths = {k for k, v in config.items() if k.endswith("_dim") and v == width}
        heads = {k: HEADS for k in config if k.endswith("attention_heads")}
        config |= dict.fromkeys(widths, HEADS * size) | heads
    return Case(case.name, case.family, config, case.frames_key)


@cache
def captured_with_heads(name: str) -> tuple[Program, dict[str, Any]]:
    """The Program of such a model, batch of two, and inputs of it."""
    case = many_heads(forms()[name])
    inputs = case.inputs(*GRID, batch=2)
    return fisopt.capture(case.model, inputs), inputs


def rewritten(program: Program, passes: Sequence[Pass]) -> Program:
    """A Program after some passes."""
    return fisopt.PassManager(passes, strict=False).run(program)
