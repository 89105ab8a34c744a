"""Hooks of diffusers on layers: those that a trace follows, and what is said of the others.

A guider that skips layers hooks them for the time of one call, and layerwise casting for good.
Neither keeps anything from call to call, so that a graph can hold what they do.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MethodType
from typing import Any

import torch
from torch import nn

from fisopt.rewrite.tools.tool import Tool

REGISTRY = "_diffusers_hook"
"""Where diffusers keeps the hooks of a module."""

OFFLOAD = (
    "pass offload='block' to fisopt.optimize instead, which keeps weights on the host and copies "
    "those of few blocks to the device"
)
_HOME = "diffusers.hooks."
_CASTS = (f"{_HOME}layerwise_casting", "LayerwiseCastingHook")
_FOLLOWED = {
    _CASTS,
    (f"{_HOME}layerwise_casting", "PeftInputAutocastDisableHook"),
    (f"{_HOME}layer_skip", "TransformerBlockSkipHook"),
    (f"{_HOME}layer_skip", "AttentionProcessorSkipHook"),
    (f"{_HOME}layer_skip", "FeedForwardSkipHook"),
}


def hooks_of(module: nn.Module) -> Mapping[str, Any]:
    """The hooks of a module by name, in order."""
    hooks: Mapping[str, Any] = getattr(vars(module).get(REGISTRY), "hooks", {})
    return hooks


def refused(module: nn.Module) -> Iterator[str]:
    """The hooks of a module that no graph can hold, by name, with what to do instead."""
    for name, hook in hooks_of(module).items():
        if _kind(hook) not in _FOLLOWED:
            grouped = "group_offload" in _kind(hook)[0]
            yield f"{name}: load the model again without it, and {OFFLOAD}" if grouped else name
        elif getattr(hook, "dropout", None) not in (None, 0.0, 1.0):
            yield f"{name}: with dropout={hook.dropout} every run drops something else; pass 1.0"


def described(module: nn.Module) -> tuple[Any, ...]:
    """What the hooks of a module do: equal for hooks that do the same."""
    return tuple((*_kind(hook), *_options(hook)) for hook in hooks_of(module).values())


def is_hooked(module: nn.Module, forward: object) -> bool:
    """Whether the ``forward`` of an instance runs the class's own, inside of known hooks or not."""
    own = type(module).forward
    if isinstance(forward, MethodType):
        return forward.__func__ is own
    steps = _steps(module)
    if not isinstance(forward, functools.partial) or not steps or any(refused(module)):
        return False
    inner = steps[0].original_forward or steps[0].forward
    return isinstance(inner, MethodType) and inner.__func__ is own


def is_said_elsewhere(forward: object) -> bool:
    """Whether the ``forward`` of an instance says nothing that its class and hooks do not."""
    if isinstance(forward, MethodType):
        return forward.__func__ is getattr(type(forward.__self__), "forward", None)
    made = getattr(forward, "func", None)
    return getattr(made, "__module__", "") == f"{_HOME}hooks"


class DiffusersHooks(Tool):
    """Hooks on layers."""

    @contextmanager
    def traced(self, model: nn.Module) -> Iterator[None]:
        """Inside, layerwise casting makes tensors for the time of a call, in the place of weights.

        Outside it casts weights in place, which a trace cannot follow.
        """
        steps = [
            (hook, step)
            for module in model.modules()
            for hook, step in zip(hooks_of(module).values(), _steps(module), strict=True)
            if _kind(hook) == _CASTS
        ]
        before = [(step, step.pre_forward, step.post_forward) for _, step in steps]
        for hook, step in steps:
            step.pre_forward, step.post_forward = _cast(hook.compute_dtype)
        try:
            yield
        finally:
            for step, pre, post in before:
                step.pre_forward, step.post_forward = pre, post


def _steps(module: nn.Module) -> Sequence[Any]:
    """The steps that the hooks of a module have made of its forward, in their order."""
    steps: Sequence[Any] = getattr(vars(module).get(REGISTRY), "_fn_refs", ())
    return steps


def _cast(dtype: torch.dtype) -> tuple[Any, Any]:
    """What goes before and after the forward of a module that computes in another dtype."""
    held: list[tuple[dict[str, Any], dict[str, Any]]] = []

    def before(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        for each in module.modules():
            for place in (each._parameters, each._buffers):
                held.append((place, dict(place)))
                floats = {n: x for n, x in place.items() if x is not None and x.is_floating_point()}
                place.update({name: x.to(dtype) for name, x in floats.items()})  # type: ignore[misc]
        return args, kwargs

    def after(module: nn.Module, output: Any) -> Any:
        while held:
            place, weights = held.pop()
            place.update(weights)
        return output

    return before, after


def _kind(hook: Any) -> tuple[str, str]:
    return type(hook).__module__, type(hook).__name__


def _options(hook: Any) -> tuple[Any, ...]:
    plain = (str, int, float, bool, torch.dtype, type(None))
    held = {name: x for name, x in vars(hook).items() if isinstance(x, plain) or callable(x)}
    return tuple(sorted(held.items(), key=lambda pair: pair[0]))


TOOL = DiffusersHooks()
