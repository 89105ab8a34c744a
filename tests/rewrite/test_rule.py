"""Rules: found where they are meant, applied with values and axes, refused where they are not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fisopt
from fisopt import FrameInterleave, Match, PassError, PassManager, Program, Rule, RulePass
from tests import plain_dit
from tests.conftest import plain_captured
from tests.plain_dit import FORMS
from tests.zoo import Case, zoo

aten = torch.ops.aten


def anywhere(match: Match) -> bool:
    del match
    return True


def by_channel(match: Match) -> bool:
    """A scale and a shift for each channel of each token, or the same for all tokens."""
    x, scale, shift = (match.value(name) for name in ("x", "s", "b"))
    return x.ndim == scale.ndim == 3 and scale.shape == shift.shape


def modulated(x: Any, s: Any, b: Any) -> Any:
    return aten.add.Tensor(aten.mul.Tensor(x, aten.add.Tensor(s, 1)), b)


def fused(x: Any, s: Any, b: Any) -> Any:
    return aten.addcmul.default(b, x, aten.add.Tensor(s, 1))


MODULATE = Rule("modulate", modulated, fused, by_channel)


def count(program: Program, target: Any) -> int:
    graphs = {str(c.call.target): c.body.graph for c in program.blocks}
    return sum(
        n.target is target for graph in (program.graph, *graphs.values()) for n in graph.nodes
    )


@pytest.mark.parametrize("case", [zoo()[n] for n in ("wan", "ltx")], ids=lambda c: c.name)
def test_a_fusion_changes_the_text_and_not_the_values(case: Case, program: Program) -> None:
    result = PassManager([RulePass((MODULATE,))]).run(program)
    inputs = case.inputs(5, 3, 4, batch=2)
    want = program(**inputs)[0]
    torch.testing.assert_close(result(**inputs)[0], want, atol=1e-5, rtol=0)
    places = len(MODULATE.matches(program.graph)) + sum(
        len(MODULATE.matches(graph))
        for graph in {str(c.call.target): c.body.graph for c in program.blocks}.values()
    )
    assert count(program, aten.addcmul.default) == 0
    assert 0 < count(result, aten.addcmul.default) <= places


def test_it_says_how_often_and_what_was_refused(wan: Program) -> None:
    result = RulePass((MODULATE,))(wan)
    applied = count(result.program, aten.addcmul.default)
    assert result.modified
    assert result.notes[0].startswith(f"modulate: {applied} places in 1 block graphs")
    never = Rule("never", modulated, fused, lambda _: False)
    refused = RulePass((never,))(wan)
    assert not refused.modified
    assert refused.program is wan
    assert f"{applied} refused by its condition" in refused.notes[0]


def test_blocks_still_share_one_graph_and_frames_can_still_be_skipped(wan: Program) -> None:
    """Put after the frame pass, a rule sees the sparse blocks; their sharing is kept."""
    sparse = FrameInterleave(blocks=":")(wan).program
    result = RulePass((MODULATE,))(sparse).program
    fisopt.verify(result)
    assert len({c.call.target for c in result.blocks}) == len(
        {c.call.target for c in sparse.blocks}
    )
    inputs = zoo()["wan"].inputs(5, 3, 4, batch=2)
    torch.testing.assert_close(result(**inputs)[0], sparse(**inputs)[0], atol=1e-5, rtol=0)


def test_a_chain_of_matches() -> None:
    """The result of one match is an input of the next."""
    model, program = plain_captured(FORMS["fused"])
    add = Rule(
        "swap",
        lambda x, y: aten.add.Tensor(x, y),
        lambda x, y: aten.add.Tensor(y, x),
        anywhere,
    )
    result = RulePass((add,))(program)
    assert count(result.program, aten.add.Tensor) == count(program, aten.add.Tensor) > 3
    inputs = plain_dit.inputs(FORMS["fused"], 5, 2, 3, batch=2)
    with torch.no_grad():
        torch.testing.assert_close(result.program(**inputs), model(**inputs))


def test_what_another_reads_is_not_fused_away(wan: Program) -> None:
    """A match whose inner value has another user would compute it twice; it is no match."""
    graph = wan.blocks[0].body.graph
    for match in MODULATE.matches(graph):
        product = next(n for n in match.result.all_input_nodes if n.target is aten.mul.Tensor)
        assert set(product.users) == {match.result}


@pytest.mark.parametrize(
    ("pattern", "replacement", "message"),
    [
        (lambda x: x + 1, lambda x: aten.neg.default(x), "write torch.ops.aten.add.Tensor"),
        (lambda x: aten.neg.default(x), lambda y: aten.neg.default(y), r"takes \['y'\].*\['x'\]"),
        (lambda x: aten.neg.default(x), lambda x: (x, x), "must return one operator's value"),
    ],
)
def test_a_bad_rule(pattern: Any, replacement: Any, message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        Rule("bad", pattern, replacement, anywhere)


def test_a_replacement_of_another_dtype_is_refused(wan: Program) -> None:
    rule = Rule(
        "halve",
        lambda x: aten.silu.default(x),
        lambda x: aten._to_copy.default(aten.silu.default(x), dtype=torch.float16),
        anywhere,
    )
    with pytest.raises(PassError, match=r"rule 'halve'.*torch.float32.*torch.float16"):
        PassManager([RulePass((rule,))]).run(wan)


class Sums(nn.Module):
    """Blocks that add three constants one after the other."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Sum() for _ in range(2))

    def forward(self, video: Tensor) -> Tensor:
        for layer in self.layers:
            video = layer(video)
        return video


class Sum(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.terms = nn.Parameter(torch.randn(3, 4))

    def forward(self, x: Tensor) -> Tensor:
        a, b, c = self.terms.unbind()
        return ((x + a) + b) + c


def test_of_places_that_overlap_the_condition_chooses() -> None:
    model, inputs = Sums().eval().requires_grad_(False), {"video": torch.randn(1, 5, 2, 3, 4)}
    spec = fisopt.ModelSpec(blocks=("layers.*",), grid=(5, 2, 3))
    program = fisopt.capture(model, inputs, spec=spec)

    def chain(x: Any, y: Any, z: Any) -> Any:
        return aten.add.Tensor(aten.add.Tensor(x, y), z)

    def joined(x: Any, y: Any, z: Any) -> Any:
        return aten.add.Tensor(x, aten.add.Tensor(y, z))

    every = Rule("every", chain, joined, anywhere)
    places = every.matches(program.blocks[0].body.graph)
    assert len(places) == 2
    for place in places:
        name = place.result.name
        rule = Rule("one", chain, joined, lambda match, name=name: match.result.name == name)
        result = RulePass((rule,))(program)
        assert "one: 1 places" in result.notes[0]
        torch.testing.assert_close(result.program(**inputs), model(**inputs))
    both = RulePass((every,))(program)
    assert "every: 1 places" in both.notes[0], "the second place holds a node of the first"
    torch.testing.assert_close(both.program(**inputs), model(**inputs))


def test_a_parameter_that_is_not_used() -> None:
    with pytest.raises(ValueError, match="the pattern does not use"):
        Rule("idle", lambda x, y: aten.neg.default(x), lambda x, y: aten.neg.default(y), anywhere)
