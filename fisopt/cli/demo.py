"""``fisopt demo``: the testbed's clips dense and optimised, timed, compared and drawn."""

from __future__ import annotations

import math
import statistics
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from diffusers.utils.logging import disable_progress_bar
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fisopt.cli.catalog import short
from fisopt.cli.comparing import progress_of, repeated
from fisopt.cli.console import bars
from fisopt.cli.pictures import Caption, Pair, write_json, write_pictures
from fisopt.cli.stages import stages
from fisopt.codegen.compile import BACKENDS, Backend, has_compiler
from fisopt.comparison.compare import compare
from fisopt.comparison.likeness import MOST, Likeness
from fisopt.comparison.result import Comparison, Row
from fisopt.comparison.scoring import check
from fisopt.counted import counted
from fisopt.errors import FileError, OptionError
from fisopt.files import check_free
from fisopt.models import testbed
from fisopt.nearest import did_you_mean
from fisopt.page.data import DENSE
from fisopt.page.write import NEEDS, has_packages
from fisopt.rewrite.pass_base import Pass
from fisopt.tuning.quality import Similarity, mean_psnr

PROMPTS = (
    "red circle moving left fast over waves",
    "green square moving right slow over plain",
    "blue triangle moving up fast over stripes",
    "yellow circle moving down slow over checks",
    "magenta square moving left slow over clouds",
    "cyan triangle moving right fast over waves",
)
PASS = "few-balanced"
OURS = "optimised"
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


def check_settings(settings: Settings) -> None:
    """Refuse what can be seen to be wrong before anything runs.

    Raises:
        FileError: the files cannot be written.
        InputError: a prompt has a word that the testbed does not know.
    """
    check_free(settings.out / "demo.json", force=True, error=FileError)
    for prompt in settings.prompts:
        testbed.parse_prompt(prompt)


def run(settings: Settings, out: Console, err: Console, *, writes: bool = True) -> list[Clip]:
    """Generate, print the table, write the files.

    Args:
        settings: what to generate.
        out: takes the tables.
        err: takes progress.
        writes: whether to write the files.

    Returns:
        The optimised clips.
    """
    check_settings(settings)
    if settings.backend == "eager" and not has_compiler():
        err.print(
            "no C++ compiler with Python's headers was found: neither model is compiled",
            style="yellow",
        )
    found, read = _compared(settings, err)
    dense, clips = (_clips(found.row(name), read[name]) for name in (DENSE, OURS))
    similar = [_similar(clip.likeness) for clip in found.row(OURS).clips]
    figures = _figures(settings, dense, clips, similar, found.row(OURS).predicted)
    out.print(_clip_table(settings, dense, clips, similar))
    out.print()
    out.print(_summary(figures))
    if doubt := doubtful(figures):
        out.print(Text(doubt, style="yellow"), soft_wrap=True)
    out.print(Text(found.row(OURS).report, style="dim"), soft_wrap=True)
    if not writes:
        return clips
    with stages("writing pictures", err):
        written = _pictures(settings, dense, clips, figures["speed_up"])
        written.append(write_json(figures, settings.out / "demo.json"))
        written += _page(settings, found, err)
    for path in written:
        out.print(Text(f"wrote {path}"))
    return clips


Read = dict[str, list[tuple[np.ndarray, testbed.Check]]]
"""Every clip and what the checker read of it, by configuration."""


def _compared(settings: Settings, err: Console) -> tuple[Comparison, Read]:
    """Generate every clip with both, in turns, so that other work on the machine hits both."""
    disable_progress_bar()
    pipeline = cast("Any", testbed.load_testbed(settings.weights))
    pipeline.set_progress_bar_config(disable=True)
    read: Read = {DENSE: [], OURS: []}

    def score(clip: np.ndarray, prompt: str) -> dict[str, float]:
        mine = read[DENSE] if len(read[DENSE]) == len(read[OURS]) else read[OURS]
        mine.append((clip, testbed.check_clip(clip, prompt)))
        return check(clip, prompt)

    doing = "compile and warm up" if settings.backend == "inductor" else "capture and warm up"
    with bars(err) as progress:
        task = progress.add_task(f"{doing}, then {len(settings.prompts)} clips", total=None)
        found = compare(
            pipeline,
            settings.prompts,
            {OURS: settings.passes},
            steps=settings.steps,
            seed=settings.seed,
            backend=settings.backend,
            arguments={"guidance_scale": settings.guidance},
            scorer=score,
            floors=0,
            films=len(settings.prompts),
            seen=progress_of(progress, task),
        )
    return found, read


def _clips(row: Row, read: list[tuple[np.ndarray, testbed.Check]]) -> list[Clip]:
    seconds = row.values("seconds")
    return [Clip(clip, took, said) for took, (clip, said) in zip(seconds, read, strict=True)]


def _similar(found: Likeness | None) -> Similarity:
    assert found is not None
    return Similarity(math.inf if found.psnr >= MOST else found.psnr, found.ssim)


def _pictures(
    settings: Settings, dense: list[Clip], clips: list[Clip], speed_up: float
) -> list[Path]:
    pairs = [
        Pair(prompt, a.frames, b.frames, a.check.right, b.check.right)
        for prompt, a, b in zip(settings.prompts, dense, clips, strict=True)
    ]
    caption = Caption(_said(settings), f"{speed_up:.2f}x")
    return write_pictures(pairs, settings.out, caption)


def _said(settings: Settings) -> str:
    """What was run, in a line."""
    passes = ", ".join(short(each) for each in settings.passes) or "no passes"
    return f"{passes}; {counted(settings.steps, 'step')}"


def _page(settings: Settings, found: Comparison, err: Console) -> list[Path]:
    """The page, where the packages are there that it needs."""
    passes = [short(each) for each in settings.passes]
    options = {
        "prompt": settings.prompts,
        "steps": settings.steps,
        "pass": passes,
        "backend": settings.backend,
        "seed": settings.seed,
        "guidance": settings.guidance,
        "out": settings.out,
        "weights": settings.weights,
    }
    if not has_packages():
        err.print(Text(NEEDS, style="yellow"), soft_wrap=True)
        return []
    return [found.save_page(settings.out / "demo.html", repeated("demo", "", options))]


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
    title = f"{_said(settings)}\nClips: seconds, and what of 3 the checker finds right"
    table = Table(title=Text(title), title_justify="left")
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
        f"{', '.join(figures['passes'])}\n{counted(len(figures['prompts']), 'clip')}, "
        f"{counted(figures['steps'], 'step')}, CPU with {counted(figures['threads'], 'thread')}, "
        f"{compiled}"
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
    predicted = f"{figures['predicted_speed_up']:.2f}x"
    table.add_row("speed-up predicted from FLOPs", "", predicted)
    table.add_row("PSNR against the dense clip", "", f"{figures['psnr']:.1f} dB")
    table.add_row("SSIM against the dense clip", "", f"{figures['ssim']:.3f}")
    for name in ATTRIBUTES:
        table.add_row(f"{name} as asked", f"{dense[name]:.0%}", f"{ours[name]:.0%}")
    table.add_row("all three as asked", f"{dense['right']:.0%}", f"{ours['right']:.0%}")
    return table
