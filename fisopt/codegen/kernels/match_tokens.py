"""match_tokens on a GPU: nearest destinations by tensor cores, with a running argmin.

Only the search is a kernel.  What follows it, ranking the sources and writing the indices, is the
contract's own: it works on one number a token.
"""

from __future__ import annotations

from functools import partial

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from fisopt.codegen.kernels.launching import (
    DTYPES,
    WIDEST,
    Launch,
    interpreted,
    padded,
    refuse_device,
    takes_descriptors,
)
from fisopt.codegen.kernels.softmax import product
from fisopt.errors import LoweringError
from fisopt.rewrite.ops import match_tokens as contract

OP = "fisopt::match_tokens"


def _config(
    block_s: int, block_k: int, warps: int, stages: int, descriptors: bool = True
) -> triton.Config:
    sizes = {"BLOCK_S": block_s, "BLOCK_K": block_k, "DESCRIPTORS": descriptors}
    return triton.Config(sizes, num_warps=warps, num_stages=stages)


CONFIGS = [
    _config(128, 64, 8, 3),
    _config(64, 64, 4, 3),
    _config(128, 64, 8, 3, descriptors=False),
    _config(64, 64, 4, 3, descriptors=False),
    _config(64, 32, 4, 2, descriptors=False),
]


@triton.jit
def _match_tokens_kernel(
    video_ptr,
    sources_ptr,
    chosen,
    norm_ptr,
    nearest_ptr,
    distance_ptr,
    own_ptr,
    video_strides,
    sources,
    destinations,
    width,
    BLOCK_S: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
    EVEN_D: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
    WIDEN: tl.constexpr,
):
    """One block of sources of one row, against all destinations.

    Shapes: video [R, N, D]; sources [S]; chosen [R, K, D], as a pointer or a descriptor; norm
        [R, K]; nearest, distance, own [R, S].
    """
    r = tl.program_id(1)
    entry = tl.program_id(0) * BLOCK_S + tl.arange(0, BLOCK_S)  # [BLOCK_S]
    inside = entry < sources
    token = tl.load(sources_ptr + entry, mask=inside, other=0).to(tl.int64)
    column = tl.arange(0, BLOCK_D)
    wide = (column < width)[None, :]
    x_ptrs = video_ptr + r.to(tl.int64) * video_strides[0] + token[:, None] * video_strides[1]
    x_ptrs = x_ptrs + column[None, :] * video_strides[2]
    x = tl.load(x_ptrs, mask=wide & inside[:, None], other=0.0)  # [BLOCK_S, BLOCK_D]
    row = tl.arange(0, BLOCK_K)
    least = tl.full([BLOCK_S, BLOCK_K], float("inf"), tl.float32)
    index = tl.zeros([BLOCK_S, BLOCK_K], tl.int32)
    for start in tl.range(0, destinations, BLOCK_K):
        rest = start + row < destinations
        if DESCRIPTORS:
            y = chosen.load([r, start, 0]).reshape(BLOCK_K, BLOCK_D)
        else:
            base = chosen + (r.to(tl.int64) * destinations + start) * width
            place = base + row[:, None] * width + column[None, :]
            if EVEN_D:
                y = tl.load(place, mask=rest[:, None], other=0.0)
            else:
                y = tl.load(place, mask=rest[:, None] & wide, other=0.0)
        # a destination that is not there is infinitely far
        norm = tl.load(
            norm_ptr + r.to(tl.int64) * destinations + start + row, mask=rest, other=float("inf")
        )
        scores = product(x, tl.trans(y), tl.zeros([BLOCK_S, BLOCK_K], tl.float32), WIDEN)
        scores = norm[None, :] - 2.0 * scores  # [BLOCK_S, BLOCK_K]
        closer = scores < least
        least = tl.where(closer, scores, least)
        index = tl.where(closer, start, index)
    best = tl.min(least, 1)  # [BLOCK_S]
    candidate = tl.where(least == best[:, None], index + row[None, :], destinations - 1)
    own = tl.sum(x.to(tl.float32) * x.to(tl.float32), 1)
    out = r.to(tl.int64) * sources + entry
    tl.store(nearest_ptr + out, tl.min(candidate, 1), mask=inside)
    # not max: it would drop a distance that is not a number
    distance = best + own
    tl.store(distance_ptr + out, tl.where(distance < 0.0, 0.0, distance), mask=inside)
    tl.store(own_ptr + out, own, mask=inside)


