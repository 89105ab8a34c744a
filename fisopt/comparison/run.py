"""A comparison while it is being made: configurations, then prompt by prompt, then all together."""

from __future__ import annotations

from collections.abc import Mapping
from time import perf_counter
from typing import Any

import numpy as np
from torch import nn

from fisopt.codegen.compile import Backend
from fisopt.comparison import floors as noise
from fisopt.comparison.configurations import Ready, ready
from fisopt.comparison.inside import choices_of, graph_of, predicted_ratio, stages_of
from fisopt.comparison.likeness import Likeness, likeness
from fisopt.comparison.making import Maker
from fisopt.comparison.result import Clip, Comparison, Row
from fisopt.comparison.scoring import Measure, Scorer, measured, scored, to_bytes
from fisopt.errors import InputError
from fisopt.page.data import DENSE, Film, Stage
from fisopt.page.environment import environment
from fisopt.page.films import LARGEST, fitted

SAME = 40.0
"""Decibels between two clips of one configuration: less, and the noise was not the same."""


class Run:
    """A comparison that is being made.

    Args:
        maker: makes the clips.
        scorer: reads them.
        measures: compare them with the dense ones.
        films: so many prompts are kept to look at.
    """

    def __init__(
        self, maker: Maker, scorer: Scorer | None, measures: Mapping[str, Measure], films: int
    ) -> None:
        self.maker, self.scorer, self.measures, self.kept = maker, scorer, measures, films
        self.ready: list[Ready] = []
        self.clips: dict[str, list[Clip]] = {}
        self.films: list[Film] = []
        self.predicted: dict[str, float | None] = {}
        self.stages: dict[str, list[Stage]] = {}
        self.notes: dict[str, None] = {}
        self.first: np.ndarray | None = None

    def prepare(
        self, wanted: Mapping[str, Any], backend: Backend, base: Mapping[str, nn.Module]
    ) -> None:
        """Make every configuration and one clip with each, in which it is compiled."""
        pipeline = self.maker.pipeline
        for name, given in wanted.items():
            self.ready.append(ready(pipeline, name, given, backend, base))
            base = self.ready[0].modules
            with self.ready[-1].running(pipeline):
                clip, _ = self.maker.clip(0)
            if name == DENSE:
                self.first = clip

    def prompt(self, index: int, floors: int) -> None:
        """Make the clips of one prompt."""
        dense = self._dense(index)
        for each in self.ready[1:]:
            clip, seconds = self._timed(each, index)
            self._take(each.name, index, clip, seconds, dense)
        if index < floors:
            for name, made in noise.clips(self.maker, index, self.notes):
                self._take(name, index, made, None, dense)

    def _dense(self, index: int) -> np.ndarray:
        clip, seconds = self._timed(self.ready[0], index)
        if index == 0 and self.first is not None:
            _check_same(self.maker.pipeline, clip, self.first)
        self._take(DENSE, index, clip, seconds, None)
        return clip

    def _timed(self, each: Ready, index: int) -> tuple[np.ndarray, float]:
        pipeline, since = self.maker.pipeline, perf_counter()
        base = [] if each.name == DENSE else self.stages[DENSE]
        dense = {stage.name: stage.measured for stage in base}
        with each.running(pipeline):
            clip, seconds = self.maker.clip(index)
            self.stages[each.name] = stages_of(each, pipeline, seconds, dense)
        self.predicted[each.name] = predicted_ratio(each, since)
        return clip, seconds

    def _take(
        self,
        name: str,
        index: int,
        clip: np.ndarray,
        seconds: float | None,
        dense: np.ndarray | None,
    ) -> None:
        prompt = self.maker.prompts[index]
        found: tuple[Likeness | None, np.ndarray | None] = (None, None)
        if dense is not None:
            found = likeness(clip, dense)
        like, maps = found
        scores = scored(self.scorer, clip, prompt)
        if dense is not None:
            scores |= measured(self.measures, clip, dense)
        self.clips.setdefault(name, []).append(Clip(prompt, seconds, like, scores))
        if like is not None and like.flip is None:
            self.notes["FLIP was not computed: pip install 'fisopt[compare]'"] = None
        if index < self.kept and name not in noise.FLOORS:
            by_frame = () if like is None else like.by_frame
            words = ", ".join(f"{score} {value:.3g}" for score, value in scores.items())
            small = None if maps is None else fitted(maps, LARGEST)
            frames = fitted(to_bytes(clip), LARGEST)
            self.films.append(Film(prompt, name, frames, small, by_frame, words))

    def result(self, steps: int, seed: int) -> Comparison:
        """Everything together."""
        pipeline = self.maker.pipeline
        rows = [
            Row(each.name, tuple(self.clips[each.name]), self.predicted[each.name], *each.said)
            for each in self.ready
        ]
        floors = [name for name in noise.FLOORS if name in self.clips]
        rows += [Row(name, tuple(self.clips[name]), floor=True) for name in floors]
        others = self.ready[1:]
        graphs = [graph for each in others if (graph := graph_of(each, steps)) is not None]
        return Comparison(
            title=f"fisopt compare: {type(pipeline).__name__}",
            rows=tuple(rows),
            steps=steps,
            seed=seed,
            scores=tuple(dict.fromkeys(n for row in rows for n in row.clips[0].scores)),
            environment=environment(pipeline),
            notes=tuple(self.notes),
            films=tuple(self.films),
            choices=tuple(c for each in others for c in choices_of(each, steps)),
            stages=tuple(stage for each in self.ready for stage in self.stages[each.name]),
            graphs=tuple(graphs[:2]),
        )


def _check_same(pipeline: Any, clip: np.ndarray, again: np.ndarray) -> None:
    """Insist on the same clip from the same noise."""
    error = float(np.square(clip - again).mean()) if clip.shape == again.shape else 1.0
    if error > 10 ** (-SAME / 10):
        scheduler = type(getattr(pipeline, "scheduler", None)).__name__
        raise InputError(
            f"two dense clips of one prompt and seed differ (mean square {error:.1e}): something, "
            f"perhaps {scheduler}, draws noise from elsewhere than the generator, so nothing can "
            "be compared in pairs. Use a deterministic scheduler, or one that draws from "
            "`generator`"
        )
