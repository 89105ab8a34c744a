"""What a pipeline tells its transformer, on disk: training then needs no text encoder."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fisopt.distill.about import differences, text
from fisopt.distill.conditions import Conditions
from fisopt.distill.levels import Level, Levels
from fisopt.errors import FileError, InputError
from fisopt.files import written
from fisopt.recipe.identity import Identity

FILE = "conditions.safetensors"
_KEY = "fisopt.distill"
_PLAIN = (type(None), bool, int, float, str)


def write(
    folder: Path,
    model: nn.Module,
    conditions: Conditions,
    levels: Levels,
    pipeline: Any,
    arguments: Mapping[str, Any],
) -> Path:
    """Write what was recorded into a folder, from this pipeline called with these arguments.

    Raises:
        InputError: an argument of the transformer is neither a tensor nor a plain value.
        FileError: it cannot be written; what was there is unchanged.
    """
    tensors: dict[str, Tensor] = {"time": conditions.time}
    if conditions.beside is not None:
        tensors["beside"] = conditions.beside
    branches = []
    for number, branch in enumerate(conditions.branches):
        leaves, structure = pytree.tree_flatten(branch)
        tensors |= {f"{number}.{i}": x for i, x in enumerate(leaves) if isinstance(x, Tensor)}
        plain = [None if isinstance(x, Tensor) else _plain(x) for x in leaves]
        branches.append({"leaves": plain, "structure": pytree.treespec_dumps(structure)})
    about = {
        "model": Identity.of(model).plain(),
        "branches": branches,
        "per_prompt": sorted(conditions.per_prompt),
        "joined": conditions.joined,
        "shape": list(conditions.shape),
        "time_type": str(conditions.time_type).removeprefix("torch."),
        "prompts": conditions.prompts,
        "levels": asdict(levels),
        "arguments": _defaults(pipeline) | _texts(arguments),
        "scheduler": _scheduler(pipeline),
    }
    path = folder / FILE
    with written(path, force=True, error=FileError) as beside:
        held = {name: x.detach().cpu().contiguous().clone() for name, x in tensors.items()}
        save_file(held, beside, {_KEY: json.dumps(about)})
    return path


def read(
    folder: Path, model: nn.Module, steps: int, pipeline: Any, arguments: Mapping[str, Any]
) -> tuple[Conditions, Levels]:
    """Read what `write` wrote.

    Raises:
        InputError: it is damaged, for another model, for another number of steps, with another
            scheduler, or one of these arguments had another value.
    """
    path = folder / FILE
    try:
        with safe_open(path, "pt") as file:
            about = json.loads(file.metadata()[_KEY])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        told, scheduler = about["arguments"], about["scheduler"]
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"distill: {path} is not what fisopt.distill.prepare writes: {error}; prepare again, "
            "into an empty folder"
        ) from error
    mine, theirs = Identity.of(model).plain(), about["model"]
    if mine != theirs:
        config, other = mine["config"], theirs["config"]
        names = sorted(n for n in {*config, *other} if config.get(n) != other.get(n))
        raise InputError(
            f"distill: {path} was prepared for {theirs['class']} with latents {about['shape']}, "
            f"got {mine['class']}; they differ in {', '.join(names) or 'their class'}: prepare "
            "again for this model"
        )
    levels = _levels(about["levels"])
    if levels.steps != steps:
        raise InputError(
            f"distill: {path} was prepared for {levels.steps} steps, got steps={steps}: prepare "
            "again, or pass the same number"
        )
    given = _texts(arguments)
    found = differences({n: told[n] for n in given if n in told}, given)
    if getattr(pipeline, "scheduler", None) is not None:
        found = found or differences(scheduler, _scheduler(pipeline))
    if found:
        raise InputError(
            f"distill: {path} was prepared otherwise: {found}; prepare again, or train with what "
            "was prepared"
        )
    branches = tuple(
        _branch(number, said, tensors) for number, said in enumerate(about["branches"])
    )
    conditions = Conditions(
        branches,
        frozenset(about["per_prompt"]),
        tensors.get("beside"),
        about["joined"],
        tuple(about["shape"]),
        tensors["time"],
        getattr(torch, about["time_type"]),
        about["prompts"],
    )
    return conditions, levels


def _texts(arguments: Mapping[str, Any]) -> dict[str, str]:
    return {name: text(value) for name, value in arguments.items()}


def _defaults(pipeline: Any) -> dict[str, str]:
    """What a call takes that is not told otherwise."""
    takes = inspect.signature(pipeline.__call__).parameters.values()
    return {p.name: text(p.default) for p in takes if p.default is not p.empty}


def _scheduler(pipeline: Any) -> dict[str, str]:
    """What decides the noise levels of a number of steps."""
    held = pipeline.scheduler
    config = {n: text(v) for n, v in dict(held.config).items() if not n.startswith("_")}
    return {**config, "scheduler": type(held).__name__, "shift": text(getattr(held, "shift", None))}


def _plain(value: Any) -> Any:
    if not isinstance(value, _PLAIN):
        raise InputError(
            f"distill: the pipeline passes its transformer {type(value).__name__}, which cannot "
            "be written; train without preparing"
        )
    return value


def _branch(number: int, said: dict[str, Any], tensors: dict[str, Tensor]) -> dict[str, Any]:
    leaves: Sequence[Any] = [
        tensors.get(f"{number}.{i}", plain) for i, plain in enumerate(said["leaves"])
    ]
    branch: dict[str, Any] = pytree.tree_unflatten(leaves, pytree.treespec_loads(said["structure"]))
    return branch


def _levels(said: dict[str, Any]) -> Levels:
    levels = tuple(Level(**level) for level in said["levels"])
    cumulative = said["cumulative"]
    cumulative = None if cumulative is None else tuple(cumulative)
    return Levels(levels, said["prediction"], cumulative, said["horizon"])
