"""What changes the layers of a model, which a captured graph does not call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

from fisopt.errors import InputError

BEFORE = frozenset(
    {
        "add_adapter",
        "compile_repeated_blocks",
        "delete_adapters",
        "disable_adapters",
        "disable_lora",
        "enable_adapters",
        "enable_lora",
        "fuse_qkv_projections",
        "load_lora_adapter",
        "reset_attention_backend",
        "set_adapter",
        "set_adapters",
        "set_attention_backend",
        "set_attn_processor",
        "unfuse_qkv_projections",
        "unload_lora",
    }
)
"""Methods of diffusers models that have an effect only if they are called before capture."""

NEVER = frozenset(
    {"enable_cache", "enable_group_offload", "enable_layerwise_casting", "enable_parallelism"}
)
"""Methods of diffusers models that hook layers: no captured graph sees them."""


def refusal(name: str, model: str) -> Callable[..., NoReturn] | None:
    """For a method that would have no effect on an optimised module, one that says so.

    Args:
        name: the name of a method of the original.
        model: the class of the original.
    """
    if name not in BEFORE | NEVER:
        return None
    what = (
        "call it on the model before fisopt.optimize, for an optimised module on `.original`, and "
        "optimise that"
        if name in BEFORE
        else "it hooks layers and cannot be combined with fisopt"
    )

    def refuse(*_: Any, **__: Any) -> NoReturn:
        raise InputError(
            f"{name} changes the layers of {model}, but an optimised module runs a graph that was "
            f"captured before and would not see it; {what}"
        )

    return refuse
