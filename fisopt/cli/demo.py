"""``fisopt demo``: the testbed's clips dense and optimised, timed, compared and drawn."""

from __future__ import annotations

import statistics
import time
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from diffusers.utils.logging import disable_progress_bar
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

import fisopt
from fisopt.cli.catalog import short
from fisopt.cli.console import bars
from fisopt.cli.pictures import Pair, write_json, write_pictures
from fisopt.cli.schedule import plan_steps
from fisopt.codegen.compile import BACKENDS, Backend, has_compiler
from fisopt.errors import FileError, OptionError
from fisopt.files import check_free
from fisopt.models import testbed
from fisopt.nearest import did_you_mean
from fisopt.rewrite.pass_base import Pass
from fisopt.rewrite.tracing.inputs import bind_example
from fisopt.rewrite.variants import Variants
from fisopt.runtime.optimized import OptimizedModule
from fisopt.tuning.quality import Similarity, compare, mean_psnr

PROMPTS = (
    "red circle moving left fast over waves",
    "green square moving right slow over plain",
    "blue triangle moving up fast over stripes",
    "yellow circle moving down slow over checks",
    "magenta square moving left slow over clouds",
    "cyan triangle moving right fast over waves",
)
PASS = "fis-balanced"
STEADY = 1.3
"""Times of clips that cost the same differ by no more on a quiet machine."""
ATTRIBUTES = ("colour", "shape", "direction")


@dataclass(frozen=True)
class Settings:
    """What to generate and how."""

    prompts: tuple[str, ...]
    steps: int
    passes: tuple[Pass, ...]
    backend: Backend
    seed: int
    guidance: float
    out: Path
    weights: Path | None = None


@dataclass(frozen=True)
class Clip:
    """One generated clip.

    Attributes:
        frames: [frames, height, width, 3], values in [0, 1].
        seconds: what generating it took, text encoding and decoding included.
        check: what the checker read.
    """

    frames: np.ndarray
    seconds: float
    check: testbed.Check


class Runner:
    """One pipeline with one set of passes, and the inputs of its forward calls."""

    def __init__(self, settings: Settings, passes: tuple[Pass, ...]) -> None:
        self.settings = settings
        disable_progress_bar()
        self.pipeline = cast("Any", testbed.load_testbed(settings.weights))
        self.pipeline.set_progress_bar_config(disable=True)
        fisopt.optimize(self.pipeline, passes=passes, backend=settings.backend)
        self.module: OptimizedModule = self.pipeline.transformer
        self.inputs: dict[str, Any] = {}
        self.module.register_forward_pre_hook(self._record, with_kwargs=True)

    def _record(self, module: object, args: object, kwargs: dict[str, Any]) -> None:
        self.inputs = kwargs

    def generate(self, prompt: str, seed: int, progress: Progress, task: Any) -> Clip:
        """Generate one clip, advancing a progress task by one at every step."""

        def advance(pipeline: object, step: int, time_: object, tensors: dict[str, Any]) -> Any:
            progress.advance(task)
            return tensors

        start = time.perf_counter()
        frames = self.pipeline(
            prompt,
            num_inference_steps=self.settings.steps,
            guidance_scale=self.settings.guidance,
            generator=torch.Generator().manual_seed(seed),
            callback_on_step_end=advance,
        ).frames[0]
        seconds = time.perf_counter() - start
        return Clip(frames, seconds, testbed.check_clip(frames, prompt))


def choose_backend(name: str | None) -> Backend:
    """Return the backend of a name; without one, inductor where it can work.

    Raises:
        OptionError: the name is not a backend's.
    """
    if name is None:
        return "inductor" if torch.cuda.is_available() or has_compiler() else "eager"
    for backend in BACKENDS:
        if name == backend:
            return backend
    raise OptionError(
        f"unknown backend {name!r}; {did_you_mean(name, BACKENDS)}"
        f"Backends are {', '.join(BACKENDS)}"
    )


