"""The attention backend that diffusers was told, of a model or for all.

``transformer.set_attention_backend("_flash_3")``, ``attention_backend(...)`` and the variable
DIFFUSERS_ATTN_BACKEND say which kernel runs the attentions that processors dispatch.  While a
model is traced they dispatch natively: a graph says what is computed, lowering which kernel does.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

from torch import Tensor, nn

from fisopt.rewrite.tools.tool import Tool

NATIVE = "native"
_BACKEND = "_attention_backend"


def told(model: nn.Module) -> tuple[str, ...]:
    """The backends that a model's processors dispatch to, by diffusers' names; each once."""
    held = (getattr(p, _BACKEND, None) or _active() for p in _processors(model))
    return tuple(dict.fromkeys(str(getattr(name, "value", name)) for name in held))


class DiffusersAttention(Tool):
    """What processors dispatch to."""

    @contextmanager
    def traced(self, model: nn.Module) -> Iterator[None]:
        """Inside, the model's processors dispatch to torch's own attention."""
        held = [vars(processor) for processor in _processors(model)]
        before = [{_BACKEND: own[_BACKEND]} if _BACKEND in own else {} for own in held]
        for own in held:
            own[_BACKEND] = NATIVE
        try:
            yield
        finally:
            for own, had in zip(held, before, strict=True):
                del own[_BACKEND]
                own.update(had)


@cache
def dispatched(backend: str) -> Callable[..., Tensor]:
    """An attention by a backend of diffusers, as `fisopt.optimize` takes it."""
    from diffusers.models.attention_dispatch import AttentionBackendName, dispatch_attention_fn

    def attend(
        query: Tensor, key: Tensor, value: Tensor, *, scale: float, mask: Tensor | None
    ) -> Tensor:
        out = dispatch_attention_fn(
            query.transpose(1, 2),
            key.transpose(1, 2),
            value.transpose(1, 2),
            attn_mask=mask,
            scale=scale,
            enable_gqa=query.shape[1] != key.shape[1],
            backend=AttentionBackendName(backend),
        )
        return out.transpose(1, 2)

    attend.__qualname__ = f"diffusers' {backend}"
    return attend


def _processors(model: nn.Module) -> list[Any]:
    """What dispatches in a model; each once, its attributes of its own."""
    held = (getattr(module, "processor", None) for module in model.modules())
    found = {id(p): p for p in held if hasattr(p, _BACKEND) and hasattr(p, "__dict__")}
    return list(found.values())


def _active() -> Any:
    """The backend of the moment for all models."""
    module: Any = sys.modules.get("diffusers.models.attention_dispatch")
    return NATIVE if module is None else module._AttentionBackendRegistry.get_active_backend()[0]


TOOL = DiffusersAttention()
