"""Tensors of a graph that are no weights: bytes of those that forward made, places of the others.

A graph of the model shares what the model holds, such as a table of positions: it sees when that
changes.  So such a tensor is stored as its place in the model, and found there again.
"""

from __future__ import annotations

import base64
from typing import Any

import torch
from torch import Tensor, nn

from fisopt.errors import shown
from fisopt.reading import MIB, MalformedError
from fisopt.rewrite.tracing.held_state import HeldState
from fisopt.stored.graph_data import NUMBERS, NotPlainError, plain_device
from fisopt.stored.graph_file import DTYPES, device_of, plain

LARGEST = MIB
"""Bytes of a tensor that is stored."""


def plain_constants(constants: dict[str, Tensor], model: nn.Module) -> dict[str, Any]:
    """The constants of a graph as plain values.

    Raises:
        NotPlainError: the model holds one elsewhere than as an attribute of a layer, or it is
            too large.
    """
    if not constants:
        return {}
    held = {_memory(x) for x in HeldState(model).tensors}
    return {path: _plain(path, x, model, held) for path, x in constants.items()}


def _plain(path: str, tensor: Tensor, model: nn.Module, held: set[Any]) -> dict[str, Any]:
    for owner, module in model.named_modules():
        for name, value in vars(module).items():
            if isinstance(value, Tensor) and _is_same(value, tensor):
                return {"module": owner, "name": name}
    if _memory(tensor) in held:
        raise NotPlainError(
            f"{path} is a tensor {list(tensor.shape)} that the model holds, and no attribute of a "
            "layer"
        )
    size = 0 if tensor.is_meta else tensor.numel() * tensor.element_size()
    if size > LARGEST or tensor.dtype not in NUMBERS:
        raise NotPlainError(
            f"{path} is a tensor {list(tensor.shape)} of {tensor.dtype} on {tensor.device}, "
            f"{size:,} bytes; up to {LARGEST:,} are stored"
        )
    return {
        "dtype": NUMBERS[tensor.dtype],
        "sizes": list(tensor.shape),
        "device": plain_device(tensor.device),
        "data": "" if tensor.is_meta else base64.b64encode(_bytes(tensor)).decode(),
    }


def _bytes(tensor: Tensor) -> bytes:
    data = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
    return data.numpy().tobytes()


def constant(said: Any, model: nn.Module) -> Tensor:
    """A constant, from what `plain_constants` says of it.

    Raises:
        LookupError, TypeError, ValueError: it is malformed, or the model does not hold it.
    """
    if "module" in said:
        value = vars(model.get_submodule(said["module"]))[said["name"]]
        if not isinstance(value, Tensor):
            raise MalformedError(f"{shown(said['name'])} is no tensor of the model")
        return value.detach()
    sizes, dtype = [plain(x, int) for x in said["sizes"]], DTYPES[said["dtype"]]
    device = device_of(said["device"])
    if device.type == "meta":
        return torch.empty(sizes, dtype=dtype, device=device)
    data = bytearray(base64.b64decode(said["data"], validate=True))
    flat = torch.frombuffer(data, dtype=torch.uint8) if data else torch.empty(0, dtype=torch.uint8)
    return flat.view(dtype).reshape(sizes).to(device)


def _memory(tensor: Tensor) -> Any:
    return id(tensor) if tensor.is_meta else tensor.untyped_storage()._cdata


def _is_same(held: Tensor, tensor: Tensor) -> bool:
    """Whether a tensor is the one that the model holds, or a view of all of it as it is."""
    return _memory(held) == _memory(tensor) and _form(held) == _form(tensor)


def _form(x: Tensor) -> tuple[Any, ...]:
    return x.shape, x.stride(), x.storage_offset(), x.dtype
