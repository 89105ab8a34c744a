"""Watch a run: its figures in a log, and clips of the student as it is so far."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import imageio.v3 as iio
import numpy as np
import torch

from fisopt import files
from fisopt.checked import checked, count
from fisopt.distill.trainer import Seen, Trainer
from fisopt.pipelines import one_of

FPS = 8


@checked
def scalars(writer: Any, every: int = 10) -> Seen:
    """Log the loss and the speed; pass the result as ``seen``.

    Args:
        writer: an object with ``add_scalar(name, value, step)``, such as TensorBoard's
            ``torch.utils.tensorboard.SummaryWriter(folder)``.
        every: steps between two entries.
    """
    count("distill: every", every)

    def seen(trainer: Trainer) -> None:
        if trainer.step % every == 0:
            writer.add_scalar("loss", trainer.loss, trainer.step)
            writer.add_scalar("steps_per_second", trainer.step / trainer.seconds, trainer.step)

    return seen


@checked
def clips(
    pipeline: Any,
    prompts: Sequence[str],
    folder: Path | str,
    every: int = 100,
    *,
    seed: int = 0,
    component: str | None = None,
    arguments: Mapping[str, Any] | None = None,
) -> Seen:
    """Generate clips with the averaged weights during training; pass the result as ``seen``.

    Args:
        pipeline: the pipeline that you distil; the student replaces its transformer meanwhile.
        prompts: one clip each.
        folder: where to write ``step-00100-0.mp4`` and so on.
        every: steps between two rounds.
        seed: seed of the noise, the same in every round.
        component: of a pipeline with two transformers, the one in training.
        arguments: more arguments of the pipeline: steps, guidance, size.
    """
    count("distill: every", every)
    component = one_of(pipeline, component)

    def seen(trainer: Trainer) -> None:
        if trainer.step % every:
            return
        held = getattr(pipeline, component)
        setattr(pipeline, component, trainer.runs)
        try:
            with trainer.averaged(), torch.no_grad():
                for number, prompt in enumerate(prompts):
                    generator = torch.Generator().manual_seed(seed + number)
                    given = {**(arguments or {}), "prompt": prompt, "output_type": "np"}
                    frames = pipeline(**given, generator=generator).frames[0]
                    _write(frames, Path(folder) / f"step-{trainer.step:05}-{number}.mp4")
        finally:
            setattr(pipeline, component, held)

    return seen


def _write(frames: np.ndarray, path: Path) -> None:
    pixels = (255 * np.asarray(frames).clip(0, 1)).round().astype(np.uint8)
    made = iio.imwrite("<bytes>", pixels, extension=".mp4", fps=FPS, plugin="pyav", codec="libx264")
    files.write(path, bytes(made))
