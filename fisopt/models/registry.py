"""Finding a family by model or by name, and building published models and their inputs."""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from collections.abc import Iterable, Mapping
from functools import cache
from types import MappingProxyType
from typing import Any, cast

import torch
from torch import nn

import fisopt.models
from fisopt.checked import checked
from fisopt.errors import InputError, OptionError, shown
from fisopt.models.family import Config, Family, Published
from fisopt.spec import ModelSpec


@cache
def families() -> Mapping[str, Family]:
    """Return every family by name; each module of this package with a ``FAMILY`` is an adapter."""
    found: dict[str, Family] = {}
    for info in pkgutil.iter_modules(fisopt.models.__path__):
        if info.ispkg or info.name in ("family", "registry"):
            continue
        family = importlib.import_module(f"fisopt.models.{info.name}").FAMILY
        found[family.name] = family
    return MappingProxyType(found)


@cache
def published() -> Mapping[str, Published]:
    """Return every published model by name."""
    return MappingProxyType(
        {model.name: model for family in families().values() for model in family.published}
    )


@checked
def find_family(model_or_name: nn.Module | type[nn.Module] | str) -> Family:
    """Return the family of a model, a model class, a family name or a published name.

    Raises:
        InputError: No adapter knows it; the message lists the nearest names.
    """
    if isinstance(model_or_name, str):
        return _find(model_or_name)[0]
    cls = model_or_name if isinstance(model_or_name, type) else type(model_or_name)
    for family in families().values():
        if issubclass(cls, family.transformer):
            return family
    known = {family.transformer.__name__ for family in families().values()}
    if isinstance(model_or_name, nn.Module) and (inner := known_inside(model_or_name)):
        raise InputError(
            f"no adapter for {cls.__name__}, which holds a {inner[1]} as {inner[0]!r}: optimise "
            "that one; the wrapper's own layers stay as they are"
        )
    raise InputError(
        f"no adapter for {cls.__name__}; there are adapters for "
        f"{', '.join(_nearest(cls.__name__, known))}. For another model give "
        f'spec=fisopt.ModelSpec(blocks=("layers.*",), grid=(frames, rows, columns))'
    )


def known_inside(model: nn.Module) -> tuple[str, str] | None:
    """Return path and class of the model of a known family that a wrapper holds, if it does."""
    known = tuple(family.transformer for family in families().values())
    held = ((path, type(m).__name__) for path, m in model.named_modules() if isinstance(m, known))
    return next(held, None)


@checked
def spec_of(model: nn.Module) -> ModelSpec:
    """Return where the blocks and tokens of a model of a known family are.

    Raises:
        InputError: No adapter knows the model.
    """
    return find_family(model).spec(_config_of(model))


@checked
def build(
    name: str,
    device: torch.device | str = "meta",
    dtype: torch.dtype = torch.float32,
    **config: Any,
) -> nn.Module:
    """Build the transformer of a published model with random weights.

    Args:
        name: A published name, or a family name for its best known model.
        device: Where its parameters go; ``"meta"`` needs no memory.
        dtype: Type of the parameters.
        **config: Entries of the config to change, such as ``num_layers=2``.

    Returns:
        The model in evaluation mode; its parameters need no gradients.

    Raises:
        InputError: The model is unknown.
        OptionError: There is no such device or dtype, or the model's class rejects the config.
    """
    family, model = _find(name)
    default = torch.get_default_dtype()
    try:
        torch.set_default_dtype(dtype)
        with torch.device(device):
            built = family.transformer(**{**model.config, **config})
    except (TypeError, ValueError, RuntimeError, AssertionError) as error:
        raise OptionError(
            f"{name}: {family.transformer.__name__} cannot be built with {shown(config)} on "
            f"{shown(device)} in {shown(dtype)}: {error}"
        ) from error
    finally:
        torch.set_default_dtype(default)
    return built.eval().requires_grad_(False)


@checked
def example_inputs(
    model_or_name: nn.Module | str,
    height: int | None = None,
    width: int | None = None,
    num_frames: int | None = None,
    batch: int = 1,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    seed: int = 0,
    context: Mapping[str, int] | None = None,
) -> dict[str, Any]:
    """Build the keyword arguments of one forward call, as the model's pipeline makes them.

    Args:
        model_or_name: A model, a published name, or a family name for its best known model.
        height: Rows of the video in pixels; None is the published size, also below.
        width: Columns of the video in pixels.
        num_frames: Frames of the video.
        batch: Number of videos.
        device: Where the tensors go; None is the model's device, or ``"meta"`` for a name.
        dtype: Type of the tensors; None is the model's type, or float32 for a name.
        seed: Seed of the random values.
        context: Lengths of conditioning streams by name (``{"text": 12}``), if they differ from the
            pipeline's.

    Raises:
        InputError: The model is unknown, or the size is not divisible into tokens.
    """
    if isinstance(model_or_name, str):
        family, model = _find(model_or_name)
        config: Config = family.config(model.config)
        device, dtype = device or "meta", dtype or torch.float32
    else:
        family = find_family(model_or_name)
        config = _config_of(model_or_name)
        model = max(family.published, key=lambda known: _likeness(family, known, config))
        parameter = next(model_or_name.parameters())
        device, dtype = device or parameter.device, dtype or cast("Any", model_or_name).dtype
    return family.example_inputs(
        config,
        height=model.height if height is None else height,
        width=model.width if width is None else width,
        num_frames=model.num_frames if num_frames is None else num_frames,
        batch=batch,
        dtype=cast("torch.dtype", dtype),
        device=device,
        seed=seed,
        context=context,
    )


def _config_of(model: nn.Module) -> Config:
    """Return the config of a diffusers model."""
    return cast("Config", model.config)


def _likeness(family: Family, model: Published, config: Config) -> int:
    """Count the entries that a config shares with a published model."""
    return sum(config.get(name) == value for name, value in family.config(model.config).items())


def _find(name: str) -> tuple[Family, Published]:
    """Return the family and the published model of a name."""
    wanted = name.lower() if isinstance(name, str) else ""
    for family in families().values():
        if wanted == family.name:
            return family, family.published[0]
        for model in family.published:
            if wanted == model.name:
                return family, model
    raise InputError(
        f"unknown model {shown(name)}; the nearest names are "
        f"{', '.join(_nearest(wanted, [*published(), *families()]))}; `fisopt models` lists all"
    )


def _nearest(name: str, known: Iterable[str]) -> list[str]:
    """Return the names most like a name, or all of them if none is like it."""
    return difflib.get_close_matches(name, known, n=3, cutoff=0.4) or sorted(known)
