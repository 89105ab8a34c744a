from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

import fisopt
from tests.zoo import zoo

GRID = (5, 3, 4)


class Pipeline:
    """Two transformers that take turns by noise level, as those of Wan 2.2."""

    def __init__(self) -> None:
        self.transformer = self.transformer_2 = zoo()["wan"].model

    def __call__(
        self, prompt: str, num_inference_steps: int, generator: torch.Generator, output_type: str
    ) -> Any:
        assert output_type == "np"
        if not isinstance(prompt, str):
            raise TypeError("one prompt at a time")
        sample = 0
        for step in range(num_inference_steps):
            inputs = zoo()["wan"].inputs(*GRID, batch=2, seed=generator.initial_seed() + step)
            inputs["timestep"] = torch.full_like(inputs["timestep"], 900 - 200 * step)
            late = step >= num_inference_steps // 2
            model = self.transformer_2 if late else self.transformer
            with model.cache_context(
                "cond", step_index=step, num_inference_steps=num_inference_steps
            ):
                sample = sample + model(**{**inputs, "return_dict": False})[0]
        frames = torch.sigmoid(sample[:, :3]).permute(0, 2, 3, 4, 1)
        return SimpleNamespace(frames=frames.detach().numpy())


@pytest.mark.xdist_group("wan")
@pytest.mark.usefixtures("captured_once")
def test_each_transformer_has_its_own_passes() -> None:
    pipe = Pipeline()
    every = {"transformer": ["fis-faithful"], "transformer_2": [fisopt.FrameInterleave(stride=2)]}
    found = fisopt.compare(
        pipe,
        ["a cat", "a dog"],
        {"late": {"transformer_2": ["fis-faithful"]}, "both": every},
        steps=4,
        backend="eager",
        floors=1,
    )
    names = [row.name for row in found.rows]
    assert names == ["dense", "late", "both", "dense, another kernel"]
    late, both = found.mean("late", "psnr"), found.mean("both", "psnr")
    assert late is not None
    assert both is not None
    assert late.mean > both.mean
    assert found.row("both").predicted > found.row("late").predicted > 1  # type: ignore[operator]
    assert "'transformer_2': [FrameInterleave(" in found.row("both").settings
    mine = [stage.name for stage in found.stages if stage.configuration == "late"]
    assert mine[:4] == [
        "step 0, transformer",
        "step 1, transformer",
        "step 2, transformer_2",
        "step 3, transformer_2",
    ]
    changed = {
        choice.transformer
        for choice in found.choices
        if choice.configuration == "late" and choice.choice != "dense"
    }
    assert changed == {"transformer_2"}
    assert isinstance(pipe.transformer, type(zoo()["wan"].model))
    assert pipe.transformer is zoo()["wan"].model
