"""`fisopt.compare`: the same prompts and noise under several configurations, in turns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

from fisopt.checked import checked, choice, count
from fisopt.codegen.compile import BACKENDS, Backend
from fisopt.comparison import floors as noise
from fisopt.comparison.configurations import Configuration, named
from fisopt.comparison.making import Maker, Seen
from fisopt.comparison.result import Comparison
from fisopt.comparison.run import Run
from fisopt.comparison.scoring import Measure, Scorer, measures_of, scorer_of
from fisopt.errors import InputError, OptionTypeError, shown
from fisopt.pipelines import transformers_of
from fisopt.undo import restore


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
    measures: Mapping[str, Measure] | None = None,
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
        measures: by name, functions of a clip and the dense one that return a number; shown
            beside the scores.
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
    judge, beside = scorer_of(pipeline, scorer), measures_of(measures)
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
        run = Run(maker, judge, beside, films)
        run.prepare(wanted, backend, held)
        if len(texts) == 1:
            run.notes["one prompt: there are no intervals, and one clip tells little"] = None
        for index in range(len(texts)):
            run.prompt(index, floors)
        return run.result(steps, seed)


def _prompts(given: object) -> list[str]:
    if not isinstance(given, (list, tuple)) or not all(isinstance(p, str) for p in given):
        raise OptionTypeError(f"prompts must be a list of texts, got {shown(given)}")
    if not given or not all(text.strip() for text in given):
        raise InputError("prompts: got none, or an empty one; wanted texts, one a clip")
    return list(given)
