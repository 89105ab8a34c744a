"""Recording a pipeline: what it is called with, what is told of its steps, what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fisopt import FisoptError, InputError, OptimizedModule
from fisopt.tuning.recorder import Recorder, fitted
from tests.tiny_pipeline import Pipeline


def test_every_prompt_has_its_noise_and_every_step_is_told() -> None:
    pipeline, seen = Pipeline(), []
    model = pipeline.transformer
    recorder = Recorder(pipeline, ["a", "b"], steps=2, seed=5, seen=seen.append)
    with recorder.watched([]) as module, torch.no_grad():
        assert isinstance(module, OptimizedModule)
        pipeline.transformer = lambda **_: None  # type: ignore[assignment]
        pipeline.transformer.cache_context = module.cache_context  # type: ignore[attr-defined]
        recorder.run(0)
        recorder.run(1, first=10)
    assert pipeline.transformer is model
    assert (pipeline.prompts, pipeline.seeds) == (["a", "b"], [5, 6])
    assert seen == [1, 2, 2, 13, 14, 14]


def test_what_measurements_depend_on() -> None:
    about = Recorder(Pipeline(), ("a",), steps=3, arguments={"num_frames": 9}).about()
    assert about["arguments"] == {"num_frames": 9}
    assert (about["prompts"], about["dtype"]) == (["a"], "float32")
    with pytest.raises(InputError, match="wanted JSON values"):
        Recorder(Pipeline(), ["a"], steps=3, arguments={"image": torch.zeros(1)}).about()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"prompts": "a"}, "prompts must be a list of texts, got 'a'"),
        ({"prompts": [3]}, r"must be a list of texts, got \[3\]"),
        ({"prompts": []}, "got 0 prompts, wanted 1 or more"),
        ({"steps": 0}, "steps: got 0, wanted 1 or more"),
        ({"steps": "4"}, "steps: got '4', wanted 1 or more"),
        ({"component": "transformer_2"}, "got component='transformer_2'"),
        ({"pipeline": 3}, "int has no transformer"),
        ({"arguments": 3}, "arguments must be a mapping, got 3"),
    ],
)
def test_refusals(given: dict[str, Any], message: str) -> None:
    told: dict[str, Any] = {"pipeline": Pipeline(), "prompts": ["a"], "steps": 1, **given}
    with pytest.raises(FisoptError, match=message):
        Recorder(**told)


class Latte:
    def __call__(self, prompt: str, video_length: int = 16, output_type: str = "pil") -> None:
        raise NotImplementedError


def test_arguments_are_those_that_a_pipeline_takes() -> None:
    given = {"num_frames": 8, "prompt": "a"}
    assert fitted(Latte(), given) == {"prompt": "a", "video_length": 8}
    with pytest.raises(InputError, match=r"Latte: .*unexpected.*'height'; got height, prompt, it"):
        fitted(Latte(), {"height": 8, "prompt": "a"})
    with pytest.raises(InputError, match=r"Latte: missing.*'prompt'.*it takes prompt, video_len"):
        fitted(Latte(), {})
