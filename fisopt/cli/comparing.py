"""``fisopt compare``: what is compared, on which prompts, and the files that are written."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fisopt.checked import choice
from fisopt.cli.expressions import parse_passes
from fisopt.cli.sources import Source
from fisopt.comparison.configurations import RECIPES
from fisopt.comparison.fetched import clip_scorer, lpips
from fisopt.comparison.result import Comparison
from fisopt.comparison.scoring import Measure, Scorer
from fisopt.errors import InputError, OptionError, shown
from fisopt.files import write
from fisopt.page.data import DENSE
from fisopt.reading import MalformedError, read_text

MEASURES = {"lpips": ("LPIPS", lpips)}
BESIDE = " + "
"""Between passes of one configuration."""


def configurations(texts: Sequence[str], modules: Sequence[str] | None = None) -> dict[str, Any]:
    """Configurations by name: presets, passes with options, paths of recipes, "dense".

    Raises:
        OptionError: one is there twice, or names no pass.
    """
    found: dict[str, Any] = {}
    for text in texts:
        recipe = text.endswith(RECIPES)
        name = Path(text).stem if recipe else text
        if name in found:
            raise OptionError(f"--config: got {shown(name)} twice; give each once")
        if text == DENSE:
            found[name] = ()
        else:
            found[name] = text if recipe else parse_passes(text.split(BESIDE), modules)
    return found


def read_prompts(path: Path) -> list[str]:
    """The prompts of a file, one a line; empty lines and those that begin with # are none.

    Raises:
        InputError: it holds none, or cannot be read.
    """
    try:
        lines = [line.strip() for line in read_text(path).splitlines()]
    except (MalformedError, OSError) as error:
        raise InputError(f"--prompts: {path} cannot be read: {error}") from error
    found = [line for line in lines if line and not line.startswith("#")]
    if not found:
        raise InputError(f"--prompts: {path} holds no prompt; wanted one a line")
    return found


def texts_of(source: Source, given: Sequence[str] | None, file: Path | None) -> tuple[str, ...]:
    """The prompts to train with: the given ones and those of a file, or 64 that suit a pipeline."""
    texts = [*(given or ()), *(read_prompts(file) if file is not None else ())]
    return source.prompts(texts, None if texts else 64, seed=1)


def scorer_named(text: str | None) -> Scorer | None:
    """The scorer of ``clip`` or ``clip:MODEL``; None for the pipeline's own.

    Raises:
        OptionError: it is another, or cannot be had.
    """
    if text is None:
        return None
    kind, _, model = text.partition(":")
    if kind != "clip":
        raise OptionError(f"--scorer: got {shown(text)}, wanted clip or clip:MODEL")
    return clip_scorer(model) if model else clip_scorer()


def measures_named(texts: Sequence[str]) -> dict[str, Measure]:
    """The measures of some names.

    Raises:
        OptionError: one is another, or cannot be had.
    """
    for text in texts:
        choice("--measure", text, tuple(MEASURES))
    return {MEASURES[text][0]: MEASURES[text][1]() for text in texts}


def written(found: Comparison, page: Path, command: str) -> list[Path]:
    """Write the page and, beside it, the figures."""
    saved = found.save_page(page, command)
    return [saved, write(page.with_suffix(".json"), found.to_json() + "\n")]


def repeated(command: str, model: str, options: Mapping[str, Any]) -> str:
    """The command that does the same again: options by name, those that are None left out."""
    words = ["fisopt", command, *([model] if model else [])]
    for name, value in options.items():
        for each in value if isinstance(value, (list, tuple)) else [value]:
            words += [] if each is None else [f"--{name}", str(each)]
    return shlex.join(words)


def progress_of(progress: Any, task: Any) -> Callable[[int, int], None]:
    """What tells a bar of the steps that are done."""

    def seen(done: int, total: int) -> None:
        progress.update(task, completed=done, total=total)

    return seen
