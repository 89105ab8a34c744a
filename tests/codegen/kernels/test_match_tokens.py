"""The kernel of matching against its contract."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from fisopt.codegen.kernels import match_tokens as kernel
from fisopt.errors import LoweringError
from fisopt.rewrite.ops.match_tokens import match_tokens
from tests.codegen.kernels.operators import check_operator

MATCH = torch.ops.fisopt.match_tokens.default
DTYPES = (torch.bfloat16, torch.float16)
SMALL, DESCRIBED = kernel.CONFIGS[-1], kernel.CONFIGS[1]
SHAPES = {
    "one source": (2, 1, 0, 0, 0),
    "odd": (7, 3, 1, 1, 2),
    "not a power of two": (96, 48, 11, 0, 9),
    "larger than a block": (331, 131, 40, 3, 0),
}


def ids(config: Any) -> str:
    return "-".join(map(str, (*config.kwargs.values(), config.num_warps, config.num_stages)))


def made(
    shape: tuple[int, int, int, int, int],
    dtype: torch.dtype = torch.float16,
    lead: tuple[int, ...] = (1, 2),
    width: int = 16,
) -> tuple[Any, ...]:
    """Tokens, destinations, and how many sources and entries of text stay."""
    tokens, count, keep, before, after = shape
    x = torch.randn(*lead, before + tokens + after, width, dtype=dtype)
    chosen = torch.randperm(tokens)[:count].sort().values
    return x, chosen, keep, before, after


def check(args: tuple[Any, ...], config: Any = SMALL) -> None:
    got, want = kernel.launch(*args, config=config), match_tokens.reference(*args)
    for result, expected in zip(got[:2], want[:2], strict=True):
        assert result.dtype == torch.int32
        assert torch.equal(result, expected)
    torch.testing.assert_close(got[2], want[2], rtol=1e-4, atol=1e-5)
    profiles = kernel.launch(*args, True, config=config), match_tokens.reference(*args, True)
    torch.testing.assert_close(*(p[2] for p in profiles), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("config", kernel.CONFIGS, ids=ids)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_every_config(shape: tuple[int, int, int, int, int], config: Any, exhaustive: bool) -> None:
    """Both types in turns, or at every place with --exhaustive."""
    turn = (kernel.CONFIGS.index(config) + list(SHAPES.values()).index(shape)) % 2
    for dtype in DTYPES if exhaustive else DTYPES[turn : turn + 1]:
        check(made(shape, dtype, lead=(1, 1) if shape[0] > 100 else (1, 2)), config)


@pytest.mark.parametrize("config", [SMALL, DESCRIBED], ids=ids)
@pytest.mark.parametrize("width", [48, 128])
def test_widths(width: int, config: Any) -> None:
    check(made(SHAPES["odd"], width=width), config)


@pytest.mark.parametrize("config", [SMALL, DESCRIBED], ids=ids)
def test_strides(config: Any) -> None:
    x, *rest = made(SHAPES["odd"], lead=(2, 2))
    check((x.transpose(1, 2).contiguous().transpose(1, 2), *rest), config)
    room = x.new_empty(*x.shape[:-1], 32)
    room[..., :16] = x
    check((room[..., :16], *rest), config)


def test_of_equal_distances_the_first_destination_is_nearest() -> None:
    """Sources between pairs of equal destinations, in the same and in different blocks."""
    kinds = torch.eye(16, dtype=torch.float16)
    x = torch.cat([kinds, kinds, kinds, kinds, kinds])[None]
    chosen = torch.arange(64)
    for config in kernel.CONFIGS:
        _, origin, lost = kernel.launch(x, chosen, 0, 0, 0, config=config)
        assert origin[0].tolist() == [*range(64), *range(16)]
        assert float(lost.abs().max()) == 0


def test_all_are_destinations() -> None:
    x = torch.randn(1, 2, 9, 16, dtype=torch.float16)
    check((x, torch.arange(9), 0, 0, 0))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_lost_shows_what_is_not_finite(bad: float) -> None:
    x = torch.randn(1, 2, 12, 16, dtype=torch.float16)
    for place in ((0, 1, 3, 2), (0, 0, 4, 0)):  # a source and a destination
        spoilt = x.clone()
        spoilt[place] = bad
        result = kernel.launch(spoilt, torch.tensor([0, 4, 8]), 2, 0, 0, config=SMALL)
        assert not result[2].isfinite().all()
        assert int(result[1].min()) >= 0
        assert int(result[1].max()) < 5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dtype": torch.float32}, "tokens are torch.float32; the kernel takes torch.bfloat16"),
        ({"width": 24}, "24 features; the kernel takes multiples of 16 up to 256"),
        ({"shape": (7, 0, 3, 0, 0)}, "no destinations; the kernel takes one or more"),
    ],
)
def test_what_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(LoweringError, match=f"fisopt::match_tokens: .*{message}"):
        kernel.launch(*made(**{"shape": SHAPES["odd"], **change}))


def test_operator() -> None:
    check_operator(MATCH, kernel.launch, made(SHAPES["odd"]))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_video_on_a_gpu(dtype: torch.dtype) -> None:
    """Rounding may decide between destinations or sources that are nearly alike."""
    args = made((32760, 3900, 9000, 0, 226), dtype, lead=(1, 4), width=128)
    want = match_tokens.reference(*args)
    for config in (None, *kernel.CONFIGS):
        kept, origin, lost = kernel.launch(*args, config=config)
        assert share_of_equal(standing(kept, origin), standing(*want[:2])) > 0.999
        torch.testing.assert_close(lost, want[2], rtol=1e-3, atol=1e-4)
    for got, again in zip(MATCH(*args), MATCH(*args), strict=True):
        assert torch.equal(got, again)


def standing(kept: Tensor, origin: Tensor) -> Tensor:
    """For every entry the entry that stands for it: one more that is kept moves no other."""
    return kept.gather(-1, origin.long())


def share_of_equal(a: Tensor, b: Tensor) -> float:
    return float((a == b).float().mean())
