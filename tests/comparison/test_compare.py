from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import fisopt
from fisopt import Comparison, InputError, OptionError, OptionTypeError
from fisopt.page.write import LARGEST
from tests.comparison.tiny import PROMPTS, STRIDE, pipeline, transformer

pytestmark = [
    pytest.mark.xdist_group("tiny testbed of compare"),
    pytest.mark.usefixtures("captured_once"),
]


@contextmanager
def zeroed(pipe: Any) -> Iterator[None]:
    """Another library's method: the first block adds nothing."""
    handle = pipe.transformer.blocks[0].register_forward_hook(lambda _, args, out: args[0])
    try:
        yield
    finally:
        handle.remove()


def compared(**options: Any) -> Comparison:
    given: dict[str, Any] = {"steps": 2, "backend": "eager", "floors": 1, **options}
    configs = given.pop("configs", {"mine": [STRIDE], "theirs": zeroed})
    return fisopt.compare(given.pop("pipe", None) or pipeline(), PROMPTS, configs, **given)


@pytest.fixture
def once(captured_once: None) -> Comparison:
    return _once()


@cache
def _once() -> Comparison:
    return compared()


def test_every_configuration_has_its_figures(once: Comparison) -> None:
    names = [row.name for row in once.rows]
    assert names == ["dense", "mine", "theirs", "dense, another kernel", "dense, in a batch"]
    for name in ("mine", "theirs"):
        row = once.row(name)
        assert [clip.prompt for clip in row.clips] == PROMPTS
        for figure in ("seconds", "psnr", "ssim", "ms_ssim", "flip", "flicker", "motion", "right"):
            assert len(row.values(figure)) == 2, figure
        mean = once.mean(name, "psnr")
        assert mean is not None
        assert mean.low is not None
        assert mean.low < mean.mean < 60
    assert once.row("mine").predicted == pytest.approx(_ratio(), rel=1e-6)
    assert once.row("theirs").predicted is None
    assert once.row("mine").settings == f"fisopt.optimize(pipe, passes=[{STRIDE!r}])"


def _ratio() -> float:
    pipe = pipeline()
    fisopt.optimize(pipe, passes=[STRIDE], backend="eager")
    pipe(PROMPTS[0], num_inference_steps=1)
    module = pipe.transformer
    dense = fisopt.optimize(module, [], backend="eager")
    inputs = module.last_inputs.kwargs()
    return fisopt.predicted_ratio(dense.program(inputs), module.program(inputs))


def test_clips_are_those_of_the_pipeline(once: Comparison) -> None:
    pipe = pipeline()
    noise = torch.Generator().manual_seed(1)
    wanted = pipe(PROMPTS[1], num_inference_steps=2, generator=noise).frames[0]
    film = next(f for f in once.films if (f.prompt, f.configuration) == (PROMPTS[1], "dense"))
    assert np.abs(film.frames / 255 - wanted).max() < 0.004
    with zeroed(pipe):
        noise = torch.Generator().manual_seed(1)
        other = pipe(PROMPTS[1], num_inference_steps=2, generator=noise).frames[0]
    error = np.square(other - wanted).mean()
    assert once.row("theirs").values("psnr")[1] == pytest.approx(-10 * np.log10(error), abs=0.01)


def test_noise_floors_are_far_above_what_is_lost(once: Comparison) -> None:
    for name in ("dense, another kernel", "dense, in a batch"):
        row = once.row(name)
        assert row.floor
        assert len(row.clips) == 1
        assert row.values("psnr")[0] > 80 > 2 * once.row("mine").values("psnr")[0] - 40
        assert once.speed_up(name) is None


def test_pairs_are_compared(once: Comparison) -> None:
    ours, theirs = (once.row(name).values("psnr") for name in ("mine", "theirs"))
    found = once.difference("mine", "theirs", "psnr")
    assert found is not None
    assert found.mean == pytest.approx(np.mean(np.subtract(ours, theirs)))
    assert once.difference("mine", "dense", "psnr") is None
    with pytest.raises(OptionError, match="did you mean mine"):
        once.row("mien")


def test_it_is_shown_as_table_json_and_page(once: Comparison, tmp_path: Path) -> None:
    assert "another kernel" in str(once)
    assert "FLIP" in str(once)
    plain = once.to_dict()
    assert json.loads(json.dumps(plain)) == plain
    assert plain["configurations"][1]["clips"][0]["likeness"]["by_frame"][1] < 60
    path = once.save_page(tmp_path / "page.html", "fisopt compare testbed")
    text = path.read_text()
    assert len(text) < LARGEST
    for part in ("chart-front", "chart-frames", "chart-choices-share", "chart-stages", "<svg"):
        assert part in text
    assert "9 of 16 frames" in text


def test_choices_and_stages_are_those_of_the_run(once: Comparison) -> None:
    whole = {c.block: c for c in once.choices if c.branch == "block"}
    assert [whole[0].choice, whole[1].choice] == ["dense", "9 of 16 frames"]
    assert whole[0].share == 1
    assert 0.3 < (whole[1].share or 1) < 0.7
    assert {c.steps for c in once.choices} == {"0-1"}
    attention = next(c for c in once.choices if (c.block, c.branch) == (1, "self-attention"))
    assert attention.share == pytest.approx((9 / 16) ** 2)
    names = [s.name for s in once.stages if s.configuration == "mine"]
    assert names == ["step 0", "step 1", "text, VAE and the rest"]
    assert all(s.measured >= 0 for s in once.stages)
    assert not any(s.configuration == "theirs" for s in once.stages)


