"""An optimised module whose weights stay on the host: what moves it names the device it runs on."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from fisopt.codegen.gathering import sharded
from fisopt.errors import InputError
from fisopt.rewrite.tracing.inputs import Inputs


def check_on_host(model: nn.Module) -> None:
    """Insist on weights that are on the host.

    Raises:
        InputError: one is elsewhere, or only a part of one is here.
    """
    if sharded(model):
        raise InputError(
            f"offload='block' of {type(model).__name__}: ranks divide its weights already, and "
            "each gathers those of few blocks at a time; leave out offload, or shard_weights"
        )
    places = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    other = {path: x.device for path, x in places.items() if x.device.type != "cpu"}
    if other:
        path, device = next(iter(other.items()))
        raise InputError(
            f"offload='block' of {type(model).__name__}: {path} is on {device}"
            f"{f' and {len(other) - 1} more are not on the host' if len(other) > 1 else ''}; "
            "weights are copied from the host block by block: call .to('cpu') of the model first, "
            "or leave out offload"
        )


def device_of(inputs: Inputs) -> torch.device:
    """The device that a call with some inputs computes on.

    Raises:
        InputError: autocast is on there; the model is captured on the host, where it is not.
    """
    device = next((x.device for _, x in inputs.tensors()), torch.device("cpu"))
    if device.type != "cpu" and torch.is_autocast_enabled(device.type):
        raise InputError(
            f"offload='block' under torch.autocast({device.type!r}): fisopt captures the model on "
            "the host, where autocast does not apply; convert it by .to(dtype) instead"
        )
    return device


def on_host(inputs: Inputs) -> Inputs:
    """The same inputs on the host."""
    return inputs.replaced([x.cpu() if isinstance(x, torch.Tensor) else x for x in inputs.leaves])


def _device(self: Any) -> torch.device:
    """The device that it was moved to, that of its weights before."""
    device: torch.device = self.original.device if self._device is None else self._device
    return device


def _to(self: Any, *args: Any, **kwargs: Any) -> Any:
    """Name the device that it runs on; its weights stay, and are cast to a dtype that is given."""
    device, dtype, _, _ = torch._C._nn._parse_to(*args, **kwargs)
    if device is not None:
        self._device = device
    if dtype is not None:
        self.original.to(dtype=dtype)
    return self


def _cuda(self: Any, device: Any = None) -> Any:
    """Name a GPU as the device that it runs on."""
    return _to(self, torch.device("cuda", device) if isinstance(device, int) else device or "cuda")


def _cpu(self: Any) -> Any:
    """Name the host as the device that it runs on."""
    return _to(self, "cpu")


def _enable_group_offload(self: Any, onload_device: Any, *_: Any, **__: Any) -> None:
    """What it asks for is done already: only the device is new."""
    _to(self, torch.device(onload_device))


METHODS = {
    "device": property(_device),
    "to": _to,
    "cuda": _cuda,
    "cpu": _cpu,
    "enable_group_offload": _enable_group_offload,
}
"""What the class of such a module has in the place of its original's."""
