"""A pipeline of diffusers around a transformer of few operators, plain and optimised."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from functools import cache
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, ModelMixin, WanPipeline
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.loaders import PeftAdapterMixin
from diffusers.models.cache_utils import CacheMixin
from diffusers.utils import apply_lora_scale
from peft import LoraConfig, get_peft_model_state_dict
from torch import Tensor, nn
from torch.nn import functional

import fisopt
from fisopt import ModelSpec
from tests.passes import loop
from tests.passes.loop import Options, Video, interleaved

Change = Callable[[Any], object]
WIDTH, TEXT = 32, 16
CLOSE = 0.05
"""How far two results in bfloat16 may be apart that are of the same graph but for its order."""
SPEC = ModelSpec(blocks=("blocks.*",), grid=lambda call: tuple(call["hidden_states"].shape[2:]))


class Block(nn.Module):
    """Attention and a feed-forward layer, each after a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.to_q, self.to_k, self.to_v = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.to_out, self.ffn = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, hidden_states: Tensor, shift: Tensor) -> Tensor:
        x = hidden_states
        y = functional.layer_norm(x, (WIDTH,)) + shift
        parts = [to(y).unflatten(-1, (2, -1)) for to in (self.to_q, self.to_k, self.to_v)]
        mixed = functional.scaled_dot_product_attention(*(p.transpose(1, 2) for p in parts))
        x = x + self.to_out(mixed.transpose(1, 2).flatten(2))
        return x + self.ffn(functional.gelu(x))


class Transformer(ModelMixin, ConfigMixin, PeftAdapterMixin, CacheMixin):  # type: ignore[misc]
    """What a WanPipeline asks of its transformer; a token is a place of the latents."""

    @register_to_config
    def __init__(
        self,
        in_channels: int = 4,
        patch_size: tuple[int, int, int] = (1, 1, 1),
        image_dim: int | None = None,
        depth: int = 1,
    ) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(in_channels, WIDTH), nn.Linear(WIDTH, in_channels)
        self.text, self.time = nn.Linear(TEXT, WIDTH), nn.Linear(1, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(depth))

    @apply_lora_scale("attention_kwargs")  # type: ignore[untyped-decorator]
    def forward(
        self,
        hidden_states: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        attention_kwargs: dict[str, Any] | None = None,
        return_dict: bool = False,
    ) -> tuple[Tensor]:
        x = self.first(hidden_states.flatten(2).transpose(1, 2))
        time = self.time(timestep.to(x.dtype)[:, None, None] / 1000)
        shift = self.text(encoder_hidden_states).mean(1, keepdim=True) + time
        for block in self.blocks:
            x = block(x, shift)
        return (self.last(x).transpose(1, 2).reshape(hidden_states.shape),)


def transformer(depth: int = 1, seed: int = 0) -> Any:
    """One with weights of a seed."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Transformer(depth=depth).eval().requires_grad_(False)


def pipeline(first: Any, second: Any = None) -> Any:
    """A text-to-video pipeline; with two transformers, as that of Wan 2.2 A14B."""
    pipe = WanPipeline(
        tokenizer=None,
        text_encoder=None,
        vae=None,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        transformer=first,
        transformer_2=second,
        boundary_ratio=None if second is None else 0.8,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def clip(pipe: Any, frames: int = 3, **options: Any) -> Tensor:
    """The latents of two steps, without guidance."""
    latents: Tensor = pipe(
        prompt_embeds=torch.ones(1, 5, TEXT, device=pipe.device),
        guidance_scale=1.0,
        height=16,
        width=16,
        num_frames=4 * frames - 3,
        num_inference_steps=2,
        output_type="latent",
        generator=torch.Generator().manual_seed(0),
        **options,
    ).frames
    return latents


class Both:
    """A plain pipeline and one that is optimised; whatever is done to one is done to the other.

    Args:
        changes: what is done to both before the one is optimised.
        models: the transformers.
        options: of `fisopt.optimize`.
    """

    def __init__(self, *changes: Change, models: Any = None, **options: Any) -> None:
        models = [transformer()] if models is None else models
        self.plain, self.fast = (pipeline(*deepcopy(models)) for _ in range(2))
        self.do(*changes)
        options = {"passes": [], "spec": SPEC, "backend": "eager"} | options
        fisopt.optimize(self.fast, **options)

    def do(self, *changes: Change) -> None:
        """Do something to both pipelines."""
        for change in changes:
            change(self.plain)
            change(self.fast)

    def check(self, **options: Any) -> Tensor:
        """The latents that both make, which are equal."""
        want, got = (clip(pipe, **deepcopy(options)) for pipe in (self.plain, self.fast))
        torch.testing.assert_close(got, want, rtol=0, atol=1e-5)
        return want


def looped(pipe: Any, stride: int, frames: int, kv: str = "anchors") -> Tensor:
    """The latents of a plain pipeline whose blocks run on every n-th frame, as a plain loop."""
    video = Video(1, inner=4)
    blocks = [loop.Block(block, video) for block in pipe.transformer.blocks]
    with interleaved(blocks, Options(stride=stride, kv=kv), frames):
        return clip(pipe, frames)


TARGETS = ["to_q", "ffn"]


@cache
def weights(seed: int, rank: int = 2, depth: int = 1) -> Any:
    """A LoRA of a seed as a file has it."""
    torch.manual_seed(seed)
    donor = transformer(depth)
    donor.add_adapter(LoraConfig(r=rank, target_modules=TARGETS, init_lora_weights=False), "a")
    held = get_peft_model_state_dict(donor, adapter_name="a")
    return {f"transformer.{name}": x.clone() for name, x in held.items()}


def load(seed: int, name: str, rank: int = 2, depth: int = 1, **options: Any) -> Change:
    return lambda pipe: pipe.load_lora_weights(
        dict(weights(seed, rank, depth)), adapter_name=name, **options
    )


def strengths(*values: float) -> Change:
    return lambda pipe: pipe.set_adapters(["a", "b"][: len(values)], [*values])
