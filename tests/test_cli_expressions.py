from __future__ import annotations

import pytest

import fisopt
from fisopt.cli.catalog import short
from fisopt.cli.expressions import parse_pass, parse_passes
from fisopt.passes.presets import PASSES, PRESETS


def test_a_preset_is_its_passes() -> None:
    for name, (_, passes) in PRESETS.items():
        assert parse_passes([name]) == passes


def test_a_name_alone_has_the_defaults() -> None:
    assert parse_passes(["FrameInterleave"]) == (fisopt.FrameInterleave(),)


def test_options_are_literals_of_any_kind() -> None:
    text = 'FrameInterleave(stride=3, blocks="1:-2", steps="1:-1", kv="all")'
    wanted = fisopt.FrameInterleave(stride=3, blocks="1:-2", steps="1:-1", kv="all")
    assert parse_pass(text) == wanted


def test_order_is_kept() -> None:
    first, second = fisopt.FrameInterleave(stride=3), fisopt.FrameInterleave(stride=2)
    assert parse_passes([short(first), short(second)]) == (first, second)


@pytest.mark.parametrize("name", sorted(PASSES))
def test_the_short_form_reads_back(name: str) -> None:
    made = PASSES[name]()
    assert parse_pass(short(made)) == made
    assert short(made) == f"{name}()"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("FrameInterlave(stride=2)", "did you mean FrameInterleave"),
        ("frameinterleave", "did you mean FrameInterleave"),
        ("fis-z", "unknown pass or preset 'fis-z'; did you mean fis-"),
        ("fisa", "did you mean fis-a"),
        ("qqqqqq", "unknown pass or preset 'qqqqqq'; Passes are"),
        ("FrameInterleave(strid=2)", "has no option 'strid'; did you mean stride?"),
        ("FrameInterleave(2)", "options of FrameInterleave are given by name"),
        ("FrameInterleave(**{})", r"options of FrameInterleave are given by name"),
        ("FrameInterleave(stride=n)", "stride: 'n' is not a literal"),
        ("FrameInterleave(stride=__import__('os').getpid())", "is not a literal"),
        ("FrameInterleave(stride=0)", "stride must be an int of at least 1"),
        ('FrameInterleave(kv="both")', "kv must be one of"),
        ("FrameInterleave(stride=2", "cannot read pass"),
        ("", "cannot read pass ''"),
        ("[1, 2]", "neither a name nor a call"),
        ("os.system('ls')", "cannot read pass"),
        ("Pass()", "unknown pass or preset 'Pass'"),
    ],
)
def test_what_cannot_be_read_is_said(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_passes([text])
