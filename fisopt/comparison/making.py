"""Make clips: one pipeline, one prompt and noise at a time, timed."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

import numpy as np
import torch

from fisopt.errors import InputError
from fisopt.tuning.recorder import fitted

Seen = Callable[[int, int], object]
"""Called with the steps that are done, and how many there are."""


@dataclass
class Maker:
    """What makes clips of some prompts, each from its own noise.

    Attributes:
        pipeline: a diffusers pipeline.
        prompts: texts, one a clip.
        steps: denoising steps.
        seed: of the noise of the first clip; each next clip adds one.
        arguments: more arguments of every call.
        total: how many steps all clips take together.
        seen: told of every step.
    """

    pipeline: Any
    prompts: Sequence[str]
    steps: int
    seed: int
    arguments: Mapping[str, Any]
    total: int
    seen: Seen
    done: int = field(default=0, init=False)

    def clip(self, index: int) -> tuple[np.ndarray, float]:
        """The clip of a prompt [frames, height, width, 3], and the seconds that it took."""
        noise = torch.Generator().manual_seed(self.seed + index)
        return self._made(self.prompts[index], noise)

    def in_a_batch(self, index: int) -> np.ndarray:
        """The clip of a prompt that is made in a batch with the next one."""
        places = (index, (index + 1) % len(self.prompts))
        noise = [torch.Generator().manual_seed(self.seed + place) for place in places]
        return self._made([self.prompts[place] for place in places], noise)[0]

    def _made(self, prompt: Any, noise: Any) -> tuple[np.ndarray, float]:
        before = self.done

        def advance(pipeline: object, i: int, time: object, tensors: dict[str, Any]) -> Any:
            self._tell(before + i + 1)
            return tensors

        given = {
            **self.arguments,
            "prompt": prompt,
            "num_inference_steps": self.steps,
            "generator": noise,
            "output_type": "np",
        }
        takes = inspect.signature(self.pipeline.__call__).parameters
        told = {"callback_on_step_end": advance} if "callback_on_step_end" in takes else {}
        arguments = {**fitted(self.pipeline, given), **told}
        _wait()
        start = perf_counter()
        output = self.pipeline(**arguments)
        _wait()
        seconds = perf_counter() - start
        self._tell(before + self.steps)
        return _first(output), seconds

    def _tell(self, done: int) -> None:
        self.done = done
        self.seen(done, self.total)


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _first(output: Any) -> np.ndarray:
    """The first clip of what a pipeline returned.

    Raises:
        InputError: it is no clip.
    """
    held: Any = getattr(output, "frames", None)
    if held is None and isinstance(output, (tuple, list)) and output:
        held = output[0]
    try:
        clip = np.asarray(held[0], dtype=np.float32)
    except (TypeError, ValueError, IndexError):
        clip = np.empty(0, np.float32)
    if clip.ndim != 4 or clip.shape[-1] != 3:
        raise InputError(
            f"the pipeline returned {type(output).__name__} with frames of shape "
            f"{list(clip.shape)}, wanted clips [batch][frames, height, width, 3]"
        )
    if not np.isfinite(clip).all():
        raise InputError(
            "the pipeline returned a clip that holds NaN or infinity; check its weights and its "
            "dtype"
        )
    return clip
