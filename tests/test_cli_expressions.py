from __future__ import annotations

import sys
from pathlib import Path

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
        ("FrameInterleave(2)", "give the options of FrameInterleave by name"),
        ("FrameInterleave(**{})", r"give the options of FrameInterleave by name"),
        ("FrameInterleave(stride=n)", "stride: 'n' is not a literal"),
        ("FrameInterleave(stride=__import__('os').getpid())", "is neither a literal nor a mask"),
        ("FrameInterleave(stride=0)", "stride must be an int of at least 1"),
        ('FrameInterleave(kv="both")', "kv must be one of"),
        ("FrameInterleave(stride=2", "cannot read pass"),
        ("", "cannot read pass ''"),
        ("[1, 2]", "neither a name nor a call"),
        ("os.system('ls')", "unknown pass or preset 'os.system'"),
        ("Pass()", "unknown pass or preset 'Pass'"),
    ],
)
def test_what_cannot_be_read_is_said(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_passes([text])


MINE = """
from dataclasses import dataclass
from fisopt import BlockPass, Rewriter

@dataclass(frozen=True)
class Weaken(BlockPass):
    factor: float = 0.5
    def run(self, rewriter: Rewriter) -> None:
        rewriter.note("nothing")

def number() -> int:
    return 1
"""


def test_passes_of_one_s_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "passes_of_mine.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    modules = ["passes_of_mine"]
    (made, other) = parse_passes(
        ["passes_of_mine.Weaken(factor=0.25, blocks=':2')", "fis-a"], modules
    )
    assert repr(made) == "Weaken(blocks=':2', steps=':', factor=0.25)"
    assert other == fisopt.FrameInterleave(stride=2, blocks="2:-2")
    for text, message in (
        ("passes_of_mine.Weakn()", "passes_of_mine has no pass Weakn; did you mean Weaken"),
        ("passes_of_mine.Weaken(factr=1)", "did you mean factor"),
        ("passes_of_mine.number()", "number makes 1, wanted a fisopt.Pass"),
        ("other.Weaken()", "a pass of your own needs --import other"),
    ):
        with pytest.raises(fisopt.OptionError, match=message):
            parse_passes([text], modules)
    with pytest.raises(fisopt.OptionError, match="--import: cannot import 'nothing_like_it'"):
        parse_passes([], ["nothing_like_it"])
    with pytest.raises(fisopt.OptionError, match="os has no pass system"):
        parse_passes(["os.system('ls')"], ["os"])
    sys.modules.pop("passes_of_mine")
