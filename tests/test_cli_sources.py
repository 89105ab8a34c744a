"""The pipelines that commands measure on."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fisopt import InputError
from fisopt.cli.sources import PROMPTS, Source
from fisopt.models import testbed


def test_the_testbed_on_a_device_in_a_dtype() -> None:
    pipeline = Source("testbed", "cpu", "bfloat16").load()
    assert isinstance(pipeline, testbed.TestbedPipeline)
    assert pipeline.transformer.dtype == torch.bfloat16
    assert Source("testbed").is_testbed


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (Source("wan2.2-a14b"), "known by its shapes alone"),
        (Source("nothing"), "'nothing' is no pipeline; .* or the repository"),
        (Source("./not/there"), "no pipeline"),
        (Source("testbed", "abacus"), "device: got 'abacus', wanted one such as cpu"),
        (Source("testbed", "cpu", "float8"), "dtype: got 'float8', wanted one of float32"),
    ],
)
def test_mistakes_are_told(source: Source, message: str) -> None:
    with pytest.raises(InputError, match=message):
        source.load()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there() -> None:
    with pytest.raises(InputError, match="finds no GPU; use cpu"):
        Source("testbed", "cuda").load()


def test_prompts(tmp_path: Path) -> None:
    assert Source("testbed").prompts(("a", "b"), None, 0) == ("a", "b")
    assert Source("testbed").prompts(("a", "b"), 3, 0) == ("a", "b", "a")
    own = Source("testbed").prompts((), None, 0)
    assert len(set(own)) == 4
    assert own != Source("testbed").prompts((), None, 1)
    (tmp_path / "model_index.json").write_text('{"_class_name": "WanPipeline"}')
    assert Source(str(tmp_path)).prompts((), 2, 0) == PROMPTS[:2]


def test_only_a_size_that_is_given_is_passed_on() -> None:
    assert Source("testbed").size == {}
    assert Source("testbed", height=480, frames=81).size == {"height": 480, "num_frames": 81}
