"""attend_by: attention by a function that torch does not know, one call in a graph.

Where it is plain, it means what torch's attention means; else only its function knows.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx
from torch.nn.functional import scaled_dot_product_attention

from fisopt.errors import LoweringError
from fisopt.rewrite.ops.declare import operator
from fisopt.rewrite.ops.tile_attention import empty_result, fake_result
from fisopt.rewrite.relations.contract import attention_relation
from fisopt.rewrite.relations.table import Relation

Attend = Callable[..., Tensor]
"""``f(query, key, value, *, scale, mask)``: [B, h, N, D], [B, h', M, D], [B, h', M, E]."""
_FUNCTIONS: dict[str, Attend] = {}
_FAILED: dict[tuple[object, ...], str] = {}


def name_of(function: Attend, said: str | None = None) -> str:
    """The name by which graphs call a function; it is kept."""
    said = said or str(getattr(function, "__qualname__", type(function).__name__))
    name, count = said, 1
    while _FUNCTIONS.get(name, function) is not function:
        count += 1
        name = f"{said} #{count}"
    _FUNCTIONS[name] = function
    return name


def failures(by: str) -> list[str]:
    """How the function of a name has failed, in words; torch runs in its place from then on."""
    return list(dict.fromkeys(said for form, said in _FAILED.items() if form[0] == by))


def _run(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scale: float,
    by: str,
    plain: bool,
) -> Tensor:
    """Attend; where a plain function fails, with a warning, as torch does, from then on."""
    form = (by, query.device, query.dtype, query.shape[-1], mask is None)
    operands = (query, key, value, mask, scale, by, plain)
    out: Any = attend_by.reference(*operands) if form in _FAILED else None
    if out is None:
        try:
            out = _FUNCTIONS[by](query, key, value, scale=scale, mask=mask)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            if not plain:
                raise
            said = f"attention {by} is not used: it fails with {type(error).__name__}: {error}"
            _FAILED[form] = said
            warnings.warn(said, RuntimeWarning, stacklevel=2)
            out = attend_by.reference(*operands)
    room = empty_result(query, value)
    if not isinstance(out, Tensor) or (out.shape, out.dtype) != (room.shape, room.dtype):
        got = f"{tuple(out.shape)} {out.dtype}" if isinstance(out, Tensor) else type(out).__name__
        raise LoweringError(
            f"attention {by} returns {got}; wanted {tuple(room.shape)} {room.dtype}, [B, h, N, E] "
            "in the type of the queries"
        )
    return room.copy_(out) if out.stride() != room.stride() or _shared(out, value) else out


def _shared(out: Tensor, value: Tensor) -> bool:
    return bool(out.untyped_storage()._cdata == value.untyped_storage()._cdata)


def dense_flops(query: Tensor, key: Tensor, value: Tensor, *rest: Any) -> float:
    """FLOPs of the scores and of the values."""
    rows = query.shape[:-1].numel()
    return float(2 * rows * key.shape[-2] * (query.shape[-1] + value.shape[-1]))


def _relation(node: fx.Node) -> Relation:
    return attention_relation(node, whole=not node.args[6])


def _example() -> tuple[Any, ...]:
    _FUNCTIONS[""] = lambda query, key, value, scale, mask: scaled_dot_product_attention(
        query, key, value, mask, scale=scale
    )
    x = torch.arange(8.0, device="cpu").reshape(1, 1, 4, 2)
    return (x, x, x, None, 0.5, "", True)


@operator(
    "fisopt::attend_by",
    implementation=_run,
    fake=fake_result,
    example=_example(),
    relation=_relation,
    flops=dense_flops,
    attention=True,
    opaque=True,
)
def attend_by(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scale: float,
    by: str,
    plain: bool,
) -> Tensor:
    """Dense attention of torch's choice; the function that ``by`` names is the implementation.

    Where it is not plain, that function is its only meaning.

    Shapes: query [B, h, N, D]; key [B, h', M, D]; value [B, h', M, E]; mask as torch takes it.
    Returns: [B, h, N, E] in query's dtype.
    """
    if not plain:
        return _FUNCTIONS[by](query, key, value, scale=scale, mask=mask)
    grouped = query.shape[-3] != key.shape[-3]
    return scaled_dot_product_attention(query, key, value, mask, scale=scale, enable_gqa=grouped)
