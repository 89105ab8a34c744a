"""The pipelines that commands measure on."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fisopt import InputError
from fisopt.cli.shapes import shapes_of
from fisopt.cli.sources import PROMPTS, Source
from fisopt.models import testbed
from tests.zoo import zoo


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


def test_shapes_of_what_has_weights(tmp_path: Path) -> None:
    held = shapes_of(Source("testbed"))
    assert held.size.grid == (16, 8, 8)
    assert held.size.layers == 12
    assert all(p.is_meta for p in held.model.parameters())
    assert held.title == "transformer of testbed, a WanTransformer3DModel"
    tiny = zoo()["ltx"]
    (tmp_path / "model_index.json").write_text('{"_class_name": "LTXPipeline"}')
    tiny.model.save_config(tmp_path / "transformer")  # type: ignore[operator]
    found = shapes_of(Source(str(tmp_path), height=64, width=96, frames=17))
    assert found.size.layers == len(tiny.blocks_of(tiny.model))
    (tmp_path / "transformer" / "config.json").write_text('{"_class_name": "UNet"}')
    with pytest.raises(
        InputError, match="its transformer is a 'UNet', for which there is no adapter"
    ):
        shapes_of(Source(str(tmp_path)))
    with pytest.raises(InputError, match="unknown model 'nothing'; the nearest names are"):
        shapes_of(Source("nothing"))
