"""Which model it is: its class and its configuration, and where it matters its weights."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn

from fisopt.errors import RecipeError

CONFIG_KEY = "fisopt"
"""The entry of a model's configuration that may hold a recipe."""


def digest(value: Any) -> str:
    """SHA-256 of a plain value, the same for equal values whatever the order of their keys."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def weights_digest(modules: Iterable[nn.Module]) -> str:
    """SHA-256 of all that modules hold in tensors: names, types, shapes and every byte."""
    found = hashlib.sha256()
    for module in modules:
        for name, value in (*module.named_parameters(), *module.named_buffers()):
            found.update(f"{name} {value.dtype} {list(value.shape)} ".encode())
            for part in _plain_tensors(value.detach()):
                found.update(part.cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return found.hexdigest()


def _plain_tensors(value: Tensor) -> Iterator[Tensor]:
    """The tensors that a quantised one is made of; a plain one itself, unless it is on meta."""
    if hasattr(value, "__tensor_flatten__"):
        names, _ = value.__tensor_flatten__()
        for name in names:
            yield from _plain_tensors(getattr(value, name))
    elif value.device.type != "meta":
        yield value


@dataclass(frozen=True)
class Identity:
    """A model as a recipe names it.

    Attributes:
        model: name of its class.
        config: its configuration; of a model without one, the shapes of its parameters, one
            entry for those whose names differ in their first number only.
    """

    model: str
    config: Mapping[str, Any]

    @staticmethod
    def of(model: nn.Module) -> Identity:
        """Read the class and the configuration of a model."""
        config: Any = getattr(model, "config", None)
        if isinstance(config, Mapping):
            kept = {k: v for k, v in config.items() if not k.startswith("_") and k != CONFIG_KEY}
        else:
            kept = _shapes(model)
        return Identity(type(model).__name__, json.loads(json.dumps(kept, default=str)))

    @property
    def sha256(self) -> str:
        """Hash of the configuration."""
        return digest(self.config)

    def plain(self) -> dict[str, Any]:
        """As plain values."""
        return {"class": self.model, "config_sha256": self.sha256, "config": dict(self.config)}

    @staticmethod
    def from_plain(said: Any, where: str) -> Identity:
        """The inverse of `plain`.

        Raises:
            RecipeError: an entry is missing, or the configuration is not that of the hash.
        """
        form = "wanted {class: NAME, config_sha256: HASH, config: {...}}"
        if not isinstance(said, Mapping) or not {"class", "config_sha256", "config"} <= set(said):
            raise RecipeError(f"{where}: got model={said!r}; {form}")
        if not isinstance(said["config"], Mapping):
            raise RecipeError(f"{where}: got config={said['config']!r}; {form}")
        found = Identity(str(said["class"]), dict(said["config"]))
        try:
            held = found.sha256
        except (TypeError, ValueError) as error:
            raise RecipeError(
                f"{where}: the model's config is not of plain values: {error}; save the recipe "
                "again"
            ) from error
        if held != said["config_sha256"]:
            raise RecipeError(
                f"{where}: the model's config has the hash {held}, config_sha256 says "
                f"{said['config_sha256']}; the file was edited: save the recipe again"
            )
        return found

    def check(self, model: nn.Module, where: str) -> None:
        """Refuse another model than this one.

        Raises:
            RecipeError: the class or the configuration is another; both are named.
        """
        here = Identity.of(model)
        if here.model != self.model:
            raise RecipeError(
                f"{where} is for a {self.model}, this is a {here.model}; optimise this one and "
                "save a recipe of its own"
            )
        if here.sha256 != self.sha256:
            names = sorted({*here.config, *self.config})
            other = [n for n in names if here.config.get(n) != self.config.get(n)]
            said = ", ".join(
                f"{n}={self.config.get(n)!r} there and {here.config.get(n)!r} here"
                for n in other[:4]
            )
            raise RecipeError(
                f"{where} is for a {self.model} of another config: {said}"
                + (f", and {len(other) - 4} more" if len(other) > 4 else "")
            )


def _shapes(model: nn.Module) -> dict[str, str]:
    """Shapes of parameters and buffers: ``{"blocks.*.proj.weight": "40 of 64x64"}``."""
    groups: dict[str, list[str]] = {}
    for name, value in model.state_dict().items():
        repeated = re.sub(r"(^|\.)\d+(?=\.)", r"\1*", name, count=1)
        groups.setdefault(repeated, []).append("x".join(map(str, value.shape)) or "scalar")
    return {
        name: ", ".join(f"{len(list(same))} of {shape}" for shape, same in groupby(shapes))
        for name, shapes in groups.items()
    }
