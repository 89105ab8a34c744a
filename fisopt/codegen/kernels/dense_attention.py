"""Dense attention that returns the log-sum-exp too: by the device's kernels, the best one first."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fisopt.codegen.kernels.launching import DTYPES, architecture_of, refuse_device
from fisopt.errors import LoweringError

aten = torch.ops.aten
HIDDEN = -32768.0
"""What is added to the scores of hidden keys: finite, so that a query without a key has a result,
which the log-sum-exp then says not to count; scores themselves are far from it."""
CUDNN = 91501
"""The first cuDNN that is right at every number of tokens."""
Call = Callable[[Tensor, Tensor, Tensor, Tensor | None, float], tuple[Tensor, Tensor]]
_FAILED: set[tuple[object, ...]] = set()


@dataclass(frozen=True)
class Backend:
    """A kernel of dense attention.

    Attributes:
        name: whose it is.
        refuses: why it does not take queries and a mask, None if it does.
        run: attends; results, and a log-sum-exp that may have a dimension of one or more queries
            behind.
    """

    name: str
    refuses: Callable[[Tensor, Tensor | None], str | None]
    run: Call


def attend(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, scale: float
) -> tuple[Tensor, Tensor]:
    """Attend, and say how much each query has attended to.

    A backend that fails is not tried again with operands of these shapes, with a warning.

    Shapes: query [B, h, N, D]; key, value [B, h', M, D]; bias [B or 1, h or 1, N or 1, M] in
        their dtype; results [B, h, N, D] and [B, h, N] float32, the natural logarithm.

    Raises:
        LoweringError: no backend takes the operands.
    """
    form = (query.device, query.dtype, query.shape, key.shape, bias is None)
    for backend in backends(query, bias):
        if (backend.name, *form) in _FAILED:
            continue
        try:
            out, lse = backend.run(query, key, value, bias, scale)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            _FAILED.add((backend.name, *form))
            shapes = f"{list(query.shape)} and {list(key.shape)}"
            warnings.warn(
                f"{backend.name} is not used for queries and keys of {shapes}: {error}",
                RuntimeWarning,
                stacklevel=2,
            )
            continue
        lse = lse.squeeze(-1) if lse.ndim == query.ndim else lse
        return out, lse[..., : query.shape[-2]]
    raise LoweringError(
        f"no dense attention of {query.device} takes {query.dtype} queries {list(query.shape)} "
        f"and keys {list(key.shape)} with {'a' if bias is not None else 'no'} mask; use float16 "
        "or bfloat16, or leave TileAttention out"
    )


def bias_of(seen: Tensor | None, query: Tensor) -> Tensor | None:
    """What a mask adds to the scores, in the type of the queries, rows in units of 16 entries."""
    if seen is None:
        return None
    width = seen.shape[-1]
    room = (*seen.shape[:-1], -(-width // 16) * 16)
    bias = query.new_full(room, HIDDEN)[..., :width]
    if seen.dtype == torch.bool:
        return bias.masked_fill_(seen, 0.0)
    return bias.copy_(seen).clamp_(min=HIDDEN)


def refuse_operands(op: str, query: Tensor, key: Tensor, value: Tensor) -> None:
    """Check what all of them ask of queries, keys and values.

    Raises:
        LoweringError: a shape, a type, a width or a device that they do not take.
    """
    forms = [(str(x.dtype), x.shape[-1]) for x in (query, key, value)]
    if not 2 <= query.ndim <= 4 or len(set(forms)) > 1 or query.shape[-1] % 8:
        raise LoweringError(
            f"{op}: query is {list(query.shape)}; queries, keys and values are {forms}; wanted two "
            "to four dimensions, and one type and number of features for all, a multiple of 8"
        )
    if query.device.type != "cpu":
        refuse_device(op, "query", query)
        if query.dtype not in DTYPES:
            raise LoweringError(f"{op}: query is {query.dtype}; on a GPU wanted one of {DTYPES}")


def refuse_dense(op: str, query: Tensor, mask: Tensor | None, scale: float | None) -> None:
    """Check that a backend takes queries and a mask.

    Raises:
        LoweringError: none does, with the reason of each; or the scale is not positive.
    """
    if scale is not None and scale <= 0:
        raise LoweringError(f"{op}: scale is {scale}; wanted a positive one")
    if not backends(query, mask):
        why = [str(one.refuses(query, mask)) for one in known_backends(query)]
        raise LoweringError(f"{op}: no dense attention takes these operands: {'; '.join(why)}")


def backends(query: Tensor, bias: Tensor | None) -> list[Backend]:
    """The backends of a tensor's device that take it, the best one first; it may be a fake one."""
    return [one for one in known_backends(query) if one.refuses(query, bias) is None]


def known_backends(query: Tensor) -> tuple[Backend, ...]:
    """Every backend of a tensor's device, the best one first."""
    if query.device.type == "cpu":
        return (_ON_CPU,)
    if architecture_of(query) // 10 in (9, 10):
        return (_CUDNN, _FLASH, _EFFICIENT)
    return (_FLASH, _CUDNN, _EFFICIENT)


def _on_cpu(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float) -> Any:
    return aten._scaled_dot_product_flash_attention_for_cpu(
        q, k, v, 0.0, False, attn_mask=bias, scale=scale
    )


def _cudnn(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float) -> Any:
    return aten._scaled_dot_product_cudnn_attention(
        q, k, v, bias, True, 0.0, False, False, scale=scale
    )[:2]


def _flash(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float) -> Any:
    return aten._scaled_dot_product_flash_attention(q, k, v, 0.0, False, False, scale=scale)[:2]


def _efficient(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float) -> Any:
    if (group := q.shape[1] // k.shape[1]) > 1:
        k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    if bias is not None:
        bias = bias.expand(*q.shape[:3], k.shape[2])
    return aten._scaled_dot_product_efficient_attention(
        q, k, v, bias, True, 0.0, False, scale=scale
    )[:2]


def _cudnn_refuses(query: Tensor, _: Tensor | None) -> str | None:
    if not (torch.backends.cudnn.is_available() and torch.backends.cuda.cudnn_sdp_enabled()):
        return "cuDNN's attention is not there or switched off"
    if (version := torch.backends.cudnn.version() or 0) < CUDNN:
        return f"cuDNN {version} is older than {CUDNN}"
    return None if query.shape[-1] <= 128 else "cuDNN takes 128 features a head at most"


def _flash_refuses(_: Tensor, bias: Tensor | None) -> str | None:
    if not torch.backends.cuda.flash_sdp_enabled():
        return "FlashAttention is switched off"
    return None if bias is None else "FlashAttention takes no mask"


def _efficient_refuses(*_: Tensor | None) -> str | None:
    enabled = torch.backends.cuda.mem_efficient_sdp_enabled()
    return None if enabled else "memory-efficient attention is switched off"


_ON_CPU = Backend("FlashAttention of CPUs", lambda *_: None, _on_cpu)
_CUDNN = Backend("cuDNN", _cudnn_refuses, _cudnn)
_FLASH = Backend("FlashAttention", _flash_refuses, _flash)
_EFFICIENT = Backend("memory-efficient attention", _efficient_refuses, _efficient)
