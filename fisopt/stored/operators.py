"""The operators that a graph from a file may call, found by name in lists of ours.

Of ATen those that compute tensors from tensors and numbers and change nothing; of fisopt those
that are declared; of collectives four, between ranks that the manifest says and the loader binds.
None of them reads a file, runs code or keeps anything.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable
from typing import Any

import torch
from torch._ops import OpOverload

from fisopt.errors import ExportError, shown
from fisopt.rewrite.ops.operator import declared

_NAME = re.compile(r"torch\.ops\.(_c10d_functional|[a-zA-Z]\w*)\.(\w+)\.(\w+)", re.ASCII)
_OURS = ("aten", "fisopt")
_COLLECTIVES = {
    f"torch.ops._c10d_functional.{name}.default"
    for name in ("all_to_all_single", "all_gather_into_tensor", "broadcast", "wait_tensor")
}
_NEVER = {"from_file"}
"""Operators of ATen that change no tensor and yet reach outside."""
_PRIVATE = re.compile(
    r"__(and|or|xor|lshift|rshift)__|_to_copy|_conj\w*|_neg_view|_reshape_alias|_unsafe_view"
    r"|_unsafe_index|_(log_|safe_)?softmax|_scaled_dot_product_\w+|_fused_rms_norm|_fft_\w+"
    r"|_native_batch_norm_legit\w*|_batch_norm_no_update|_adaptive_avg_pool[23]d|_upsample_\w+"
    r"|_weight_norm\w*|_prelu_kernel|_is_(all|any)_true|_chunk_cat|_stack|_trilinear|_convolution"
    r"|_int_mm|_scaled_mm|_grouped_mm|_cdist_forward|_euclidean_dist|_local_scalar_dense"
    r"|_assert_(scalar|async|tensor_metadata)|_addmm_activation|_aminmax|_linalg_det|_pad_\w+",
    re.ASCII,
)
"""Of those whose names start with an underscore only these: the others are not meant for graphs."""
NUMBERS: dict[str, Callable[..., Any]] = {
    **{
        f"_operator.{name}": getattr(operator, name)
        for name in (
            *("eq", "ne", "le", "ge", "lt", "gt", "neg", "pos", "mul", "add", "sub", "floordiv"),
            *("mod", "pow", "truediv", "and_", "or_", "lshift", "rshift"),
        )
    },
    **{
        f"torch.{name}": getattr(torch, name)
        for name in (
            *("sym_not", "sym_int", "sym_float", "sym_ite", "sym_max", "sym_min"),
            *("sym_sqrt", "_sym_sqrt"),
        )
    },
    "math.trunc": math.trunc,
}
"""Operators on the sizes of tensors."""


def operator_of(name: str, *, any_library: bool = False) -> Callable[..., Any]:
    """Find an operator.

    Args:
        name: as torch.export writes it: ``torch.ops.aten.add.Tensor``, ``_operator.mul``.
        any_library: take the operators too that other libraries have registered here.

    Raises:
        ExportError: it is in no list, or is not there.
    """
    if name in NUMBERS:
        return NUMBERS[name]
    parts = _NAME.fullmatch(name)
    if parts is None:
        raise ExportError(f"the graph calls {shown(name)}, which is no operator that a graph holds")
    library, base, overload = parts.groups()
    if library not in _OURS and name not in _COLLECTIVES and not any_library:
        raise ExportError(
            f"the graph calls {shown(name)}, an operator of {library!r}; data calls those of aten "
            "and fisopt only: if you trust where it comes from, import its library and load it "
            "with trust='code' (--trust code)"
        )
    try:
        found = getattr(getattr(getattr(torch.ops, library), base), overload)
    except AttributeError as error:
        raise ExportError(
            f"the graph calls {shown(name)}, which is not there; import the library that has it, "
            f"or install a torch that does, here it is {torch.__version__}"
        ) from error
    if not isinstance(found, OpOverload) or (library == "fisopt" and declared(found) is None):
        raise ExportError(f"the graph calls {shown(name)}, which is no operator")
    if library == "aten" and not _computes(base, found):
        raise ExportError(
            f"the graph calls {shown(name)}; wanted an operator that computes from its operands "
            "and changes nothing"
        )
    return found


def _computes(base: str, found: OpOverload) -> bool:
    private = base.startswith("_") and not _PRIVATE.fullmatch(base)
    return not (private or base in _NEVER or found._schema.is_mutable)
