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
    """Generate the same clips with the dense model and each configuration; time and compare them.

    Every configuration first generates one clip for warm-up and compilation, which is not timed.
    Then all configurations generate each prompt in turn, so that other load on the machine affects
    all of them alike.

    Args:
        pipeline: a diffusers pipeline; `compare` leaves it as it was. If it is optimised, `compare`
            reuses its captured Programs and keeps new ones for the next comparison.
        prompts: texts, a clip each; with two or more the result has confidence intervals.
        configs: names of presets and paths of recipes, or configurations by name: passes, a
            `fisopt.Recipe`, or, for another library, a function that takes the pipeline and returns
            a context manager inside which the pipeline runs that way. `compare` always adds the
            dense model.
        steps: denoising steps.
        seed: seed of the first clip's noise; each next prompt adds one.
        backend: see `fisopt.optimize`; the dense model uses it too.
        arguments: more arguments of every call of the pipeline, such as its size.
        scorer: a function that measures whether a clip shows its prompt. It takes a clip [frames,
            height, width, 3] in [0, 1] and the prompt, and returns a number or several by name. The
            testbed has its own.
        measures: by name, functions that take a clip and the dense clip and return a number; the
            page shows them next to the scores.
        floors: for this many prompts the dense model also generates the clip with another attention
            kernel and in a batch of two. The difference is the noise floor. 0 skips this.
        films: for this many prompts the page shows the clips.
        seen: called with the number of steps done and the total.

    Returns:
        Every figure; `Comparison.save_page` writes them as a page.

    Raises:
        InputError: there is no prompt; the pipeline takes no prompt, returns no clips, or draws
            noise from elsewhere than its generator.
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
            run.notes["one prompt: there are no intervals, and one clip says little"] = None
        for index in range(len(texts)):
            run.prompt(index, floors)
        return run.result(steps, seed)


def _prompts(given: object) -> list[str]:
    if not isinstance(given, (list, tuple)) or not all(isinstance(p, str) for p in given):
        raise OptionTypeError(f"prompts must be a list of texts, got {shown(given)}")
    if not given or not all(text.strip() for text in given):
        raise InputError("prompts: got none, or an empty one; wanted texts, one a clip")
    return list(given)