def run(settings: Settings, out: Console, err: Console) -> None:
    """Generate, print the table, write the files."""
    check_free(settings.out / "demo.json", force=True, error=FileError)
    for prompt in settings.prompts:
        testbed.parse_prompt(prompt)
    if settings.backend == "eager" and not has_compiler():
        err.print(
            "no C++ compiler with Python's headers was found: neither model is compiled",
            style="yellow",
        )
    with bars(err) as progress:
        dense = _warm_up("dense", settings, (), progress)
        optimised = _warm_up("optimised", settings, settings.passes, progress)
        dense_clips, clips = _generate(settings, dense, optimised, progress)
    similar = [compare(a.frames, b.frames) for a, b in zip(clips, dense_clips, strict=True)]
    predicted = _predicted(settings, optimised)
    figures = _figures(settings, dense_clips, clips, similar, predicted)
    out.print(_clip_table(settings, dense_clips, clips, similar))
    out.print()
    out.print(_summary(figures))
    if doubt := doubtful(figures):
        out.print(Text(doubt, style="yellow"), soft_wrap=True)
    out.print(Text(str(optimised.module.report), style="dim"), soft_wrap=True)
    pairs = [
        Pair(prompt, a.frames, b.frames, a.check.right, b.check.right)
        for prompt, a, b in zip(settings.prompts, dense_clips, clips, strict=True)
    ]
    with err.status("writing pictures"):
        caption = f"{figures['speed_up']:.2f}x"
        written = write_pictures(pairs, settings.out, caption)
        written.append(write_json(figures, settings.out / "demo.json"))
    for path in written:
        out.print(Text(f"wrote {path}"))


def _warm_up(what: str, settings: Settings, passes: tuple[Pass, ...], progress: Progress) -> Runner:
    """Make a pipeline and generate one untimed clip with it."""
    doing = "compile and warm up" if settings.backend == "inductor" else "capture and warm up"
    task = progress.add_task(f"{what}: {doing}", total=settings.steps)
    runner = Runner(settings, passes)
    runner.generate(settings.prompts[0], settings.seed, progress, task)
    return runner


def _generate(
    settings: Settings, dense: Runner, optimised: Runner, progress: Progress
) -> tuple[list[Clip], list[Clip]]:
    """Generate every clip with both, in turns, so that other work on the machine hits both."""
    total = 2 * settings.steps * len(settings.prompts)
    task = progress.add_task(f"{len(settings.prompts)} clips with each", total=total)
    pairs = [
        [
            runner.generate(prompt, settings.seed + i, progress, task)
            for runner in (dense, optimised)
        ]
        for i, prompt in enumerate(settings.prompts)
    ]
    return [pair[0] for pair in pairs], [pair[1] for pair in pairs]


def _predicted(settings: Settings, optimised: Runner) -> float | None:
    """The cost model's speed-up over all steps of a generation, None where the run decides."""
    module = optimised.module
    inputs = bind_example(module.original, optimised.inputs)
    variants = Variants.of(settings.passes, settings.steps)
    return plan_steps(variants, settings.steps, partial(module.rewritten, inputs)).ratio


