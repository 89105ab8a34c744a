"""Runs that take long, killed again and again: they go on, and end as one that was not killed."""

from __future__ import annotations

import io
import random
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from safetensors.torch import load_file

from fisopt.cli.commands import calibrate, search
from fisopt.cli.sources import Source
from fisopt.runtime import captures
from tests.conftest import captured
from tests.crash.kill import Death, run
from tests.tiny_pipeline import Pipeline

PROMPTS, STEPS = ("one", "two", "three"), 2


@dataclass(frozen=True)
class Job:
    """A command that keeps its progress.

    Attributes:
        name: of what it keeps.
        work: runs the command to its end, into a folder.
        result: everything in the folder at the end, by name.
    """

    name: str
    work: Callable[[Path], None]
    result: Callable[[Path], dict[str, Any]]


@contextmanager
def tiny() -> Iterator[None]:
    """The commands load the tiny pipeline, whose model is captured already."""
    program = captured("wan")
    with (
        mock.patch.object(captures, "capture", return_value=program),
        mock.patch.object(Source, "load", return_value=Pipeline()),
        redirect_stdout(io.StringIO()),
        redirect_stderr(io.StringIO()),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        yield


def calibration(folder: Path) -> None:
    """``fisopt calibrate``."""
    with tiny():
        calibrate.run(
            "some",
            texts_=list(PROMPTS),
            steps=STEPS,
            target_ratio=0.7,
            stride="2,1,2",
            seed=3,
            out=folder / "s.yaml",
        )


def searching(folder: Path) -> None:
    """``fisopt search``."""
    with tiny():
        search.run(
            "some",
            threshold=0.5,
            candidates=["1", "2"],
            texts_=list(PROMPTS),
            steps=STEPS,
            seed=3,
            out=folder,
        )


def contents(folder: Path) -> dict[str, Any]:
    """What the files of a folder hold."""
    found: dict[str, Any] = {}
    for file in sorted(folder.iterdir()):
        if file.suffix == ".safetensors":
            found[file.name] = {name: x.tolist() for name, x in load_file(file).items()}
        else:
            found[file.name] = file.read_bytes()
    return found


JOBS = (Job("calibrate", calibration, contents), Job("search", searching, contents))


def again_and_again(
    job: Job, folder: Path, seed: int, least: int, seen: Callable[[], None] = lambda: None
) -> dict[str, Any]:
    """Kill a job at random times until it was killed often enough and a run is whole.

    Args:
        job: the job.
        folder: an empty one.
        seed: of the times.
        least: how many kills.
        seen: called after each kill.

    Returns:
        Counts of kills, of runs that went to the end, and what was wrong with them.
    """
    chance, wrong = random.Random(f"{job.name} {seed}"), []
    start = time.perf_counter()
    (folder / "whole").mkdir(parents=True)
    wrong += [end for end in [run(lambda: job.work(folder / "whole"))] if end != "done"]
    seconds, wanted = time.perf_counter() - start, job.result(folder / "whole")
    kills, whole = 0, 0
    while kills < least and not wrong:
        there = folder / str(whole)
        there.mkdir()
        patience = 1.0  # what is not whole after some kills is given more time each time
        while True:
            death = Death(seconds=chance.random() * seconds * patience)
            end = run(lambda: job.work(there), death)  # noqa: B023
            if end != "killed":
                break
            kills, patience = kills + 1, 1.2 * patience
            seen()
        whole += 1
        if end != "done":
            wrong.append(end)
        elif job.result(there) != wanted:
            other = [n for n, x in job.result(there).items() if x != wanted.get(n)]
            wrong.append(f"another result: {', '.join(other) or 'fewer files'}")
    return {"kills": kills, "runs": whole, "wrong": wrong}
