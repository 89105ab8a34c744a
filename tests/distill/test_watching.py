"""What is looked at while a student is trained, which changes nothing of it."""

from __future__ import annotations

from pathlib import Path

import imageio.v3 as iio
import torch

from fisopt.distill import Supplied, Trainer, Training, clips, consistency, scalars
from fisopt.models.testbed import TestbedPipeline
from tests.distill.conftest import PROMPTS, SIZE


class Writer:
    def __init__(self) -> None:
        self.seen: list[tuple[str, int]] = []

    def add_scalar(self, name: str, value: float, step: int) -> None:
        assert value > 0
        self.seen.append((name, step))


def test_a_log_and_clips_change_nothing(pipe: TestbedPipeline, tmp_path: Path) -> None:
    training = Training(steps=4, batch=1, average=0.5)
    run = {"training": training, "supplied": Supplied(reuse=2, kept=2), "arguments": SIZE}
    plain = consistency(pipe, PROMPTS, steps=2, teacher_steps=4, **run)
    writer, teacher = Writer(), pipe.transformer
    arguments = {**SIZE, "num_inference_steps": 2, "guidance_scale": 1.0}
    log, show = scalars(writer, 2), clips(pipe, PROMPTS, tmp_path, 2, arguments=arguments)

    def both(trainer: Trainer) -> None:
        log(trainer)
        show(trainer)

    watched = consistency(pipe, PROMPTS, steps=2, teacher_steps=4, seen=both, **run)
    assert pipe.transformer is teacher
    for name, value in watched.weights.items():
        assert torch.equal(value, plain.weights[name]), name
    assert writer.seen == [(n, s) for s in (2, 4) for n in ("loss", "steps_per_second")]
    names = [path.name for path in sorted(tmp_path.iterdir())]
    assert names == [f"step-0000{step}-{clip}.mp4" for step in (2, 4) for clip in (0, 1)]
    first, last = (iio.imread(tmp_path / f"step-0000{step}-0.mp4") for step in (2, 4))
    assert first.shape == (5, 32, 32, 3)
    assert (first != last).any()