def test_choices_name_what_is_active() -> None:
    late = fisopt.FrameInterleave(stride=2, blocks="1:", steps="1:")
    passes = [late, fisopt.TileAttention(mask=2), fisopt.StepCache(threshold=0.1)]
    found = compared(configs={"all": passes, "tiles": passes[1:2]}, floors=0)
    whole = {(c.configuration, c.block, c.steps): c for c in found.choices if c.branch == "block"}
    assert whole["tiles", 0, "0-1"].choice == "TileAttention"
    assert whole["all", 1, "0"].choice == "TileAttention + StepCache"
    assert whole["all", 1, "1"].choice == "reused, or computed where it changed"
    assert [graph.title for graph in found.graphs][-1] == "blocks.1, tiles"


def test_steps_are_told_to_the_end() -> None:
    told: list[tuple[int, int]] = []
    compared(configs=[], floors=0, seen=lambda done, total: told.append((done, total)))
    assert told[-1] == (6, 6)
    assert [done for done, _ in told] == sorted(done for done, _ in told)


def test_captures_of_an_optimised_pipeline_are_used_again() -> None:
    pipe = pipeline()
    fisopt.optimize(pipe, passes=["fis-a"], backend="eager")
    captures = pipe.transformer.captures
    assert len(captures) == 0
    compared(pipe=pipe, configs=[], floors=0, steps=1)
    assert len(captures) > 0
    assert pipe.transformer.last_inputs is None, "its own passes did not run"


def test_pipeline_is_left_as_it_was() -> None:
    pipe = pipeline()
    module = fisopt.optimize(pipe, passes=[], backend="eager").transformer
    compared(pipe=pipe, configs=["fis-faithful"], floors=0)
    assert pipe.transformer is module
    with pytest.raises(RuntimeError, match="stop"):
        compared(pipe=pipe, configs=[], floors=0, scorer=_stop)
    assert pipe.transformer is module


def _stop(clip: np.ndarray, prompt: str) -> float:
    raise RuntimeError("stop")


def test_recipe_is_a_configuration(tmp_path: Path) -> None:
    path = tmp_path / "fast.yaml"
    fisopt.Recipe.of(transformer(), [STRIDE]).save(path)
    found = compared(
        configs=[str(path), "dense"],
        floors=0,
        scorer=lambda clip, prompt: 0.5,
        measures={"off": lambda clip, dense: float(np.abs(clip - dense).max())},
    )
    assert [row.name for row in found.rows] == ["dense", "fast"]
    assert found.scores == ("score", "off")
    assert found.row("dense").values("off") == []
    assert min(found.row("fast").values("off")) > 0
    assert "off" in str(found)
    assert found.row("fast").values("psnr") == _once().row("mine").values("psnr")


def test_noise_of_its_own_is_refused() -> None:
    pipe = pipeline()
    real = pipe.scheduler.step

    def step(model_output: Any, timestep: Any, sample: Any, **options: Any) -> Any:
        return real(model_output, timestep, sample + torch.randn_like(sample), **options)

    pipe.scheduler.step = step
    with pytest.raises(InputError, match="FlowMatchEulerDiscreteScheduler"):
        compared(pipe=pipe, configs=[], floors=0)


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"configs": "fis-a"}, OptionTypeError, "wanted a list"),
        ({"configs": ["fis-a", "fis-a"]}, OptionError, "twice"),
        ({"configs": ["fis-aa"]}, OptionError, "did you mean fis-a"),
        ({"configs": ["none.yaml"]}, fisopt.FisoptError, "none.yaml"),
        ({"steps": 0}, OptionError, "steps"),
        ({"scorer": 3}, OptionTypeError, "scorer"),
        ({"scorer": lambda clip, prompt: "good"}, OptionTypeError, "wanted a number"),
        ({"scorer": lambda clip, prompt: float("nan")}, InputError, "finite"),
        ({"arguments": {"nothing": 1}}, InputError, "nothing"),
    ],
)
def test_mistakes_are_named(options: dict[str, Any], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        compared(**{"configs": [], "floors": 0, "steps": 1, **options})


@pytest.mark.parametrize("prompts", [[], [" "], "red", [3]])
def test_prompts_are_texts(prompts: Any) -> None:
    with pytest.raises(OptionError if prompts in ("red", [3]) else InputError, match="prompts"):
        fisopt.compare(pipeline(), prompts, steps=1)


def test_way_that_the_pipeline_does_not_take_is_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = pipeline()
    real = type(pipe).__call__

    def one(self: Any, prompt: str, *args: Any, **options: Any) -> Any:
        if prompt != PROMPTS[0]:
            raise ValueError("one prompt at a time")
        return real(self, prompt, *args, **options)

    monkeypatch.setattr(type(pipe), "__call__", one)
    found = fisopt.compare(
        pipe, PROMPTS[:1], [], steps=1, backend="eager", arguments={"guidance_scale": 1.0}
    )
    assert [row.name for row in found.rows] == ["dense", "dense, another kernel"]
    assert "no intervals" in found.notes[0]
    assert "one prompt at a time" in found.notes[1]
    assert found.mean("dense, another kernel", "psnr").low is None  # type: ignore[union-attr]
