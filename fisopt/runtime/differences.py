"""Differences between two states of a model, in words."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from typing import Any

from torch import Tensor, nn

from fisopt.rewrite.tools.diffusers_hooks import REGISTRY, is_said_elsewhere

_WITHOUT_EFFECT = {REGISTRY, "_class_name", "_diffusers_version", "_name_or_path"}
"""The registry, and what saving writes into a config."""
_GONE = object()


def form_text(form: Any) -> str:
    """What a weight is."""
    if form is None:
        return "none"
    kind, shape, dtype, device, alias, *_ = form
    return f"{kind.__name__}{tuple(shape)} {dtype} on {device} ({alias})"


def changes(path: str, old: Any, new: Any, aside: Collection[str] = ()) -> Iterator[str]:
    """Entries of a container that differ, but for some that are left aside."""
    if isinstance(old, dict) and isinstance(new, dict):
        pairs: Iterable[Any] = dict.fromkeys((*old, *new))
        for key in pairs:
            was, now = old.get(key, _GONE), new.get(key, _GONE)
            silent = key in aside or (
                key == "forward" and all(x is _GONE or is_said_elsewhere(x) for x in (was, now))
            )
            if key not in _WITHOUT_EFFECT and not silent and not equal(was, now):
                yield f"{path}{'.' if path else ''}{key} {_change(was, now)}"
    elif not equal(old, new):
        yield f"{path} {_change(old, new)}"


def _change(old: Any, new: Any) -> str:
    was, now = _text(old), _text(new)
    return f"was {was}, is {now}" if was != now else f"is another {now}"


def equal(old: Any, new: Any) -> bool:
    """Whether two values are equal, as far as they say."""
    try:
        return bool(old is new or old == new)
    except Exception:  # tensors of several values
        return False


def _text(value: Any) -> str:
    if value is _GONE:
        return "absent"
    if isinstance(value, nn.Module):
        return type(value).__name__
    if isinstance(value, Tensor):
        return f"a tensor {tuple(value.shape)}"
    text = repr(value)
    return text if len(text) <= 60 else f"a {type(value).__name__}"