def supports(
    x: Tensor, destinations: Tensor, keep: int, before: int, after: int, profile: bool = False
) -> None:
    """Check that the kernel takes these arguments of the contract.

    Raises:
        LoweringError: it does not; the message names what it got and what is supported.
    """
    del keep, before, after, profile
    if x.dtype not in DTYPES:
        raise LoweringError(
            f"{OP}: tokens are {x.dtype}; the kernel takes torch.bfloat16 or torch.float16"
        )
    if x.shape[-1] % 16 or not 0 < x.shape[-1] <= WIDEST:
        raise LoweringError(
            f"{OP}: tokens have {x.shape[-1]} features; the kernel takes multiples of 16 up to "
            f"{WIDEST}"
        )
    if destinations.shape[0] == 0:
        raise LoweringError(f"{OP}: no destinations; the kernel takes one or more")
    refuse_device(OP, "x", x)


def launch(
    x: Tensor,
    destinations: Tensor,
    keep: int,
    before: int,
    after: int,
    profile: bool = False,
    config: triton.Config | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Match with the kernel; arguments and results of the contract.

    Raises:
        LoweringError: see `supports`.
    """
    supports(x, destinations, keep, before, after)
    search = partial(nearest, config=config)
    return contract.match_with(search, x, destinations, keep, before, after, profile)


def nearest(
    video: Tensor, destinations: Tensor, sources: Tensor, config: triton.Config | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Nearest destination of each source, its squared distance, and the tokens' squared norm.

    Shapes: video [R, N, D]; destinations [K], sources [S] int64; results [R, S] int64, [R, S]
        float32 and [R] float32.
    """
    shape = (video.shape[0], sources.shape[0])
    found = video.new_empty(shape, dtype=torch.int32)
    distance, own = (video.new_empty(shape, dtype=torch.float32) for _ in range(2))
    chosen = video.index_select(1, destinations)
    norm = chosen.float().square().sum(-1)
    prepare(video, sources, chosen, norm, found, distance, own, config).run()
    return found.long(), distance, norm.sum(-1) + own.sum(-1)


def prepare(
    video: Tensor,
    sources: Tensor,
    chosen: Tensor,
    norm: Tensor,
    found: Tensor,
    distance: Tensor,
    own: Tensor,
    config: triton.Config | None,
) -> Launch:
    """The kernel's arguments and grid."""
    config = default_config(takes_descriptors(chosen)) if config is None else config
    sizes, width = config.kwargs, video.shape[-1]
    held = padded(width)
    operand = chosen
    if sizes["DESCRIPTORS"]:
        operand = TensorDescriptor.from_tensor(chosen, [1, sizes["BLOCK_K"], held])
    tensors = (video, sources, operand, norm, found, distance, own)
    arguments = (*tensors, video.stride(), sources.shape[0], chosen.shape[1], width)
    constants = {"BLOCK_D": held, "EVEN_D": held == width, "WIDEN": interpreted()}
    grid = (triton.cdiv(sources.shape[0], sizes["BLOCK_S"]), video.shape[0])
    return Launch(_match_tokens_kernel, grid, arguments, constants, config)


def default_config(descriptors: bool) -> triton.Config:
    """The tile choice without a measurement: the largest that fits, see aot.json."""
    return _config(128, 64, 8, 3, descriptors)
