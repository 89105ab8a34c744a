"""The part of ComfyUI that the nodes speak to, in its documented form: patchers, wrappers, sampling.

The networks are those of diffusers behind ComfyUI's classes and arguments, so that tests have an
oracle: the same network, optimised without the nodes.
"""

from __future__ import annotations

import copy
import itertools
import sys
import uuid
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from diffusers import LTXVideoTransformer3DModel, WanTransformer3DModel
from torch import Tensor, nn


class WrapperExecutor:
    """Runs wrappers around a function, each of which is handed the executor of what is inside."""

    def __init__(self, original: Callable, class_obj: Any, wrappers: list, idx: int = 0) -> None:
        self.original, self.class_obj, self.wrappers, self.idx = original, class_obj, wrappers, idx

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        inner = WrapperExecutor(self.original, self.class_obj, self.wrappers, self.idx + 1)
        return inner.execute(*args, **kwargs)

    def execute(self, *args: Any, **kwargs: Any) -> Any:
        if self.idx == len(self.wrappers):
            return self.original(*args, **kwargs)
        return self.wrappers[self.idx](self, *args, **kwargs)


def _wrapped(model: nn.Module, options: dict, *args: Any, **kwargs: Any) -> Tensor:
    keyed = options.get("wrappers", {}).get("diffusion_model", {})
    wrappers = [wrapper for some in keyed.values() for wrapper in some]
    return WrapperExecutor(model._forward, model, wrappers).execute(*args, **kwargs)


class WanModel(nn.Module):
    """ComfyUI's class of this name: its path of blocks, and its arguments."""

    def __init__(self, network: WanTransformer3DModel) -> None:
        super().__init__()
        self.blocks, self.patch_size = network.blocks, network.config.patch_size
        self.network = network

    def forward(
        self,
        x: Any,
        timestep: Any,
        context: Any,
        clip_fea: Any = None,
        time_dim_concat: Any = None,
        transformer_options: Any = {},  # noqa: B006 - as ComfyUI has it
        **kwargs: Any,
    ) -> Any:
        given = (x, timestep, context, clip_fea, time_dim_concat, transformer_options)
        return _wrapped(self, transformer_options, *given, **kwargs)

    def _forward(
        self,
        x: Any,
        timestep: Any,
        context: Any,
        clip_fea: Any = None,
        time_dim_concat: Any = None,
        *rest: Any,
        **kwargs: Any,
    ) -> Any:
        return self.network(x, timestep, context, return_dict=False)[0]


class LTXVModel(nn.Module):
    """The same for LTX-Video."""

    def __init__(self, network: LTXVideoTransformer3DModel) -> None:
        super().__init__()
        self.transformer_blocks, self.network = network.transformer_blocks, network

    def forward(
        self,
        x: Any,
        timestep: Any,
        context: Any,
        attention_mask: Any,
        frame_rate: Any = 25,
        transformer_options: Any = {},  # noqa: B006
        keyframe_idxs: Any = None,
        denoise_mask: Any = None,
        **kwargs: Any,
    ) -> Any:
        given = (x, timestep, context, attention_mask, frame_rate, transformer_options)
        return _wrapped(self, transformer_options, *given, keyframe_idxs, **kwargs)

    def _forward(
        self,
        x: Any,
        timestep: Any,
        context: Any,
        attention_mask: Any,
        frame_rate: Any = 25,
        *rest: Any,
        **kwargs: Any,
    ) -> Any:
        tokens = x.flatten(2).transpose(1, 2)
        mask = torch.ones(context.shape[:2]) if attention_mask is None else attention_mask
        made = self.network(tokens, context, timestep, mask, *x.shape[2:], return_dict=False)[0]
        return made.transpose(1, 2).reshape(x.shape)


class BaseModel(nn.Module):
    """A network with the scale of its timesteps, as a sampler calls it."""

    def __init__(self, diffusion_model: nn.Module) -> None:
        super().__init__()
        self.diffusion_model = diffusion_model.eval()

    def apply_model(
        self, x: Any, t: Any, context: Any, transformer_options: Any, **conditions: Any
    ) -> Any:
        given = {"control": None, "transformer_options": transformer_options, **conditions}
        return self.diffusion_model(x, 1000 * t, context=context, **given)


