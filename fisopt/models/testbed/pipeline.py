"""The testbed behind a ``DiffusionPipeline``, called as one calls Wan's."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from diffusers import DiffusionPipeline, FlowMatchEulerDiscreteScheduler, WanTransformer3DModel
from diffusers.utils.outputs import BaseOutput
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from fisopt.errors import InputError, OptionError, shown
from fisopt.models.testbed.model import (
    SHIFT,
    build_transformer,
    encode_prompts,
    null_embeddings,
    with_coordinates,
)
from fisopt.models.testbed.prompts import EXAMPLE, parse_prompt
from fisopt.models.testbed.scenes import FRAMES, SIZE

WEIGHTS = Path(__file__).parent / "weights"
OUTPUT_TYPES = ("np", "pt", "latent")

StepCallback = Callable[[Any, int, Tensor, dict[str, Any]], dict[str, Any]]


@dataclass
class TestbedPipelineOutput(BaseOutput):
    """What ``TestbedPipeline`` returns.

    Attributes:
        frames: Clips with values in [0, 1]: an array [batch, frames, 32, 32, 3] for
            ``output_type="np"``, a tensor [batch, frames, 3, 32, 32] for "pt"; for "latent" the
            undecoded tensor [batch, 3, frames, 32, 32].
    """

    frames: np.ndarray | Tensor


class TestbedPipeline(DiffusionPipeline):
    """Text to video on the testbed: latents are pixels, the text encoding is a fixed table.

    ``transformer`` may be replaced by any module with the same forward signature, ``config``,
    ``dtype`` and ``device``.

    Args:
        transformer: The denoiser.
        scheduler: Flow-matching Euler steps.
    """

    # What the base gives; diffusers imports lazily, so the type checker cannot see it.
    transformer: Any
    scheduler: Any
    register_modules: Any
    progress_bar: Any
    maybe_free_model_hooks: Any
    _execution_device: torch.device

    __test__ = False  # the name is not a test's
    model_cpu_offload_seq = "transformer"
    _callback_tensor_inputs = ("latents", "prompt_embeds", "negative_prompt_embeds")

    def __init__(
        self, transformer: WanTransformer3DModel, scheduler: FlowMatchEulerDiscreteScheduler
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.register_modules(transformer=transformer, scheduler=scheduler)

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str],
        negative_prompt: str | list[str] | None = None,
        num_frames: int = FRAMES,
        num_inference_steps: int = 25,
        guidance_scale: float = 2.0,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: Tensor | None = None,
        output_type: str = "np",
        return_dict: bool = True,
        callback_on_step_end: StepCallback | None = None,
        callback_on_step_end_tensor_inputs: tuple[str, ...] | list[str] = ("latents",),
    ) -> TestbedPipelineOutput | tuple[np.ndarray | Tensor]:
        """Generate one clip a prompt.

        Args:
            prompt: One prompt or several, as "red circle moving left fast over waves".
            negative_prompt: What to steer away from; None steers away from no prompt at all.
            num_frames: Length of the clips; 16 is what the weights were trained for.
            num_inference_steps: Euler steps.
            guidance_scale: Classifier-free guidance; 1 or less makes one call a step, not two.
            generator: Source of the noise, or one for each prompt.
            latents: Noise to start from [batch, 3, num_frames, 32, 32] instead.
            output_type: "np", "pt" or "latent", see ``TestbedPipelineOutput``.
            return_dict: Whether to return an output object rather than a tuple.
            callback_on_step_end: Called as ``callback(pipeline, step, timestep, tensors)`` after
                each step; what it returns replaces the tensors of those names.
            callback_on_step_end_tensor_inputs: Which tensors the callback gets.

        Returns:
            The clips.

        Raises:
            InputError: An argument is out of range, or a prompt has a word that the testbed does
                not know.
        """
        prompts = [prompt] if isinstance(prompt, str) else prompt
        self._check(prompts, num_frames, num_inference_steps, output_type)
        self._check_callback(callback_on_step_end_tensor_inputs)
        device, dtype = self._execution_device, self.transformer.dtype
        guided = guidance_scale > 1
        text = self._encode(prompts).to(device, dtype)
        negative = self._encode_negative(negative_prompt, len(prompts)).to(device, dtype)
        shape = (len(prompts), self.transformer.config.out_channels, num_frames, SIZE, SIZE)
        latents = self._noise(shape, generator, latents, device)

        self.scheduler.set_timesteps(num_inference_steps, device=device)
        self.scheduler.set_begin_index(0)
        timesteps = self.scheduler.timesteps
        with self.progress_bar(total=len(timesteps)) as progress_bar:
            for step, t in enumerate(timesteps):
                place = {
                    "step_index": step,
                    "sigma": float(self.scheduler.sigmas[step]),
                    "num_inference_steps": len(timesteps),
                }
                inputs = {
                    "hidden_states": with_coordinates(latents).to(dtype),
                    "timestep": t.expand(len(prompts)),
                }
                velocity = self._denoise("cond", inputs, text, place)
                if guided:
                    without = self._denoise("uncond", inputs, negative, place)
                    velocity = without + guidance_scale * (velocity - without)
                latents = self.scheduler.step(velocity, t, latents, return_dict=False)[0]

                if callback_on_step_end is not None:
                    tensors = {
                        "latents": latents,
                        "prompt_embeds": text,
                        "negative_prompt_embeds": negative,
                    }
                    given = {name: tensors[name] for name in callback_on_step_end_tensor_inputs}
                    tensors.update(callback_on_step_end(self, step, t, given) or {})
                    latents = tensors["latents"]
                    text, negative = tensors["prompt_embeds"], tensors["negative_prompt_embeds"]
                progress_bar.update()

        frames = self._decode(latents, output_type)
        self.maybe_free_model_hooks()
        return TestbedPipelineOutput(frames=frames) if return_dict else (frames,)

    def _denoise(
        self, branch: str, inputs: dict[str, Tensor], text: Tensor, place: dict[str, Any]
    ) -> Tensor:
        """Predict the velocity inside the cache context of one guidance branch."""
        context: AbstractContextManager[Any] = nullcontext()
        if hasattr(self.transformer, "cache_context"):
            context = self.transformer.cache_context(branch, **place)
        with context:
            velocity: Tensor = self.transformer(
                **inputs, encoder_hidden_states=text, return_dict=False
            )[0]
        return velocity

    @staticmethod
    def _encode(prompts: list[str]) -> Tensor:
        return encode_prompts([parse_prompt(text) for text in prompts])

    def _encode_negative(self, negative: str | list[str] | None, count: int) -> Tensor:
        if not negative:
            return null_embeddings(count)
        texts = [negative] * count if isinstance(negative, str) else negative
        if len(texts) != count:
            raise InputError(
                f"TestbedPipeline: got {len(texts)} negative prompts for {count} prompts, wanted "
                "one, or one for each"
            )
        return self._encode(texts)

    @staticmethod
    def _check(prompts: list[str], num_frames: int, steps: int, output_type: str) -> None:
        if not isinstance(prompts, list) or not prompts:
            raise InputError(
                f"TestbedPipeline: got prompt={prompts!r}, wanted '{EXAMPLE}' or a list of such"
            )
        for name, value in (("num_frames", num_frames), ("num_inference_steps", steps)):
            if value < 1:
                raise InputError(f"TestbedPipeline: got {name}={value}, wanted 1 or more")
        if output_type not in OUTPUT_TYPES:
            raise InputError(
                f"TestbedPipeline: got output_type={output_type!r}, wanted one of "
                f"{', '.join(OUTPUT_TYPES)}"
            )

    def _check_callback(self, names: tuple[str, ...] | list[str]) -> None:
        unknown = [name for name in names if name not in self._callback_tensor_inputs]
        if unknown:
            raise InputError(
                f"TestbedPipeline: got callback_on_step_end_tensor_inputs={unknown}, wanted some "
                f"of {', '.join(self._callback_tensor_inputs)}"
            )

    @staticmethod
    def _noise(
        shape: tuple[int, ...],
        generator: torch.Generator | list[torch.Generator] | None,
        latents: Tensor | None,
        device: torch.device,
    ) -> Tensor:
        if latents is not None:
            if tuple(latents.shape) != shape:
                raise InputError(
                    f"TestbedPipeline: got latents of shape {list(latents.shape)}, wanted "
                    f"{list(shape)}"
                )
            return latents.to(device, torch.float32)
        if isinstance(generator, list) and len(generator) != shape[0]:
            raise InputError(
                f"TestbedPipeline: got {len(generator)} generators for {shape[0]} prompts, wanted "
                "one, or one for each"
            )
        noise: Tensor = randn_tensor(shape, generator=generator, device=device, dtype=torch.float32)
        return noise

    @staticmethod
    def _decode(latents: Tensor, output_type: str) -> np.ndarray | Tensor:
        return latents if output_type == "latent" else to_frames(latents, output_type)


def to_frames(clips: Tensor, output_type: str = "np") -> np.ndarray | Tensor:
    """Turn clips [..., 3, frames, 32, 32] in [-1, 1] into frames as the pipeline returns them.

    Args:
        clips: Drawn or generated clips; values beyond the range are clamped.
        output_type: "np" for an array [..., frames, 32, 32, 3], "pt" for a tensor
            [..., frames, 3, 32, 32].

    Returns:
        Frames with values in [0, 1].
    """
    frames = (clips.float() / 2 + 0.5).clamp(0, 1).transpose(-4, -3)
    return frames if output_type == "pt" else frames.movedim(-3, -1).cpu().numpy()


def build_pipeline(transformer: WanTransformer3DModel | None = None) -> TestbedPipeline:
    """Put a transformer (untrained unless given) and the testbed's scheduler into a pipeline."""
    scheduler = FlowMatchEulerDiscreteScheduler(shift=SHIFT)  # type: ignore[no-untyped-call]
    return TestbedPipeline(build_transformer() if transformer is None else transformer, scheduler)


