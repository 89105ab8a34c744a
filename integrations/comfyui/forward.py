"""The wrapper through which ComfyUI runs an optimised model.

ComfyUI calls ``diffusion_model(x, timestep, context=..., transformer_options=..., **conditions)``,
and the model's forward runs the wrappers of type ``diffusion_model`` around itself.  fisopt is the
innermost of them: the model, its weights and what ComfyUI does with both stay as they are.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from fisopt import OptimizedModule
from fisopt.errors import InputError, shown

WRAPPER, KEY = "diffusion_model", "fisopt"
"""The type of wrapper, as ``comfy.patcher_extension.WrappersMP`` names it, and the key of ours."""
BOOKKEEPING = {"callbacks", "cond_or_uncond", "sample_sigmas", "sigmas", "uuids", "wrappers"}
"""What ComfyUI's sampling notes in ``transformer_options`` and these models do not read."""
OPTIONS = "transformer_options"


def attach(patcher: Any, module: OptimizedModule) -> Any:
    """A clone of a ``ModelPatcher`` whose diffusion model runs as an optimised one.

    An optimised model that it had before is replaced.
    """
    patched = still(patcher)
    patched.remove_wrappers_with_key(WRAPPER, KEY)
    patched.add_wrapper_with_key(WRAPPER, KEY, Forward(module))
    return patched


def still(patcher: Any) -> Any:
    """A clone of a ``ModelPatcher`` whose weights stay one set of tensors while it is loaded."""
    dynamic = getattr(patcher, "is_dynamic", None)
    return patcher.clone(disable_dynamic=True) if dynamic and dynamic() else patcher.clone()


def attached(patcher: Any) -> OptimizedModule | None:
    """The optimised model of a ``ModelPatcher``, None if it has none."""
    found = patcher.get_wrappers(WRAPPER, KEY)
    return found[0].module if found else None


class Forward:
    """Runs the optimised model in the place of the model's own forward.

    Args:
        module: the optimised model.
    """

    def __init__(self, module: OptimizedModule) -> None:
        self.module = module
        self._sigmas: Any = None
        self._names: dict[Any, str] = {}

    def __call__(self, executor: Any, *args: Any, **kwargs: Any) -> Any:
        """Run one forward call.

        Args:
            executor: what would run the forward, a ``comfy.patcher_extension.WrapperExecutor``.
            args: the arguments of the model's forward.
            kwargs: the others.

        Raises:
            InputError: it is another model, its weights are not where the latents are, or another
                node wants to run inside the model.
        """
        self._check_model(executor)
        names = list(inspect.signature(self.module.original.forward).parameters)
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        options = given.pop(OPTIONS, None) or {}
        _check_placed(self.module.original, given.get("x"))
        with self.module.cache_context(self._branch(options), **step_of(options)):
            return self.module(**given, **{OPTIONS: _passed_on(options)})

    def _check_model(self, executor: Any) -> None:
        if executor.class_obj is not self.module.original:
            raise InputError(
                f"fisopt optimised another {type(self.module.original).__name__} than the one that "
                "ComfyUI runs now; put the node that applies fisopt after the nodes that exchange "
                "the model"
            )
        if inner := executor.wrappers[executor.idx + 1 :]:
            raise InputError(
                f"{shown(inner[0])} wants to run inside the diffusion model, where fisopt's graph "
                "runs; apply fisopt after that node, or leave one of the two out"
            )

    def _branch(self, options: Mapping[str, Any]) -> str:
        """The name of a guidance branch: which conditions its batch holds."""
        sigmas, kinds = options.get("sample_sigmas"), options.get("cond_or_uncond") or ()
        if sigmas is not self._sigmas:  # another run of the sampler
            self._sigmas, self._names = sigmas, {}
        named = []
        for kind, one in zip(kinds, options.get("uuids") or kinds, strict=False):
            known = sum(name.startswith(_kind(kind)) for name in self._names.values())
            default = f"{_kind(kind)} {known + 1}" if known else _kind(kind)
            named.append(self._names.setdefault(one, default))
        return " + ".join(named)


def step_of(options: Mapping[str, Any]) -> dict[str, int]:
    """The denoising step of a call, as ``cache_context`` takes it; empty if nothing tells it.

    Noise levels between two of the list, which samplers of higher order ask for, belong to the step
    that they are part of.
    """
    listed, now = options.get("sample_sigmas"), options.get("sigmas")
    if listed is None or now is None or len(listed) < 2:
        return {}
    level = float(torch.as_tensor(now).max()) * (1 - 1e-6)
    done = sum(float(sigma) >= level for sigma in listed[1:])
    count = len(listed) - 1
    return {"step_index": min(done, count - 1), "num_inference_steps": count}


def _kind(kind: int) -> str:
    return ("cond", "uncond")[kind] if kind in (0, 1) else f"kind {kind}"


def _passed_on(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that change what the model computes.

    Raises:
        InputError: one is a function, which a graph cannot call.
    """
    kept = {name: value for name, value in options.items() if name not in BOOKKEEPING}
    for name, value in list(kept.items()):
        leaves = pytree.tree_leaves(value)
        if not leaves:
            del kept[name]
        for leaf in leaves:
            if leaf is not None and not isinstance(leaf, (torch.Tensor, bool, int, float, str)):
                raise InputError(
                    f"{OPTIONS}[{name!r}] holds {shown(leaf)}, with which another node changes the "
                    "model's blocks; fisopt's graph does not call it: leave one of the two out"
                )
    return kept


def _check_placed(model: nn.Module, x: Any) -> None:
    if not isinstance(x, torch.Tensor):
        return
    away = sum(p.device != x.device for p in model.parameters())
    if away:
        raise InputError(
            f"{away} weights of {type(model).__name__} are not on {x.device}, where the latents "
            "are: ComfyUI has loaded it in part (low VRAM). Start ComfyUI with --highvram, or take "
            "a smaller model"
        )
