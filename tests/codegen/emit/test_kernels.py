"""Kernels of single regions: odd shapes, every form of rotary, refusals, files and calls."""

from __future__ import annotations

import ast
import inspect
import multiprocessing
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from fisopt.codegen import emit as emitter
from fisopt.codegen.emit import cache, launch
from fisopt.codegen.emit.expression import RefusalError
from fisopt.codegen.emit.kernel import Config, Kernel, emit
from fisopt.codegen.emit.region import Region, find_regions
from fisopt.codegen.emit.stage import with_kernels
from fisopt.errors import LoweringError
from fisopt.rewrite.ops import fill_frames
from tests.codegen.emit.interpreter import Interpreter
from tests.codegen.emit.regions import as_dtype, operands, reference

SHAPES = [(1, 1, 1, 8), (2, 7, 3, 10), (1, 37, 4, 24), (2, 150, 2, 6)]
"""Batch, tokens, heads, head width: ones, odd, no powers of two, more rows than a block."""
TOLERANCES = {torch.float32: 2e-5, torch.bfloat16: 1e-2}


def rms(x: Tensor, weight: Tensor) -> Tensor:
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * weight


def interleaved(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    real, imaginary = x.unflatten(-1, (-1, 2)).unbind(-1)
    turned = torch.stack([-imaginary, real], -1).flatten(-2)
    return x * cos + turned * sin


def halves(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat([-second, first], -1) * sin


def qk_across_heads(x: Tensor, weight: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Norm over all heads together, interleaved rotary, attention layout."""
    heads, width = x.shape[2:]
    y = rms(x.flatten(2), weight.repeat(heads))
    return interleaved(y.unflatten(2, (heads, width)), cos, sin).transpose(1, 2)


def qk_per_head(x: Tensor, weight: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Norm per head, half-split rotary, attention layout, text behind that is not rotated."""
    y = rms(x, weight)
    return torch.cat([halves(y, cos, sin), y[:, :1]], 1).transpose(1, 2)


def qk_gathered(x: Tensor, weight: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Every other token only."""
    index = torch.arange(0, x.shape[1], 2)
    kept = [t.index_select(1, index) for t in (x, cos, sin)]
    return interleaved(rms(kept[0], weight), *kept[1:]).transpose(1, 2)


def qk_operands(shape: tuple[int, ...]) -> list[Tensor]:
    _, tokens, _, width = shape
    table = torch.randn(2, 1, tokens, 1, width)
    return [torch.randn(shape), torch.randn(width), table[0], table[1]]


def block_exit(x: Tensor, y: Tensor, gate: Tensor, before: int, after: int, fill: str) -> Tensor:
    """gate * y + what y was computed from, spread over five frames of which three were kept."""
    anchors, left = torch.tensor([0, 2, 4]), torch.tensor([0, 0, 1, 1, 2])
    right, weight = torch.tensor([0, 1, 1, 2, 2]), torch.tensor([0, 0.5, 0, 0.5, 0])
    inner = (x.shape[1] - before - after) // 5
    video = x[:, before : x.shape[1] - after].unflatten(1, (5, inner)).index_select(1, anchors)
    kept = torch.cat([x[:, :before], video.flatten(1, 2), x[:, x.shape[1] - after :]], 1)
    result = kept + gate * y
    return fill_frames.fill_frames.reference(
        x, result, 1, anchors, left, right, weight, 1, inner, before, after, fill
    )


def exit_operands(inner: int, before: int, after: int, width: int) -> list[Tensor]:
    text = before + after
    shapes = [(2, text + 5 * inner, width), (2, text + 3 * inner, width), (2, 1, width)]
    return [torch.randn(s) for s in shapes]


def region_of(function: Callable[..., Any], values: Sequence[Tensor]) -> Region:
    """The one region of a function."""
    traced = make_fx(function, tracing_mode="fake")(*values)
    for node in traced.graph.nodes:
        if node.op == "get_attr":
            node.meta["val"] = getattr(traced, str(node.target))
    (region,) = find_regions(traced)
    return region


def assert_equal(kernel: Kernel, region: Region, run: Callable[..., Sequence[Tensor]]) -> None:
    for dtype, tolerance in TOLERANCES.items():
        values = operands(kernel, region, dtype)
        got = run(as_dtype(kernel, dtype), values)
        for x, y in zip(got, reference(kernel, region, values), strict=True):
            torch.testing.assert_close(x.float(), y.float(), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("form", [qk_across_heads, qk_per_head, qk_gathered])
def test_qk_norm_rope(
    form: Callable[..., Tensor], shape: tuple[int, ...], triton_interpreter: Interpreter
) -> None:
    region = region_of(form, qk_operands(shape))
    assert_equal(emit(region), region, triton_interpreter.launch)


@pytest.mark.parametrize(
    "sizes", [(1, 0, 0, 1), (3, 0, 0, 24), (7, 5, 0, 40), (2, 0, 3, 1100)], ids=str
)
@pytest.mark.parametrize("fill", fill_frames.FILLS)
def test_block_exit(
    fill: str, sizes: tuple[int, int, int, int], triton_interpreter: Interpreter
) -> None:
    _, before, after, _ = sizes
    region = region_of(
        lambda x, y, gate: block_exit(x, y, gate, before, after, fill), exit_operands(*sizes)
    )
    assert_equal(emit(region), region, triton_interpreter.launch)


def test_a_part_of_a_mask_that_is_constant(triton_interpreter: Interpreter) -> None:
    """Text is padded by a mask; of the video's rows, in front of it, every one is valid."""

    def video(x: Tensor, valid: Tensor) -> Tensor:
        every = F.pad(valid, (x.shape[1] - valid.shape[1], 0), value=True)
        seen = (x * every.unsqueeze(-1).to(x.dtype))[:, : x.shape[1] - valid.shape[1]]
        return seen * 2 + 1

    region = region_of(video, [torch.randn(2, 9, 16), torch.rand(2, 4) < 0.5])
    assert_equal(emit(region), region, triton_interpreter.launch)


def test_every_cut_computes_the_same(triton_interpreter: Interpreter) -> None:
    region = region_of(qk_across_heads, qk_operands((2, 7, 3, 10)))
    kernel = emit(region)
    values = operands(kernel, region, torch.float32)
    (expected,) = reference(kernel, region, values)
    for config in (Config(1, 32, 4), Config(4, 64, 8), Config(16, 32, 4)):
        (got,) = triton_interpreter.launch(kernel, values, config)
        torch.testing.assert_close(got, expected, rtol=2e-5, atol=2e-5)


def test_wide_rows_are_cut(triton_interpreter: Interpreter) -> None:
    """Without a norm a row of any length is cut into columns."""
    region = region_of(lambda x, y: (x * 2 + y).relu(), [torch.randn(3, 5000) for _ in range(2)])
    kernel = emit(region)
    assert kernel.configs()[0].block_columns < kernel.columns
    assert_equal(kernel, region, triton_interpreter.launch)


def test_cuts_leave_room_in_the_registers() -> None:
    """The more tiles a kernel reads the fewer rows a program has, then the more warps."""
    kernel = emit(region_of(qk_per_head, qk_operands((2, 700, 3, 64))))
    for tiles, rows, warps in ((1, 32, 4), (15, 16, 4), (60, 4, 4), (300, 1, 8)):
        first, *others = replace(kernel, tiles=tiles).configs()
        assert (first.block_rows, first.num_warps) == (rows, warps)
        assert others
        assert first not in others
    long = replace(kernel, columns=3072, reduced=0, tiles=4)
    assert [str(c) for c in long.configs()] == ["1x4096, 8 warps", "1x4096, 16 warps"]


def test_equal_results_are_written_once(triton_interpreter: Interpreter) -> None:
    def run(x: Tensor) -> tuple[Tensor, Tensor]:
        y = F.layer_norm(x, (24,)) * 2
        return y, torch.cat([y[:2], y[2:]])

    region = region_of(run, [torch.randn(5, 24)])
    kernel = emit(region)
    assert len(region.results) == 2
    assert kernel.gives == (0, 0)
    assert kernel.source.count("tl.store") == 1
    assert_equal(kernel, region, triton_interpreter.launch)


def test_equal_regions_are_one_kernel() -> None:
    first, second = (emit(region_of(qk_per_head, qk_operands((2, 7, 3, 10)))) for _ in range(2))
    other = emit(region_of(qk_per_head, qk_operands((2, 8, 3, 10))))
    assert first == second
    assert first.name != other.name
    assert first.name.startswith("norm_rotate_join_")


REFUSED = {
    "one operator": lambda x: x.exp(),
    "moves of elements": lambda x: torch.cat([x, x[:1]]),
    "aten.pow.Tensor_Scalar with exponent 3": lambda x: x.pow(3) + 1,
    "is torch.float64": lambda x: x.double() * 2 + 1,
    "over dimensions [0]": lambda x: x - x.mean(0) * 2,
    "a row norm over 20000 elements": lambda x: F.layer_norm(x, (20000,)),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_refusals_say_why(reason: str) -> None:
    x = torch.randn(2, 20000 if "20000" in reason else 24)
    region = region_of(REFUSED[reason], [x])
    with pytest.raises(RefusalError, match=reason.replace("[", r"\[")):
        emit(region)


def test_operands_of_two_devices_are_refused() -> None:
    """A number in a tensor may stay on the CPU; a kernel cannot read it there."""
    graph = fx.Graph()
    x, number = graph.placeholder("x"), graph.placeholder("number")
    with FakeTensorMode():
        x.meta["val"] = torch.empty(4, 24, device="cuda")
        number.meta["val"] = torch.empty(())
    y = graph.call_function(torch.ops.aten.mul.Tensor, (x, number))
    z = graph.call_function(torch.ops.aten.silu.default, (y,))
    y.meta["val"] = z.meta["val"] = x.meta["val"]
    graph.output((z,))
    (region,) = find_regions(fx.GraphModule(torch.nn.Module(), graph))
    with pytest.raises(RefusalError, match="operands on cpu and cuda:0: a kernel reads one device"):
        emit(region)


def stage() -> tuple[fx.GraphModule, list[Tensor]]:
    """Two regions around a matrix product, the second of which takes a result of the first."""

    def run(x: Tensor, gate: Tensor, weight: Tensor) -> Tensor:
        normed = F.layer_norm(x + gate, (24,)) * gate
        return torch.nn.functional.silu(normed @ weight) * gate + x

    values = [torch.randn(2, 5, 24), torch.randn(2, 5, 24), torch.randn(24, 24)]
    return make_fx(run, tracing_mode="fake")(*values), values


def test_a_stage_with_kernels(
    triton_interpreter: Interpreter, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, values = stage()
    regions = find_regions(plain)
    assert len(regions) == 2
    fast = with_kernels(plain, [(r, k := emit(r), k.configs()[-1]) for r in regions])
    targets = [n.target for n in fast.graph.nodes if n.op == "call_function"]
    assert targets.count(torch.ops.fisopt.emitted.default) == 2
    assert len(targets) < len([n for n in plain.graph.nodes if n.op == "call_function"])
    monkeypatch.setattr(launch, "launch", triton_interpreter.launch)
    torch.testing.assert_close(fast(*values), plain(*values), rtol=2e-5, atol=2e-5)
    compiled = torch.compile(fast, fullgraph=True, dynamic=False, backend="aot_eager")
    with torch.no_grad():
        torch.testing.assert_close(compiled(*values), plain(*values), rtol=2e-5, atol=2e-5)


def test_the_operator_is_well_formed(
    triton_interpreter: Interpreter, monkeypatch: pytest.MonkeyPatch
) -> None:
    region = region_of(qk_per_head, qk_operands((2, 7, 3, 10)))
    kernel = emit(region)
    launch.register(kernel)
    monkeypatch.setattr(launch, "launch", triton_interpreter.launch)
    torch.library.opcheck(
        torch.ops.fisopt.emitted.default,
        (kernel.name, [2, 4, 4], operands(kernel, region, torch.float32)),
        test_utils=("test_schema", "test_faketensor"),
    )


def test_wrong_operands_are_refused() -> None:
    region = region_of(qk_per_head, qk_operands((2, 7, 3, 10)))
    with pytest.raises(LoweringError, match="wanted, got"):
        launch.launch(emit(region), [torch.randn(3)] * 4)


def test_without_triton_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = replace(emit(region_of(qk_per_head, qk_operands((1, 2, 1, 4)))), name="absent")
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(LoweringError, match=r"fisopt\[triton\]"):
        launch.function(kernel)


def test_no_module_of_the_emitter_imports_triton() -> None:
    for path in Path(emitter.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            module = node.module if isinstance(node, ast.ImportFrom) else ""
            assert not any(name.startswith("triton") for name in (*names, module or ""))


def test_corrupt_sources_are_written_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(cache.VARIABLE, str(tmp_path))
    path = cache.keep("emitted/one.py", "x = 1\n")
    assert path.read_text() == "x = 1\n"
    cache.keep("emitted/one.py", "x = 1\n")  # no warning: it is there
    for broken in (b"x = ", b"\xff\xfe", b""):
        path.write_bytes(broken)
        with pytest.warns(RuntimeWarning, match="made again"):
            cache.keep("emitted/one.py", "x = 1\n")
        assert path.read_text() == "x = 1\n"


def test_the_cache_is_where_the_platform_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(cache.VARIABLE, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    monkeypatch.setattr(sys, "platform", "linux")
    assert cache.folder() == Path("/somewhere/fisopt")


def write_often(path: str, text: str) -> None:
    for _ in range(50):
        cache.write(Path(path), text)


def test_two_processes_may_write_at_once(tmp_path: Path) -> None:
    path, texts = tmp_path / "one.py", ["a" * 200_000, "b" * 100_000]
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=write_often, args=(str(path), text)) for text in texts]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        assert not path.exists() or path.read_text() in texts
    assert all(writer.exitcode == 0 for writer in writers)
    assert list(tmp_path.iterdir()) == [path]


SOURCE = """import triton
import triton.language as tl


@triton.jit
def one(x):
    tl.store(x, 1.0)
"""


def made_anew() -> Any:
    launch._function.cache_clear()
    return launch._function("one", SOURCE)


def full(path: Path, data: Any, **options: object) -> int:
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("why", ["no folder", "no home", "a full disk", "a folder in its place"])
def test_without_a_cache_kernels_run_and_it_is_said_once(
    why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "_said", [])
    monkeypatch.setenv(cache.VARIABLE, str(tmp_path))
    if why == "no folder":
        monkeypatch.setenv(cache.VARIABLE, "/dev/null/cache")
    elif why == "no home":
        for name in (cache.VARIABLE, "XDG_CACHE_HOME", "HOME"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setattr(Path, "home", no_home)
    elif why == "a full disk":
        monkeypatch.setattr(Path, "write_bytes", full)
        monkeypatch.setattr(Path, "write_text", full)
    else:
        (tmp_path / "emitted" / "one.py").mkdir(parents=True)
    with pytest.warns(RuntimeWarning, match="without its disk cache: .*set FISOPT_CACHE") as said:
        runs = [made_anew() for _ in range(2)]
    assert len(said) == 1
    assert all("tl.store" in inspect.getsource(run.fn) for run in runs)
    assert not list(tmp_path.rglob("*.py.*")), "nothing half-written"


def no_home() -> Path:
    raise RuntimeError("Could not determine home directory.")


def test_sources_are_the_same_on_every_platform(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where text files have other line ends a kernel is still found as it was written."""

    def translating(path: Path, text: str, **options: object) -> int:
        return path.write_bytes(text.replace("\n", "\r\n").encode())

    monkeypatch.setattr(Path, "write_text", translating)
    monkeypatch.setenv(cache.VARIABLE, str(tmp_path))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(2):
            path = cache.keep("emitted/one.py", "x = 1\ny = 2\n")
    assert path.read_bytes() == b"x = 1\ny = 2\n"