class ModelPatcher:
    """A model with what nodes have put on it; a clone shares the model."""

    def __init__(self, model: BaseModel) -> None:
        self.model, self.load_device = model, torch.device("cpu")
        self.wrappers: dict[str, dict[str, list]] = {}
        self.model_options: dict[str, Any] = {"transformer_options": {}}

    def clone(self) -> ModelPatcher:
        made = ModelPatcher(self.model)
        made.wrappers = {k: {n: list(w) for n, w in v.items()} for k, v in self.wrappers.items()}
        made.model_options = copy.deepcopy(self.model_options)
        return made

    def get_model_object(self, name: str) -> Any:
        return self.model.get_submodule(name)

    def add_wrapper_with_key(self, kind: str, key: str, wrapper: Any) -> None:
        self.wrappers.setdefault(kind, {}).setdefault(key, []).append(wrapper)

    def remove_wrappers_with_key(self, kind: str, key: str) -> None:
        self.wrappers.get(kind, {}).pop(key, None)

    def get_wrappers(self, kind: str, key: str) -> list:
        return self.wrappers.get(kind, {}).get(key, [])


def prepare_noise(latent: Tensor, seed: int) -> Tensor:
    return torch.randn(latent.shape, generator=torch.manual_seed(seed))


def sample(
    model: Any,
    noise: Any,
    steps: Any,
    cfg: Any,
    sampler_name: Any,
    scheduler: Any,
    positive: Any,
    negative: Any,
    latent_image: Any,
    disable_noise: Any = False,
    start_step: Any = None,
    last_step: Any = None,
    force_full_denoise: Any = False,
    disable_pbar: Any = False,
    seed: Any = None,
) -> Any:
    """Euler steps of a flow, condition and negative condition in a batch of two, or apart."""
    sigmas = torch.linspace(1, 0, steps + 1)[
        start_step or 0 : None if last_step is None else last_step + 1
    ]
    x = latent_image if disable_noise else noise
    kinds = [(0, positive)] if cfg == 1 else [(0, positive), (1, negative)]
    ids = [uuid.uuid4() for _ in kinds]
    for now, then in itertools.pairwise(sigmas):
        options = {
            **model.model_options["transformer_options"],
            "wrappers": model.wrappers,
            "sample_sigmas": sigmas,
            "sigmas": now[None],
            "patches": {},
        }
        joined = scheduler == "joined"
        groups = [list(range(len(kinds)))] if joined else [[i] for i in range(len(kinds))]
        found = {}
        for group in groups:
            options["cond_or_uncond"] = [kinds[i][0] for i in group]
            options["uuids"] = [ids[i] for i in group]
            context = torch.cat([kinds[i][1][0][0] for i in group])
            conditions = kinds[0][1][0][1]
            out = model.model.apply_model(
                torch.cat([x] * len(group)), now.repeat(len(group)), context, options, **conditions
            )
            found.update(zip(group, out.chunk(len(group)), strict=True))
        guided = found[0] if cfg == 1 else found[1] + cfg * (found[0] - found[1])
        x = x + (then - now) * guided
    return x


class KSampler:
    SAMPLERS, SCHEDULERS = ["euler"], ["apart", "joined"]


def install() -> None:
    """Make ``import comfy.sample`` and ``import comfy.samplers`` find the stand-in."""
    for name in ("comfy", "comfy.sample", "comfy.samplers"):
        sys.modules.setdefault(name, ModuleType(name))
    package, samplers = sys.modules["comfy"], sys.modules["comfy.samplers"]
    package.sample, package.samplers = sys.modules["comfy.sample"], samplers
    package.sample.sample, package.sample.prepare_noise = sample, prepare_noise
    package.sample.fix_empty_latent_channels = lambda model, latent: latent
    samplers.KSampler = KSampler