def _figures(
    settings: Settings,
    dense: list[Clip],
    clips: list[Clip],
    similar: list[Similarity],
    predicted: float | None,
) -> dict[str, Any]:
    before, after = (statistics.median(c.seconds for c in made) for made in (dense, clips))
    ratios = [a.seconds / b.seconds for a, b in zip(dense, clips, strict=True)]

    def score(made: list[Clip]) -> dict[str, float]:
        names = (*ATTRIBUTES, "right")
        return {n: sum(getattr(c.check, n) for c in made) / len(made) for n in names}

    return {
        "model": "testbed",
        "device": "cpu",
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "backend": settings.backend,
        "steps": settings.steps,
        "guidance": settings.guidance,
        "seed": settings.seed,
        "passes": [short(p) for p in settings.passes],
        "prompts": list(settings.prompts),
        "seconds_dense": before,
        "seconds_optimised": after,
        "speed_up": statistics.median(ratios),
        "predicted_speed_up": predicted,
        "psnr": mean_psnr(s.psnr for s in similar),
        "ssim": statistics.fmean(s.ssim for s in similar),
        "score_dense": score(dense),
        "score_optimised": score(clips),
        "clips": [
            {
                "prompt": prompt,
                "seconds_dense": a.seconds,
                "seconds_optimised": b.seconds,
                "read_dense": asdict(a.check.reading),
                "read_optimised": asdict(b.check.reading),
                **asdict(s),
            }
            for prompt, a, b, s in zip(settings.prompts, dense, clips, similar, strict=True)
        ],
    }


def _clip_table(
    settings: Settings, dense: list[Clip], clips: list[Clip], similar: list[Similarity]
) -> Table:
    table = Table(
        title="Clips: seconds, and what of 3 the checker finds right", title_justify="left"
    )
    table.add_column("prompt")
    for header in ("dense", "ours", "PSNR", "SSIM", "dense", "ours"):
        table.add_column(header, justify="right", no_wrap=True)
    for prompt, a, b, s in zip(settings.prompts, dense, clips, similar, strict=True):
        table.add_row(
            prompt,
            f"{a.seconds:.2f}",
            f"{b.seconds:.2f}",
            f"{s.psnr:.1f}",
            f"{s.ssim:.3f}",
            _right(a.check),
            _right(b.check),
        )
    return table


def _right(check: testbed.Check) -> Text:
    count = sum(getattr(check, name) for name in ATTRIBUTES)
    return Text(str(count), style="green" if check.right else "red")


def doubtful(figures: dict[str, Any]) -> str | None:
    """Why the measured speed-up says little, None if nothing speaks against it.

    All clips cost the same, so that times which differ tell of other work on the machine.
    """
    for name in ("dense", "optimised"):
        seconds = [clip[f"seconds_{name}"] for clip in figures["clips"]]
        if max(seconds) > STEADY * min(seconds):
            return (
                f"{name} clips took {min(seconds):.2f} to {max(seconds):.2f} s though all cost the "
                "same: the machine was busy, so the measured speed-up says little; run it again"
            )
    return None


def _summary(figures: dict[str, Any]) -> Table:
    compiled = "both compiled" if figures["backend"] == "inductor" else "neither compiled"
    title = (
        f"{', '.join(figures['passes'])}\n{len(figures['prompts'])} clips, {figures['steps']} "
        f"steps, CPU with {figures['threads']} threads, {compiled}"
    )
    table = Table(title=title, title_justify="left", header_style="bold")
    table.add_column("")
    for header in ("dense", "optimised"):
        table.add_column(header, justify="right")
    dense, ours = figures["score_dense"], figures["score_optimised"]
    table.add_row(
        "latency of a clip, median",
        f"{figures['seconds_dense']:.2f} s",
        f"{figures['seconds_optimised']:.2f} s",
    )
    table.add_row(
        "speed-up, median over the clips",
        "",
        Text(f"{figures['speed_up']:.2f}x", style="bold green"),
    )
    predicted = figures["predicted_speed_up"]
    told = "decided in the run" if predicted is None else f"{predicted:.2f}x"
    table.add_row("speed-up predicted from FLOPs", "", told)
    table.add_row("PSNR against the dense clip", "", f"{figures['psnr']:.1f} dB")
    table.add_row("SSIM against the dense clip", "", f"{figures['ssim']:.3f}")
    for name in ATTRIBUTES:
        table.add_row(f"{name} as asked", f"{dense[name]:.0%}", f"{ours[name]:.0%}")
    table.add_row("all three as asked", f"{dense['right']:.0%}", f"{ours['right']:.0%}")
    return table
