"""Progress of measurements: kept whole, gone on with, and refused where it is another's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fisopt import FileError, InputError
from fisopt.tuning.mask_search import _damage
from fisopt.tuning.progress import Progress

ABOUT = {"candidates": [1, 2], "prompts": ["a", "b"], "weights": "w"}


def kept(**change: Any) -> dict[str, Any]:
    """A file of measurements of two blocks and two masks, one prompt done."""
    model = {"blocks": ["x", "y"], "candidates": [1, 2], "flops": [[1, 2, 3]] * 2, "total": 9}
    model |= {"frames": 3, "maps": {"x": [[0.5] * 3] * 3}}
    return {"about": ABOUT, "model": model, "prompts": {"0": [[[0.1, 0.2]] * 2] * 4}} | change


MODEL = kept()["model"]


@pytest.mark.parametrize(
    ("held", "message"),
    [
        *(([], "is not a progress file"), ({}, "is not a progress"), (3, "is not a progress")),
        *((None, "is not a progress"), ({"about": []}, "is not a progress")),
        (kept(about={}), "was measured with other candidates"),
        (kept(about=ABOUT | {"prompts": ["a", "c"]}), r"other prompts: .*\['a', 'c'\]"),
        (kept(about=ABOUT | {"more": 1}), "was measured with other more"),
        ({"about": ABOUT}, "is damaged: KeyError: 'model'"),
        *((kept(model={}), "is damaged: KeyError"), (kept(model=[]), "is damaged")),
        (kept(model=MODEL | {"blocks": ["x"]}), r"wanted that flops are numbers \[blocks"),
        (kept(model=MODEL | {"candidates": ["x", 2]}), "is damaged: OptionTypeError"),
        (kept(model=MODEL | {"total": None}), "is damaged"),
        (kept(model=MODEL | {"frames": 2}), "wanted that maps are of blocks"),
        (kept(prompts=[]), "is damaged"),
        (kept(prompts={"7": []}), "is damaged: wanted prompts of this run"),
        (kept(prompts={"0": [[[0.1]] * 2]}), r"wanted that errors are numbers \[calls\]"),
        (kept(prompts={"0": [[[0.1, None]] * 2]}), "is damaged"),
        (kept(prompts={"0": [[[0.1, "x"]] * 2]}), "is damaged"),
        (kept(prompts={"0": [[[0.1, 0.2], [0.1]]]}), "is damaged"),
        (kept(model=MODEL | {"maps": {"z": [[1.0] * 3] * 3}}), "wanted that maps are of blocks"),
    ],
)
def test_what_is_damaged_or_foreign_is_refused(held: Any, message: str, tmp_path: Path) -> None:
    (tmp_path / "p.json").write_text(json.dumps(held))
    with pytest.raises(InputError, match=rf"p\.json .*{message}"):
        Progress(tmp_path / "p.json", ABOUT, _damage)


@pytest.mark.parametrize("text", ["", '{"about": {', "x" * 99, "[" * 9999])
def test_what_is_not_complete_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "p.json").write_text(text)
    with pytest.raises(InputError, match=r"p\.json is not complete"):
        Progress(tmp_path / "p.json", ABOUT, _damage)


def test_goes_on_with_the_same_weights_only(tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    path.write_text(json.dumps(kept()))
    assert list(Progress(path, ABOUT, _damage).prompts) == ["0"]
    with pytest.raises(InputError, match="was measured with other weights"):
        Progress(path, ABOUT | {"weights": "of another"}, _damage)
    path.unlink()
    path.mkdir()
    with pytest.raises(FileError, match="is a folder and a file would be written"):
        Progress(path, ABOUT, _damage)


def test_keeps_prompt_after_prompt(tmp_path: Path) -> None:
    path, errors = tmp_path / "p.json", kept()["prompts"]["0"]
    first = Progress(path, ABOUT, _damage)
    assert 1 not in first
    first.model = dict(MODEL)
    first.keep(1, errors)
    again = Progress(path, ABOUT, _damage)
    assert 1 in again
    assert 0 not in again
    again.keep(0, errors[:2])
    assert Progress(path, ABOUT, _damage).in_order() == [errors[:2], errors]
    with pytest.raises(InputError, match="prompt 0: what was measured is not finite"):
        again.keep(0, [float("nan")])
    assert Progress(path, ABOUT, _damage).in_order() == [errors[:2], errors]


def test_without_a_path_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    progress = Progress(None, ABOUT, _damage)
    progress.keep(0, [])
    assert 0 in progress
    assert not list(tmp_path.iterdir())
