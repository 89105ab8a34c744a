"""What changes the layers of a model, which a captured graph does not call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

from fisopt.errors import InputError

BEFORE = "call it on the model (here `.original`) and optimise that anew"
NEVER = "it hooks layers and cannot be combined with fisopt"
NEEDLESS = 'it is not needed: backend="inductor" compiles each distinct block once'

ADVICE = {
    **dict.fromkeys(
        (
            "add_adapter",
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
        ),
        BEFORE,
    ),
    **dict.fromkeys(
        ("enable_cache", "enable_group_offload", "enable_layerwise_casting", "enable_parallelism"),
        NEVER,
    ),
    "compile_repeated_blocks": NEEDLESS,
}
"""Methods of diffusers models that would have no effect on a captured graph, and what to do."""


def refusal(name: str, model: str) -> Callable[..., NoReturn] | None:
    """For a method that would have no effect on an optimised module, one that says so.

    Args:
        name: the name of a method of the original.
        model: the class of the original.
    """
    if name not in ADVICE:
        return None

    def refuse(*_: Any, **__: Any) -> NoReturn:
        raise InputError(
            f"{name} changes the layers of {model}, but an optimised module runs a graph that was "
            f"captured before and would not see it; {ADVICE[name]}"
        )

    return refuse
