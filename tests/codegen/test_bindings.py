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
    names = {"tile_attention", "match_tokens", "reduce_attend_restore"}
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


def test_runs_the_kernel_or_says_why_not(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    bindings._warn.cache_clear()
    kernel, ran, on = bindings.kernel_of(TILE), [], []
    launch = kernel.launch
    monkeypatch.setattr(torch.cuda, "device_of", lambda x: on.append(x) or nullcontext())
    monkeypatch.setattr(kernel, "launch", lambda *args: ran.append(1) or launch(*args))
    args = arguments()
    assert bindings.refusal(TILE, args) is None
    got, want = bindings.run(TILE, *args), tile_attention.implementation(*args)
    torch.testing.assert_close(got, want, rtol=0, atol=3e-3)
    assert ran == [1]
    assert [x is args[0] for x in on] == [True], "it runs on the operands' GPU, not the current one"
    for refused in (arguments(torch.float32), arguments(width=24)):
        assert "the kernel takes" in str(bindings.refusal(TILE, refused))
        with pytest.warns(UserWarning, match="the kernel takes .*; it runs in plain torch"):
            got = bindings.run(TILE, *refused)
        torch.testing.assert_close(got, tile_attention.implementation(*refused), rtol=0, atol=0)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            bindings.run(TILE, *refused)
    assert ran == [1]


@pytest.mark.parametrize("faster", ["kernel", "reference"])
def test_the_slower_one_is_not_used_again(
    faster: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU: timed at the first call of a shape, remembered, told by the report."""
    args = tuple(a.to("meta") if isinstance(a, torch.Tensor) else a for a in arguments())
    result, ran = torch.ones(3), []
    kernel = SimpleNamespace(supports=lambda *_: None, launch=lambda *_: ran.append(1) or result)
    plain = {TILE: lambda *_: ran.append(0) or result}
    monkeypatch.setenv(cache.VARIABLE, str(tmp_path))
    monkeypatch.delenv(choose.MEASURE, raising=False)
    monkeypatch.setattr(bindings, "kernel_of", lambda _: kernel)
    monkeypatch.setattr(bindings, "KERNELS", plain)
    monkeypatch.setattr(bindings, "_CHOSEN", {})
    monkeypatch.setattr(choose, "device_name", lambda _: "Some GPU 1")
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    times = iter([1.0, 2.0] if faster == "kernel" else [2.0, 1.0])
    monkeypatch.setattr(choose, "_microseconds", lambda run: next(times))
    gpu = torch.device("cuda", 0)
    where = (SimpleNamespace(device=gpu, shape=args[0].shape, is_cuda=False), *args[1:])
    for _ in range(2):
        ran.clear()
        bindings.run(TILE, *where)
    assert ran == [faster == "kernel"]
    told = choose.decide_operator(TILE, where, gpu)
    assert told.chosen == faster
    assert "measured on Some GPU 1: kernel" in told.why
    other = choose.decide_operator(TILE, (*where[:-1], 0.5), gpu)
    assert (other.chosen, other.why.endswith("timed at its first call")) == ("kernel", True)
