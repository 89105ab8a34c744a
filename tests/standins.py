"""Tiny pipelines in the place of released ones, so that documented code runs as it stands.

Small is the checkpoint; pipeline classes, adapters, schedulers and fisopt are the real ones.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import deepcopy
from types import SimpleNamespace
from typing import Any

import diffusers
import pytest
import torch
from diffusers import (
    AutoencoderKLWan,
    ClassifierFreeGuidance,
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    HunyuanVideo15ImageToVideoPipeline,
    HunyuanVideo15Transformer3DModel,
    WanPipeline,
)
from peft import LoraConfig, get_peft_model_state_dict
from PIL import Image

from tests.zoo import zoo

TEXT, TEXT_2, IMAGE = 12, 7, 6
HIGH, LOW = "high_noise_model.safetensors", "low_noise_model.safetensors"


def noise(*sizes: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*sizes, generator=torch.Generator().manual_seed(seed))


class Wan(WanPipeline):  # type: ignore[misc]
    """Wan 2.2 A14B: two transformers take turns by noise level."""

    def __call__(self, *args: Any, **given: Any) -> Any:
        return super().__call__(*args, **{"height": 48, "width": 64, "num_frames": 17, **given})

    def to(self, *where: Any, **how: Any) -> Any:
        return self

    def encode_prompt(self, prompt: Any, **_: Any) -> tuple[torch.Tensor, torch.Tensor]:
        texts = [prompt] if isinstance(prompt, str) else prompt
        width = self.transformer.config.text_dim
        found = torch.cat([noise(1, TEXT, width, seed=len(text)) for text in texts])
        return found, torch.zeros_like(found)

    def load_lora_weights(self, name: str, *, weight_name: str = LOW, **how: Any) -> None:
        assert name == "lightx2v/Wan2.2-Lightning"
        assert weight_name.endswith(LOW if how.get("load_into_transformer_2") else HIGH)
        donor = deepcopy(zoo()["wan"].model)
        donor.add_adapter(LoraConfig(r=2, target_modules=["to_q"], init_lora_weights=False), "a")
        held = get_peft_model_state_dict(donor, adapter_name="a")
        super().load_lora_weights({f"transformer.{key}": x for key, x in held.items()}, **how)


def wan22(*models: torch.nn.Module) -> Any:
    """A tiny Wan 2.2 A14B, with a VAE; around these two transformers, or two of its own."""
    models = models or tuple(deepcopy(zoo()["wan"].model) for _ in range(2))
    channels = models[0].config.in_channels
    torch.manual_seed(0)
    vae = AutoencoderKLWan(
        base_dim=4,
        z_dim=channels,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        latents_mean=[0.0] * channels,
        latents_std=[1.0] * channels,
    )
    made = Wan(
        tokenizer=None,
        text_encoder=None,
        vae=vae.eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        transformer=models[0],
        transformer_2=models[1],
        boundary_ratio=0.8,
    )
    made.set_progress_bar_config(disable=True)
    return made


class Sizes(torch.nn.Module):
    """What the pipeline reads of a VAE that is not called."""

    config = SimpleNamespace(latent_channels=4)
    temporal_compression_ratio, spatial_compression_ratio = 4, 16
    device, dtype = torch.device("cpu"), torch.float32


class Hunyuan(HunyuanVideo15ImageToVideoPipeline):  # type: ignore[misc]
    """HunyuanVideo 1.5 from an image; its clips are latents, drawn large."""

    def __call__(self, *args: Any, **given: Any) -> Any:
        small = {"num_frames": 17, "output_type": "latent"}
        made = super().__call__(*args, **{**small, **given})
        latents = made.frames[:, :3].permute(0, 2, 3, 4, 1).sigmoid()
        made.frames = latents.repeat_interleave(16, 2).repeat_interleave(16, 3).numpy()
        return made

    def to(self, *where: Any, **how: Any) -> Any:
        return self

    def encode_image(self, batch_size: int, **_: Any) -> torch.Tensor:
        return noise(batch_size, IMAGE, self.transformer.config.image_embed_dim)

    def encode_prompt(self, batch_size: int, **_: Any) -> tuple[torch.Tensor, ...]:
        config = self.transformer.config
        texts = noise(batch_size, TEXT, config.text_embed_dim)
        second = noise(batch_size, TEXT_2, config.text_embed_2_dim)
        return texts, torch.ones(texts.shape[:2]), second, torch.ones(second.shape[:2])

    def prepare_cond_latents_and_mask(
        self, latents: torch.Tensor, **_: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        mask = torch.zeros_like(latents[:, :1])
        mask[:, :, 0] = 1
        return mask * noise(*latents.shape, seed=1), mask


def hunyuan15() -> Any:
    """A tiny step-distilled HunyuanVideo 1.5, which takes the next step's timestep too."""
    config = {**zoo()["hunyuan_video15_i2v"].config, "use_meanflow": True, "target_size": 64}
    torch.manual_seed(0)
    made = Hunyuan(
        text_encoder=None,
        tokenizer=None,
        transformer=HunyuanVideo15Transformer3DModel(**config).eval(),
        vae=Sizes(),
        scheduler=FlowMatchEulerDiscreteScheduler(),
        text_encoder_2=None,
        tokenizer_2=None,
        guider=ClassifierFreeGuidance(guidance_scale=1.0),
        image_encoder=None,
        feature_extractor=None,
    )
    made.set_progress_bar_config(disable=True)
    return made


RELEASED: Mapping[str, Callable[[], Any]] = {
    "Wan-AI/Wan2.2-T2V-A14B-Diffusers": wan22,
    "hunyuanvideo-community/HunyuanVideo-1.5-Diffusers-480p_i2v_step_distilled": hunyuan15,
}


def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """Load a tiny pipeline where a released one is asked for by name, and a small picture."""
    real = DiffusionPipeline.from_pretrained

    def load(cls: Any, name: Any, **options: Any) -> Any:
        if name not in RELEASED:
            return real.__func__(cls, name, **options)  # type: ignore[attr-defined]
        made = RELEASED[name]()
        assert isinstance(made, cls)
        return made

    monkeypatch.setattr(DiffusionPipeline, "from_pretrained", classmethod(load))
    monkeypatch.setattr(diffusers.utils, "load_image", lambda _: Image.new("RGB", (64, 48)))
