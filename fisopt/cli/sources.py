"""The pipelines that commands run: which, on what device, for what video and prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from diffusers import DiffusionPipeline
from diffusers.utils.logging import disable_progress_bar

from fisopt import models
from fisopt.cli.options import DTYPES
from fisopt.errors import InputError
from fisopt.models import testbed
from fisopt.reading import MalformedError, read_json

TESTBED = "testbed"
PROMPTS = (
    "a red kite flies over a beach on a windy day",
    "a cat walks along a garden wall at sunset",
    "waves break on dark rocks, slow motion, close view",
    "a crowded market street in the rain, neon lights",
    "a snowy mountain seen from a drone that circles it",
    "a potter shapes a bowl of clay on a wheel",
    "fish swim through a coral reef",
    "a steam train crosses a stone bridge in autumn",
)


@dataclass(frozen=True)
class Source:
    """A diffusers pipeline with weights, and the video that it makes.

    Attributes:
        model: "testbed", or a pipeline: its folder, or the name of a repository.
        device: where it runs; None for the GPU where there is one.
        dtype: of its weights, see `DTYPES`; None for bfloat16 on a GPU, float32 elsewhere.
        height: rows in pixels; None for the pipeline's own.
        width: columns in pixels; None for the pipeline's own.
        frames: frames of the video; None for the pipeline's own.
    """

    model: str
    device: str | None = None
    dtype: str | None = None
    height: int | None = None
    width: int | None = None
    frames: int | None = None

    @property
    def size(self) -> dict[str, int]:
        """The pipeline's arguments for the size of the video, those that are given."""
        named = {"height": self.height, "width": self.width, "num_frames": self.frames}
        return {name: value for name, value in named.items() if value is not None}

    @property
    def is_testbed(self) -> bool:
        """Whether it is the bundled testbed, or one that was saved."""
        if self.model == TESTBED:
            return True
        index = Path(self.model) / "model_index.json"
        try:
            held = read_json(index) if index.is_file() else {}
        except MalformedError as error:
            raise InputError(f"{index} is {error}; wanted that of a diffusers pipeline") from error
        named = held.get("_class_name") if isinstance(held, dict) else None
        return bool(named == testbed.TestbedPipeline.__name__)

    @property
    def is_published(self) -> bool:
        """Whether it is known by its shapes: a published name, or a family's."""
        name = self.model.lower()
        return name in models.published() or name in models.families()

    @property
    def is_pipeline(self) -> bool:
        """Whether it is the folder of a pipeline, or may be a repository."""
        return (Path(self.model) / "model_index.json").is_file() or self._may_be_repository()

    def load(self) -> Any:
        """Load the pipeline, without progress bars of its own, and move it to its device.

        Raises:
            InputError: nothing with weights has this name, or the device or dtype is not there.
        """
        device, dtype = self.place()
        if self.is_testbed:
            pipeline: Any = testbed.load_testbed(None if self.model == TESTBED else self.model)
        elif self.is_pipeline:
            loaded = cast("Any", DiffusionPipeline).from_pretrained
            return _quiet(loaded(self.model, dtype=dtype).to(device))
        else:
            known = self.is_published
            raise InputError(
                f"{self.model!r} is "
                + ("known by its shapes alone" if known else "no pipeline")
                + f"; this needs weights, so give {TESTBED!r}, or the folder (with its "
                "model_index.json) or the repository of a diffusers pipeline"
            )
        return _quiet(pipeline.to(device, dtype))

    def arguments(self, guidance: float | None) -> dict[str, Any]:
        """What every call of the pipeline is given: its size, and guidance if it is said."""
        return {**self.size, **({} if guidance is None else {"guidance_scale": guidance})}

    def prompts(self, given: Sequence[str], count: int | None, seed: int) -> tuple[str, ...]:
        """``count`` prompts: the given ones in turn, or else some that suit the pipeline.

        Without a count each given prompt is taken once; four where none is given.
        """
        count = count or len(given) or 4
        if given:
            texts = tuple(given)
        elif self.is_testbed:
            texts = tuple(str(prompt) for prompt in testbed.sample_prompts(count, seed))
        else:
            texts = PROMPTS
        return tuple(texts[i % len(texts)] for i in range(count))

    def _may_be_repository(self) -> bool:
        owner, slash, name = self.model.partition("/")
        return bool(owner.strip(".") and slash and name) and "/" not in name

    def place(self) -> tuple[torch.device, torch.dtype]:
        """The device and the dtype that are meant.

        Raises:
            InputError: there is no such device or dtype.
        """
        cuda = torch.cuda.is_available()
        try:
            device = torch.device(self.device or ("cuda" if cuda else "cpu"))
        except RuntimeError as error:
            raise InputError(
                f"device: got {self.device!r}, wanted one such as cpu, cuda, cuda:1"
            ) from error
        if device.type == "cuda" and not cuda:
            raise InputError(f"device: got {self.device!r}, but this torch finds no GPU; use cpu")
        name = self.dtype or ("bfloat16" if device.type == "cuda" else "float32")
        if name not in DTYPES:
            raise InputError(f"dtype: got {name!r}, wanted one of {', '.join(DTYPES)}")
        return device, getattr(torch, name)


def _quiet(pipeline: Any) -> Any:
    disable_progress_bar()
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
