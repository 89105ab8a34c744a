"""Record a pipeline: it generates for one prompt after another while a transformer is watched."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from fisopt.api import optimize
from fisopt.checked import count
from fisopt.errors import InputError, OptionTypeError, shown
from fisopt.pipelines import modules_of, one_of
from fisopt.recipe.identity import weights_digest
from fisopt.rewrite.pass_base import Pass
from fisopt.runtime.optimized import OptimizedModule

Generate = Callable[[Any, int], object]
"""Runs a pipeline for the prompt of a number."""


class Recorder:
    """A pipeline that generates for prompts while one of its transformers is watched.

    Args:
        pipeline: a diffusers pipeline.
        prompts: texts, one for each generation.
        steps: denoising steps of a generation.
        seed: of the noise of the first generation; each next one adds one.
        component: of a pipeline with two transformers, the one to watch.
        arguments: more arguments of every call of the pipeline, such as its size.
        generate: runs the pipeline instead of a call with all of these.
        seen: called with the number of steps that are done, of all ``steps x prompts``.

    Raises:
        InputError: there is no prompt, or no transformer, or two and none is chosen.
        OptionError: a count is not positive, or something is of a wrong type.
    """

    def __init__(
        self,
        pipeline: Any,
        prompts: Sequence[str],
        *,
        steps: int,
        seed: int = 0,
        component: str | None = None,
        arguments: Mapping[str, Any] | None = None,
        generate: Generate | None = None,
        seen: Callable[[int], object] | None = None,
    ) -> None:
        if not isinstance(prompts, (list, tuple)) or not all(isinstance(p, str) for p in prompts):
            raise OptionTypeError(f"prompts must be a list of texts, got {shown(prompts)}")
        if arguments is not None and not isinstance(arguments, Mapping):
            raise OptionTypeError(f"arguments must be a mapping, got {shown(arguments)}")
        if not prompts:
            raise InputError("got 0 prompts, wanted 1 or more")
        self.pipeline, self.prompts = pipeline, list(prompts)
        self.steps, self.seed = count("steps", steps), count("seed", seed, 0)
        self.component = one_of(pipeline, component)
        self.original = getattr(pipeline, self.component)
        self.arguments = dict(arguments or {})
        self._generate, self._seen = generate or self._call, seen or (lambda _: None)

    @contextmanager
    def watched(self, passes: Sequence[Pass]) -> Iterator[OptimizedModule]:
        """Inside, the transformer runs under some passes; then the pipeline is as it was."""
        optimize(self.pipeline, {self.component: passes}, backend="eager")
        try:
            yield getattr(self.pipeline, self.component)
        finally:
            setattr(self.pipeline, self.component, self.original)

    def run(self, index: int, first: int = 0) -> object:
        """Generate for one prompt; ``first`` is the number of steps that are done before all.

        Returns:
            What the pipeline returns, or ``generate``.
        """
        self._done = first + index * self.steps
        made = self._generate(self.pipeline, index)
        self._seen(first + (index + 1) * self.steps)
        return made

    def about(self) -> dict[str, Any]:
        """What measurements depend on beside the weights, as JSON values.

        Raises:
            InputError: an argument of the pipeline is none.
        """
        weight = next(self.original.parameters(), torch.empty(0))
        said = {
            "model": type(getattr(self.original, "original", self.original)).__name__,
            "component": self.component,
            "prompts": self.prompts,
            "steps": self.steps,
            "seed": self.seed,
            "arguments": self.arguments,
            "device": weight.device.type,
            "dtype": str(weight.dtype).removeprefix("torch."),
        }
        try:
            return dict(json.loads(json.dumps(said)))
        except (TypeError, ValueError, RecursionError) as error:
            raise InputError(
                f"arguments: got {shown(self.arguments)}, wanted JSON values, so that fisopt can "
                f"recognise an interrupted run ({error}); give others in a `generate` of your own"
            ) from error

    def weights(self) -> str:
        """The digest of every module of the pipeline."""
        return weights_digest(modules_of(self.pipeline).values())

    def _call(self, pipeline: Any, index: int) -> object:
        def advance(pipeline: object, i: int, time: object, tensors: dict[str, Any]) -> Any:
            self._seen(self._done + i + 1)
            return tensors

        takes = inspect.signature(pipeline.__call__).parameters
        calls_back = {"callback_on_step_end": advance} if "callback_on_step_end" in takes else {}
        given = {
            **self.arguments,
            "prompt": self.prompts[index],
            "num_inference_steps": self.steps,
            "generator": torch.Generator().manual_seed(self.seed + index),
            "output_type": "latent",
        }
        made: object = pipeline(**fitted(pipeline, given), **calls_back)
        return made


def fitted(pipeline: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of a call of a pipeline, ``num_frames`` by the name that it takes.

    Raises:
        InputError: the pipeline does not take one of them, or needs another.
    """
    arguments, takes = dict(given), inspect.signature(pipeline.__call__)
    if "num_frames" in arguments and "video_length" in takes.parameters:
        arguments["video_length"] = arguments.pop("num_frames")
    try:
        takes.bind(**arguments)
    except TypeError as error:
        raise InputError(
            f"{type(pipeline).__name__}: {error}; got {', '.join(arguments)}, it takes "
            f"{', '.join(takes.parameters)}"
        ) from error
    return arguments
