"""`fisopt.compare`: the same prompts and noise under several configurations, in turns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from time import perf_counter
from typing import Any

import numpy as np
from torch import nn

from fisopt.checked import checked, choice, count
from fisopt.codegen.compile import BACKENDS, Backend
from fisopt.comparison import floors as noise
from fisopt.comparison.configurations import Configuration, Ready, named, ready
from fisopt.comparison.inside import choices_of, graph_of, predicted_ratio, stages_of
from fisopt.comparison.likeness import Likeness, likeness
from fisopt.comparison.making import Maker, Seen
from fisopt.comparison.result import Clip, Comparison, Row
from fisopt.comparison.scoring import Scorer, scored, scorer_of, to_bytes
from fisopt.errors import InputError, OptionTypeError, shown
from fisopt.page.data import DENSE, Film, Stage
from fisopt.page.environment import environment
from fisopt.pipelines import transformers_of
from fisopt.undo import restore

SAME = 40.0
"""Decibels between two clips of one configuration: less, and the noise was not the same."""


@checked
def compare(
    pipeline: Any,
    prompts: Sequence[str],
    configs: Sequence[Any] | Mapping[str, Configuration] = ("fis-balanced",),
    *,
    steps: int,
    seed: int = 0,
    backend: Backend = "inductor",
    arguments: Mapping[str, Any] | None = None,
    scorer: Scorer | None = None,
    floors: int = 2,
    films: int = 4,
    seen: Seen | None = None,
) -> Comparison:
    """Make the same clips dense and under some configurations, time and compare them.

    Every configuration makes one clip that is not counted, in which it is compiled.  Then each
    prompt is made by all of them in turn, so that other work on the machine meets all.

    Args:
        pipeline: a diffusers pipeline; it is left as it was.  If it is optimised, what was captured
            of it is used again, and what is captured now is kept for the next comparison.
        prompts: texts, a clip each; from two on there are intervals.
        configs: presets' names and paths of recipes, or configurations by name: passes, a
            `fisopt.Recipe`, or of another library a function that takes the pipeline and returns
            a context inside of which it runs that way.  Dense is always among them.
        steps: denoising steps.
        seed: of the noise of the first clip; each next prompt adds one.
        backend: who compiles, see `fisopt.optimize`; the dense model too.
        arguments: more arguments of every call of the pipeline, such as its size.
        scorer: says whether a clip shows what was asked: a function of a clip [frames, height,
            width, 3] in [0, 1] and its prompt that returns a number, or several by name.  The
            testbed has its own.
        floors: for so many prompts the dense clip is also made by another attention kernel and
            in a batch of two: what differs there is noise.  0 for none.
        films: so many prompts are kept to look at.
        seen: called with the steps that are done, and how many there are.

    Returns:
        Every figure, with `Comparison.save_page` for a page.

    Raises:
        InputError: there is no prompt; the pipeline takes no prompt, returns no clips, or draws
            noise that its generator does not give.
        OptionError, RecipeError, PassError: see `fisopt.optimize`.
    """
    wanted = named(configs)
    texts = _prompts(prompts)
    choice("backend", backend, BACKENDS)
    count("steps", steps)
    count("films", films, 0)
    floors = min(count("floors", floors, 0), len(texts))
    judge = scorer_of(pipeline, scorer)
    clips = len(wanted) * (len(texts) + 1) + floors * len(noise.FLOORS)
    tell: Seen = seen if seen is not None else lambda done, total: None
    maker = Maker(
        pipeline, texts, steps, count("seed", seed, 0), dict(arguments or {}), clips * steps, tell
    )
    with ExitStack() as stack:
        held = transformers_of(pipeline)
        for name, module in held.items():
            stack.callback(setattr, pipeline, name, module)
        restore(pipeline)
        run = Run(maker, judge, films)
        run.prepare(wanted, backend, held)
        for index in range(len(texts)):
            run.prompt(index, floors)
        return run.result(steps, seed)


class Run:
    """A comparison that is being made.

    Args:
        maker: makes the clips.
        scorer: reads them.
        films: so many prompts are kept to look at.
    """

    def __init__(self, maker: Maker, scorer: Scorer | None, films: int) -> None:
        self.maker, self.scorer, self.kept = maker, scorer, films
        self.ready: list[Ready] = []
        self.clips: dict[str, list[Clip]] = {}
        self.films: list[Film] = []
        self.predicted: dict[str, float | None] = {}
        self.seconds: dict[str, float] = {}
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
        since = perf_counter()
        with each.running(self.maker.pipeline):
            clip, seconds = self.maker.clip(index)
        self.predicted[each.name] = predicted_ratio(each, since)
        self.seconds[each.name] = seconds
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
        self.clips.setdefault(name, []).append(Clip(prompt, seconds, like, scores))
        if like is not None and like.flip is None:
            self.notes["FLIP was not computed: pip install 'fisopt[compare]'"] = None
        if index < self.kept and name not in noise.FLOORS:
            by_frame = () if like is None else like.by_frame
            words = ", ".join(f"{score} {value:.3g}" for score, value in scores.items())
            self.films.append(Film(prompt, name, to_bytes(clip), maps, by_frame, words))

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
        stages: list[Stage] = []
        for each in self.ready:
            dense = {stage.name: stage.measured for stage in stages if stage.configuration == DENSE}
            stages += stages_of(each, pipeline, self.seconds[each.name], dense)
        return Comparison(
            title=f"fisopt compare: {type(pipeline).__name__}",
            rows=tuple(rows),
            steps=steps,
            seed=seed,
            scores=tuple(rows[0].clips[0].scores),
            environment=environment(pipeline),
            notes=tuple(self.notes),
            films=tuple(self.films),
            choices=tuple(c for each in others for c in choices_of(each, steps)),
            stages=tuple(stages),
            graphs=tuple(graphs[:2]),
        )


def _prompts(given: object) -> list[str]:
    if not isinstance(given, (list, tuple)) or not all(isinstance(p, str) for p in given):
        raise OptionTypeError(f"prompts must be a list of texts, got {shown(given)}")
    if not given or not all(text.strip() for text in given):
        raise InputError("prompts: got none, or an empty one; wanted texts, one a clip")
    return list(given)


def _check_same(pipeline: Any, clip: np.ndarray, again: np.ndarray) -> None:
    """Insist on the same clip from the same noise."""
    error = float(np.square(clip - again).mean()) if clip.shape == again.shape else 1.0
    if error > 10 ** (-SAME / 10):
        scheduler = type(getattr(pipeline, "scheduler", None)).__name__
        raise InputError(
            f"two dense clips of one prompt and seed differ (mean square {error:.1e}): something "
            f"draws noise that the generator does not give, perhaps {scheduler}; nothing can be "
            "compared in pairs. Take a deterministic scheduler, or one that draws from `generator`"
        )