def load_testbed(
    directory: str | Path | None = None, *, student: Literal[2, 4] | None = None
) -> TestbedPipeline:
    """Load the trained testbed.

    Args:
        directory: A folder written by ``save_pretrained``; the packaged weights when None.
        student: Steps of a packaged student that was distilled to 2 or 4, guidance folded in: call
            it with so many ``num_inference_steps`` and ``guidance_scale=1``.

    Returns:
        The pipeline on the CPU in float32, its transformer in evaluation mode.

    Raises:
        InputError: There are no weights in that folder.
        OptionError: There is no such student, or a folder is given as well.
    """
    if student is not None and (directory is not None or student not in (2, 4)):
        raise OptionError(
            f"load_testbed: student: got {shown(student)}"
            f"{'' if directory is None else ' and a folder'}; wanted 2 or 4, of the packaged ones"
        )
    packaged = WEIGHTS if student is None else WEIGHTS / "students" / f"{student}-steps"
    path = packaged if directory is None else Path(directory)
    if not (path / "model_index.json").is_file():
        raise InputError(
            f"load_testbed: no model_index.json in {path}; wanted a folder written by "
            "save_pretrained. Train one with scripts/train_testbed.py"
        )
    load: Any = TestbedPipeline.from_pretrained
    pipeline: TestbedPipeline = load(path, local_files_only=True, torch_dtype=torch.float32)
    return pipeline
