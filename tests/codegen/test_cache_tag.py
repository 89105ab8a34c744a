"""What Inductor's cache on the disk knows of operators."""

from __future__ import annotations

import pytest
import torch

from fisopt.codegen import cache_tag as module
from fisopt.codegen.cache_tag import cache_tag
from fisopt.rewrite.ops.match_tokens import match_tokens
from fisopt.rewrite.ops.operator import declared
from fisopt.runtime.plans import _compiling


def test_first_runs_compile_under_it() -> None:
    """With that of the user, who may have one."""
    assert cache_tag() == cache_tag()
    with torch.compiler.config.patch(cache_key_tag="mine-"), _compiling(False):
        assert torch.compiler.config.cache_key_tag == f"mine-{cache_tag()}"
    assert torch.compiler.config.cache_key_tag == ""


def test_another_definition_is_another_tag(monkeypatch: pytest.MonkeyPatch) -> None:
    made = declared(match_tokens.target)
    assert made is not None
    before, own = cache_tag(), module._definition
    monkeypatch.setattr(module, "_definition", lambda f: own(f) + b"#" * (f is made.reference))
    assert cache_tag() != before


def test_what_has_no_file_is_told_by_its_code() -> None:
    made: list[object] = []
    for factor in (2, 2, 3):
        names: dict[str, object] = {}
        exec(f"def f(x):\n    return (lambda y: y * {factor})(x)", names)
        made.append(module._definition(names["f"]))  # type: ignore[arg-type]
    assert made[0] == made[1] != made[2]
