"""How kernels are bound to their contracts, on a machine with no GPU."""

from __future__ import annotations

import subprocess
import sys
import warnings
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from fisopt.codegen import bindings, choose
from fisopt.codegen.emit import cache
from fisopt.errors import LoweringError
from fisopt.rewrite.axes import FrameAxis
from fisopt.rewrite.ops.operator import operators
from fisopt.rewrite.ops.tile_attention import tile_attention
from fisopt.rewrite.tile_plan import tile_plan

TILE = torch.ops.fisopt.tile_attention.default


def arguments(dtype: torch.dtype = torch.float16, width: int = 16) -> tuple[Any, ...]:
    axis, device = FrameAxis(2, inner=3), "cuda" if torch.cuda.is_available() else "cpu"
    plan = tile_plan(torch.ones(2, 2, dtype=torch.bool, device=device), axis, axis)
    return (
        *torch.randn(3, 1, 1, 6, width, dtype=dtype, device=device),
        None,
        plan.rows,
        plan.keys,
        plan.pairs,
        None,
    )


def test_importing_fisopt_does_not_import_triton() -> None:
    code = (
        "import sys, fisopt.public, fisopt.codegen.compile; "
        "assert not [m for m in sys.modules if m == 'triton' or m.startswith('triton.')]"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_kernel_stays_a_call() -> None:
    """Traced, the operator's reference would run in the kernel's place."""
    names = {"attend_masked", "match_tokens", "reduce_attend_restore"}
    names |= {"tile_attend_masked", "tile_attention"}
    assert {made.name for made in operators() if made.target in bindings.KERNELS} == names
    assert all(made.opaque for made in operators() if made.target in bindings.KERNELS)


def test_without_triton_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [m for m in sys.modules if m.split(".")[0] == "triton"]:
        monkeypatch.delitem(sys.modules, name)
    for name in [m for m in sys.modules if m.startswith("fisopt.codegen.kernels.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "triton", None)
    with pytest.raises(LoweringError, match=r"fisopt::tile_attention .*pip install 'fisopt\[trit"):
        bindings.run(TILE, *arguments())


def test_a_missing_module_that_is_not_triton_is_no_missing_triton(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def gone(name: str) -> None:
        raise ModuleNotFoundError(name="numpy")

    monkeypatch.setattr(bindings.importlib, "import_module", gone)
    with pytest.raises(ModuleNotFoundError):
        bindings.kernel_of(TILE)


def test_runs_a_kernel_or_says_why_not(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    bindings._warn.cache_clear()
    kernel, ran, on = bindings.kernel_of(TILE), [], []
    monkeypatch.setattr(torch.cuda, "device_of", lambda x: on.append(x) or nullcontext())
    for name, module in (("kernel", kernel), *kernel.PREFERRED.items()):
        launch = module.launch
        spy = lambda *args, launch=launch, name=name: ran.append(name) or launch(*args)  # noqa: E731
        monkeypatch.setattr(module, "launch", spy)
    args = arguments()
    for only, refused in (("merge", ""), ("kernel", "2 heads have plans of their own")):
        took, why = bindings.takers(TILE, args)
        assert next(iter(took)) == only
        assert refused in why
        got, want = bindings.run(TILE, *args), tile_attention.implementation(*args)
        torch.testing.assert_close(got, want, rtol=0, atol=3e-3)
        assert ran == [only]
        ran.clear()
        args = by_head(args)
    assert [x.device for x in on] == [args[0].device] * 2, "on the operands' GPU"
    refused = by_head(arguments(torch.float32))
    with pytest.warns(UserWarning, match="the kernel takes .*; it runs in plain torch"):
        got = bindings.run(TILE, *refused)
    torch.testing.assert_close(got, tile_attention.implementation(*refused), rtol=0, atol=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        bindings.run(TILE, *refused)
    assert ran == []


def by_head(args: tuple[Any, ...]) -> tuple[Any, ...]:
    """The same for two heads, each with a plan."""
    operands = (x.expand(-1, 2, -1, -1) for x in args[:3])
    return (*operands, *args[3:5], args[5].expand(2, -1, -1, -1), 2 * args[6], args[7])


@pytest.mark.parametrize("faster", ["merge", "kernel", "reference"])
def test_slower_ones_are_not_used_again(
    faster: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU: timed at the first call of a shape, remembered, told by the report."""
    args = tuple(a.to("meta") if isinstance(a, torch.Tensor) else a for a in arguments())
    result, ran = torch.ones(3), []

    def runs(name: str) -> Any:
        return lambda *_: ran.append(name) or result

    merge = SimpleNamespace(supports=lambda *_: None, launch=runs("merge"))
    kernel = SimpleNamespace(
        supports=lambda *_: None, launch=runs("kernel"), PREFERRED={"merge": merge}
    )
    monkeypatch.setenv(cache.VARIABLE, str(tmp_path))
    monkeypatch.delenv(choose.MEASURE, raising=False)
    monkeypatch.setattr(bindings, "kernel_of", lambda _: kernel)
    monkeypatch.setattr(bindings, "KERNELS", {TILE: runs("reference")})
    monkeypatch.setattr(bindings, "_CHOSEN", {})
    monkeypatch.setattr(choose, "device_name", lambda _: "Some GPU 1")
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    names = ["merge", "kernel", "reference"]
    times = iter([1.0 if name == faster else 2.0 for name in names])
    monkeypatch.setattr(choose, "_microseconds", lambda run: next(times))
    gpu = torch.device("cuda", 0)
    where = (SimpleNamespace(device=gpu, shape=args[0].shape, is_cuda=False), *args[1:])
    for _ in range(2):
        ran.clear()
        bindings.run(TILE, *where)
    assert ran == [faster]
    told = choose.decide_operator(TILE, where, gpu, names[:2])
    assert told.chosen == faster
    assert "measured on Some GPU 1: kernel" in told.why
    for other in ((*where[:-1], 0.5), where):
        untold = choose.decide_operator(TILE, other, gpu, ["kernel"])
        assert (untold.chosen, untold.why.endswith("timed at its first call")) == ("kernel", True)
