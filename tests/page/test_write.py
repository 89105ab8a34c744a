from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fisopt.errors import OptionError
from fisopt.page import write as module
from fisopt.page.data import (
    BlockGraph,
    Choice,
    Film,
    Front,
    Page,
    Point,
    Stage,
    Table,
)
from fisopt.page.environment import environment
from fisopt.page.films import Form, fitted, packed
from fisopt.page.graph_svg import block_svg
from fisopt.page.write import LARGEST, rendered, write_page
from fisopt.rewrite.program import Program
from tests.page.browser import opened

PROMPTS = ("a red </script><b>circle</b>", "a blue square")
MINE = "mine"


def clip(shade: float, frames: int = 6, size: tuple[int, int] = (24, 32)) -> np.ndarray:
    """Frames that all differ: a bright bar that moves over a shade."""
    made = np.full((frames, *size, 3), int(255 * shade), np.uint8)
    for index in range(frames):
        made[index, :, 4 * index : 4 * index + 4] = 255
    return made


def films() -> tuple[Film, ...]:
    made = []
    for place, prompt in enumerate(PROMPTS):
        for name, shade in (("dense", 0.2), (MINE, 0.4), ("other", 0.6)):
            flip = None if name == "dense" else np.full((3, 24, 32), shade)
            psnr = () if name == "dense" else (20.0, 21.5, float("inf"), 20.5, 22.0, 19.0)
            made.append(Film(prompt, name, clip(shade + place / 10), flip, psnr, "2 of 3 right"))
    return tuple(made)


def whole(graph: BlockGraph) -> Page:
    """A page with every section."""
    choices = tuple(
        Choice(block, branch, steps, "stride 2" if block else "dense", 0.5, 0.01 * block, MINE)
        for block in range(4)
        for branch in ("self-attention", "feed-forward")
        for steps in ("0", "1-3")
    )
    return Page(
        title="A page",
        lead="Two clips & one model",
        command="fisopt compare testbed",
        settings={MINE: 'passes=["fis-a"]'},
        tables=(Table("Figures", ("name", "PSNR"), ((MINE, 21.25), ("other", None)), "95 %"),),
        front=Front((Point(MINE, 1.5, 24.0, low=23.0, high=25.0), Point("2x", 2.0, 27.0, "peer"))),
        films=films(),
        choices=choices,
        stages=(Stage("dense", "step 0", 20.0, 18.0), Stage(MINE, "step 0", 9.0)),
        graphs=(graph,),
        environment=environment(),
        notes=("nothing was left out",),
    )


@pytest.fixture
def graph(wan: Program) -> BlockGraph:
    drawn = block_svg(wan.blocks[0], wan.layout.frames)
    return BlockGraph("Block 0", drawn, drawn)


def pixels(page: Any, name: str) -> str:
    return str(page.evaluate(f"document.getElementById('screen-{name}').toDataURL()"))


def settled(page: Any, script: str, *arguments: str) -> None:
    page.wait_for_function(script, arg=list(arguments), timeout=10_000)


CORNER = """Array.from(document.getElementById("screen-third").getContext("2d")
    .getImageData(31, 0, 1, 1).data).slice(0, 3)"""
CHANGED = "([name, before]) => document.getElementById('screen-' + name).toDataURL() !== before"


def test_page_plays_and_switches_without_a_complaint(graph: BlockGraph, tmp_path: Path) -> None:
    path = write_page(whole(graph), tmp_path / "page.html")
    assert path.stat().st_size < LARGEST
    with opened(path) as (page, said):
        assert page.inner_text("h1") == "A page"
        assert page.input_value("#prompt") == PROMPTS[0]
        assert page.locator("#chart-front svg, #chart-frames svg, #chart-stages svg").count() == 3
        left, right, third = (pixels(page, name) for name in ("left", "right", "third"))
        assert len({left, right, third}) == 3
        assert page.evaluate(CORNER) == [4 * (int(255 * 0.4) - int(255 * 0.2))] * 3

        page.click("#play")
        settled(page, "() => Number(document.getElementById('frame').value) >= 2")
        page.click("#play")
        assert pixels(page, "left") != left
        assert page.inner_text("#play") == "play"

        page.eval_on_selector(
            "#frame", "x => { x.value = 0; x.dispatchEvent(new Event('input')); }"
        )
        settled(
            page,
            "([n, was]) => document.getElementById('screen-' + n).toDataURL() === was",
            "left",
            left,
        )
        for control, choice, screen in (
            ("#right", "other", "right"),
            ("#view", "flip", "third"),
            ("#view", "wipe", "third"),
            ("#prompt", PROMPTS[1], "left"),
        ):
            before = pixels(page, screen)
            page.select_option(control, choice)
            settled(page, CHANGED, screen, before)
        assert page.input_value("#right") == "other"

        page.check("input[name=choices][value=price]")
        assert page.is_visible("#chart-choices-price svg")
        assert not page.is_visible("#chart-choices-choice")
        for name in ("dense", MINE):
            page.select_option("#configuration", name)
        page.click("[data-copies=command]")
        settled(
            page, "() => document.querySelector('[data-copies=command]').textContent === 'copied'"
        )
        assert said == []


def test_text_of_a_prompt_stays_text(graph: BlockGraph) -> None:
    text = rendered(whole(graph))
    assert "<b>circle" not in text
    assert text.count("</script>") == text.count("<script")


def test_empty_page_has_no_sections() -> None:
    assert "<section" not in rendered(Page("Nothing"))


def test_films_are_shrunk_until_they_fit() -> None:
    noise = np.random.default_rng(0).integers(0, 255, (16, 45, 80, 3), np.uint8)
    many = [Film(f"prompt {i}", name, noise) for i in range(3) for name in ("dense", MINE)]
    made, said = packed(many, 300_000)
    assert len(made) == 6
    assert "at most" in said
    assert sum(len(film["sheet"]["url"]) for film in made) <= 300_000
    fewer, said = packed(many, 70_000)
    assert {film["prompt"] for film in fewer} == {"prompt 0"}
    assert "1 prompts" in said
    none, said = packed(many, 1_000)
    assert none == []
    assert "0 prompts" in said


def test_frames_are_scaled_and_thinned() -> None:
    shades = np.linspace(0, 250, 11).astype(np.uint8)
    frames = np.broadcast_to(shades[:, None, None, None], (11, 30, 60, 3))
    small = fitted(frames, Form(20, 3, None))
    assert small.shape == (3, 10, 20, 3)
    assert small[:, 5, 5, 0].tolist() == [0, 125, 250]
    errors = np.broadcast_to(shades[:, None, None] / 255, (11, 30, 60))
    assert fitted(errors, Form(20, 3, None))[1] == pytest.approx(125 / 255)
    assert fitted(frames, Form(60, 11, None)).shape == frames.shape


def test_small_films_are_kept_as_they_are() -> None:
    made, said = packed(films(), LARGEST)
    assert said == ""
    assert [film["sheet"]["frames"] for film in made] == [6] * 6
    assert made[1]["flip"]["frames"] == 3


def test_page_that_cannot_fit_says_so(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="wanted 1,000"):
        write_page(Page("Nothing"), tmp_path / "page.html", largest=1000)
    assert not (tmp_path / "page.html").exists()


def test_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(__import__("sys").modules, "vl_convert", None)
    module._vega.cache_clear()
    with pytest.raises(OptionError, match=r"fisopt\[compare\]"):
        write_page(Page("Nothing"), tmp_path / "page.html")
    module._vega.cache_clear()
