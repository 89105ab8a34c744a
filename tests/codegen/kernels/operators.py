"""A kernel as an operator of its own, with the schema and the fake of its contract."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch


@cache
def operator_of(contract: Any, launch: Callable[..., Any]) -> Any:
    """An operator that runs the kernel on every device, the interpreter's CPU among them."""
    name = contract._schema.name.partition("::")[2]
    signature = str(contract._schema).partition(contract._schema.name)[2]

    def kernel(*args: Any) -> Any:
        return launch(*args)

    made = torch.library.custom_op(
        f"fisopt_kernel::{name}", kernel, mutates_args=(), schema=signature
    )
    made.register_fake(lambda *args: contract(*args))
    return getattr(torch.ops.fisopt_kernel, name).default


def check_operator(contract: Any, launch: Callable[..., Any], args: tuple[Any, ...]) -> None:
    """Run opcheck, and a compiled module that uses the operator, against the contract."""
    operator = operator_of(contract, launch)
    tests = ("test_schema", "test_faketensor", "test_aot_dispatch_static")
    torch.library.opcheck(operator, args, test_utils=tests)

    class Uses(torch.nn.Module):
        def forward(self, *tensors: Any) -> Any:
            results = operator(*tensors)
            return [r * 1 for r in (results if isinstance(results, tuple) else (results,))]

    module = Uses()
    with torch.no_grad():
        compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
        for got, want in zip(compiled(*args), module(*args), strict=True):
            torch.testing.assert_close(got, want, rtol=0, atol=0)
