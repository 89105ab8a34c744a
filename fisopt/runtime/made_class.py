"""A class for an optimised module that is its original's class too, with one state for both."""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Mapping
from types import MappingProxyType, MethodType
from typing import Any, TypeVar

from torch import nn

from fisopt.runtime.layers import noted, refusals

Made = TypeVar("Made", bound=nn.Module)


class Forward:
    """The ``forward`` of an optimised module; it has the signature of the original's.

    What is assigned to it goes to the original, where it is seen at the next call: by itself an
    instance's ``forward`` would run in the place of the graph.

    Args:
        run: the function that runs the graph.
        like: the original's ``forward``.
    """

    def __init__(self, run: Any, like: Any) -> None:
        @functools.wraps(like)
        def forward(module: Any, *args: Any, **kwargs: Any) -> Any:
            return run(module, *args, **kwargs)

        self.function = forward

    def __get__(self, module: Any, owner: type | None = None) -> Any:
        return self.function if module is None else MethodType(self.function, module)

    def __set__(self, module: Any, value: Any) -> None:
        vars(module)["forward"] = value

    def __delete__(self, module: Any) -> None:
        del vars(module)["forward"]


def instance(
    base: type[Made],
    run: Any,
    exchanged: Callable[[Any], None],
    model: nn.Module,
    more: Mapping[str, Any] = MappingProxyType({}),
) -> Made:
    """Return an object of a class of its own under ``base`` and the model's class.

    It has the model's state, not a copy: the same layers, weights, hooks and attributes, so that
    whatever is done to one is done to the other.  Only what ``base`` has slots for is its own.

    Args:
        base: a class of modules that keeps what is its own in slots.
        run: what its forward calls run.
        exchanged: told of it before the adapters of its model are exchanged.
        model: the model.
        more: what its class has beside; it is left out where the model's has nothing of that name.
    """
    like = type(model)
    namespace = {
        "__module__": like.__module__,
        "__qualname__": like.__qualname__,
        "__doc__": like.__doc__,
        "__slots__": (),
        "forward": Forward(run, like.forward),
        **refusals(like),
        **noted(like, exchanged),
        **{name: made for name, made in more.items() if hasattr(like, name)},
    }
    made = types.new_class(like.__name__, (base, like), {}, lambda held: held.update(namespace))
    module: Made = object.__new__(made)
    object.__setattr__(module, "__dict__", vars(model))
    return module


def of_original(module: Any, model: Any, value: Any) -> Any:
    """What to put on the original in the place of something that is about the optimised module.

    Accelerate keeps the ``forward`` that it wraps and binds its wrapper to the module: both are
    then the original's own.
    """
    own, wrapping = MethodType(type(model).forward, model), module.forward
    if isinstance(value, MethodType) and value.__self__ is module and value == wrapping:
        return own
    if isinstance(value, functools.partial) and value.args[:1] == (module,):
        wrapped = functools.partial(value.func, model, *value.args[1:], **value.keywords)
        return functools.update_wrapper(wrapped, own)
    return value
