"""What every pass must keep, and whether it does what an oracle says."""

from __future__ import annotations

import copy
import difflib
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from fisopt.api import optimize
from fisopt.errors import CheckError
from fisopt.rewrite.pass_base import Pass, PassResult, Step
from fisopt.rewrite.program import Program
from fisopt.rewrite.text import format_graph
from fisopt.rewrite.verify import verify
from fisopt.testing.zoo import KINDS, Case, zoo

Oracle = Callable[[nn.Module, Sequence[nn.Module], Mapping[str, Any]], Any]
"""Computes, without the pass, what a model should return under it.

It gets a copy of the model, which it may change, the copy's video blocks, and the arguments of a
call.
"""


def assert_program(program: Program, text: str, *, blocks: bool = True) -> None:
    """Compare the text of a Program with the expected text.

    Args:
        program: the Program.
        text: what `format_graph` should return; the check ignores common indentation.
        blocks: whether the text includes the graphs of blocks.

    Raises:
        CheckError: they differ; the message is a unified diff.
    """
    wanted = textwrap.dedent(text).strip().splitlines()
    found = format_graph(program, blocks=blocks).strip().splitlines()
    if found != wanted:
        lines = difflib.unified_diff(wanted, found, "wanted", "found", lineterm="")
        raise CheckError("the program is another\n" + "\n".join(lines))


def check_contract(program: Program, passes: Sequence[Pass]) -> tuple[PassResult, ...]:
    """Check the contract that every pass must keep, one pass after another on a Program.

    The contract: a pass leaves its input Program unchanged. The new Program passes `verify`, shares
    the parameters, and is the same each time. ``modified`` is true if the text changed. The pass
    writes a note and skips nothing, and passes with equal options are equal.

    Args:
        program: a Program of any model.
        passes: the passes in order.

    Returns:
        What each pass made.

    Raises:
        CheckError: a pass breaks the contract; the message names the pass and the broken part.
    """
    first, again = (_applied(program, passes) for _ in range(2))
    for pass_, result, other in zip(passes, first, again, strict=True):
        same = _text(result.program) == _text(other.program)
        _hold(same, pass_, "makes another Program each time")
    held = {id(p) for p in program.graph_module.parameters()}
    for pass_, result in zip(passes, first, strict=True):
        mine = {id(p) for p in result.program.graph_module.parameters()}
        _hold(mine <= held, pass_, "copies parameters of the model")
    return first


def _applied(program: Program, passes: Sequence[Pass]) -> tuple[PassResult, ...]:
    results = []
    for pass_ in passes:
        twin = type(pass_)(**vars(pass_))
        _hold(
            twin == pass_ and hash(twin) == hash(pass_),
            pass_,
            ("does not equal a pass with the same options"),
        )
        before = _text(program)
        result = pass_(program)
        _hold(_text(program) == before, pass_, "changed its input Program")
        changed = _text(result.program) != before
        _hold(result.modified == changed, pass_, f"says modified={result.modified}")
        _hold(bool(result.notes), pass_, "left no note; call rewriter.note")
        _hold(not result.skipped, pass_, f"skipped {'; '.join(result.skipped)}")
        verify(result.program)
        results.append(result)
        program = result.program
    return tuple(results)


def check_pass(
    pass_: Pass,
    oracle: Oracle | None = None,
    *,
    models: Sequence[str | Case] = KINDS,
    grid: tuple[int, int, int] = (5, 3, 4),
    step: Step | None = None,
    tolerance: float = 1e-4,
) -> dict[str, PassResult]:
    """Check a pass on tiny models: its contract, and its numbers against an oracle.

    Args:
        pass_: the pass.
        oracle: a function that computes the expected output without the pass; without an oracle
            `check_pass` only checks the contract.
        models: names of `zoo`, or cases.
        grid: latent frames, rows and columns of tokens.
        step: the denoising step, for a pass that differs between steps; the first of four if None.
        tolerance: largest absolute difference from the oracle, float32.

    Returns:
        What the pass made of each model, by name.

    Raises:
        CheckError: the pass breaks the contract, is dense at this step, or differs from the oracle;
            the message names the model.
        FisoptError: the pass cannot be applied to a model.
    """
    now = step or Step(0, 4)
    active = pass_.at(now)
    _hold(active is not None, pass_, f"is dense at step {now.index} of {now.count}")
    assert active is not None
    cases = [zoo()[each] if isinstance(each, str) else each for each in models]
    found = {}
    for case in cases:
        program = case.captured(*grid, batch=2)
        (found[case.name],) = check_contract(program, [active])
        if oracle is not None:
            _compare(case, program, active, oracle, grid, tolerance)
    return found


def _compare(
    case: Case,
    program: Program,
    pass_: Pass,
    oracle: Oracle,
    grid: tuple[int, int, int],
    tolerance: float,
) -> None:
    inputs, model = case.inputs(*grid, batch=2), copy.deepcopy(case.model_for(grid[0]))
    fast = optimize(program, passes=[pass_], backend="eager")
    with torch.no_grad():
        found = fast(**inputs)
        wanted = oracle(model, case.blocks_of(model), inputs)
    tensors = [[x for x in tree_leaves(y) if isinstance(x, Tensor)] for y in (found, wanted)]
    _hold(len(tensors[0]) == len(tensors[1]), pass_, f"{case.name}: the oracle returns other")
    for a, b in zip(*tensors, strict=True):
        _hold(a.shape == b.shape, pass_, f"{case.name}: got {[*a.shape]}, wanted {[*b.shape]}")
        far = float((a - b).abs().max())
        _hold(far <= tolerance, pass_, f"{case.name}: {far:.2e} from the oracle, {tolerance:g} may")


def _text(program: Program) -> str:
    return format_graph(program, parameters=True)


def _hold(fine: bool, pass_: Pass, otherwise: str) -> None:
    if not fine:
        raise CheckError(f"{pass_!r}: {otherwise}")
