"""ComfyUI's own model classes: where their blocks are, and what their token grid is.

They are not those of diffusers: ``WanModel`` (``comfy/ldm/wan/model.py``) takes latents ``x``
[B, C, F, H, W], ``timestep`` and ``context``, and cuts ``x`` into patches of ``patch_size``;
``LTXVModel`` (``comfy/ldm/lightricks/model.py``) makes a token of every latent cell.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import fx, nn

from fisopt import ModelSpec, Recipe, operator
from fisopt.errors import InputError, RecipeError
from fisopt.rewrite.relations import Relation

Grid = tuple[int, int, int]


@dataclass(frozen=True)
class Family:
    """A class of ComfyUI and the class of diffusers that has the same weights.

    Attributes:
        blocks: path of the list of video blocks.
        patch: from a model, latent cells per token along (frames, rows, columns).
        counterpart: the class of diffusers.
    """

    blocks: str
    patch: Callable[[Any], Grid]
    counterpart: str


FAMILIES = {
    "WanModel": Family("blocks", lambda model: tuple(model.patch_size), "WanTransformer3DModel"),
    "LTXVModel": Family(
        "transformer_blocks", lambda model: (1, 1, 1), "LTXVideoTransformer3DModel"
    ),
}


def spec_of(model: nn.Module) -> ModelSpec:
    """Name the blocks and the token grid of a diffusion model of ComfyUI.

    Raises:
        InputError: it is of no class that fisopt knows.
    """
    family = _family(model)
    _declare_operators()
    return ModelSpec((f"{family.blocks}.*",), partial(_grid, patch=family.patch(model)))


def _family(model: nn.Module) -> Family:
    name = type(model).__name__
    if name not in FAMILIES:
        raise InputError(
            f"fisopt has no node for ComfyUI's {name}; it knows {', '.join(FAMILIES)}. "
            "Run another model from Python: fisopt.optimize(model, passes, spec=ModelSpec(...))"
        )
    return FAMILIES[name]


def _grid(inputs: Mapping[str, Any], patch: Grid) -> Grid:
    """Tokens along (frames, rows, columns) of one call."""
    x = inputs.get("x")
    if not isinstance(x, torch.Tensor) or x.ndim != 5:
        got = f"shape {tuple(x.shape)}" if isinstance(x, torch.Tensor) else repr(x)
        raise InputError(f"x: got {got}, wanted video latents [batch, channels, F, H, W]")
    frames, rows, columns = (-(-cells // p) for cells, p in zip(x.shape[2:], patch, strict=True))
    return frames, rows, columns


def recipe_for(recipe: Recipe, model: nn.Module) -> Recipe:
    """The recipe as one for this model, if it was saved for the same network in diffusers.

    A recipe names its model by class and configuration, and passes name blocks by number.  Where
    diffusers' class is the counterpart and has as many blocks, of as many channels, the passes mean
    the same.

    Raises:
        RecipeError: it is for another model.
    """
    if recipe.model.model == type(model).__name__:
        recipe.model.check(model, recipe.source)
        return recipe
    family, config = _family(model), recipe.model.config
    blocks = model.get_submodule(family.blocks)
    here = {"num_layers": len(list(blocks.children())), "channels": _channels(blocks)}
    heads = config.get("num_attention_heads", 0), config.get("attention_head_dim", 0)
    there = {"num_layers": config.get("num_layers"), "channels": heads[0] * heads[1]}
    if recipe.model.model != family.counterpart or here != there:
        raise RecipeError(
            f"{recipe.source} is for a {recipe.model.model} with {there}, this is a "
            f"{type(model).__name__} with {here}; tune this model and save a recipe of its own"
        )
    return Recipe.of(model, recipe.passes, recipe.kernels, recipe.tuned)


def _channels(blocks: nn.Module) -> int:
    """The width of the video stream: a feed-forward reads it, and every block's output has it."""
    linears = [m for m in next(blocks.children()).modules() if hasattr(m, "in_features")]
    return int(linears[0].in_features) if linears else 0


def _declare_operators() -> None:
    """Declare the rotary embedding of ``comfy_kitchen``, which newer versions of ComfyUI call."""
    if not hasattr(torch.ops.comfy_kitchen, "apply_rope1"):
        return
    rotary = torch.ops.comfy_kitchen.apply_rope1.default
    if rotary not in _DECLARED:
        _DECLARED.add(rotary)
        operator(rotary, relation=_rotary, flops=lambda x, table: 3.0 * x.numel())


_DECLARED: set[Any] = set()


def _rotary(node: fx.Node) -> Relation:
    """Rotates x [B, N, heads, D] in pairs along D, by a table [B or 1, N, 1, D/2, 2, 2]."""
    x, table = node.all_input_nodes
    sizes, tabled = x.meta["val"].shape, table.meta["val"].shape
    last = len(sizes) - 1
    relation = Relation(kept={last}, mixed=[(x, last)])
    for dim in range(len(tabled)):
        if dim >= last:
            relation.mixed.append((table, dim))
        elif tabled[dim] == sizes[dim]:
            relation.link(table, dim, dim)
    for dim in range(last):
        relation.link(x, dim, dim)
    return relation
