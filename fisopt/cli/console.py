"""Where the command line writes: tables on stdout, progress and errors on stderr."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

from fisopt.cli.options import Traceback
from fisopt.cli.stages import told
from fisopt.errors import FisoptError

BAD_INPUT = 2


def stdout() -> Console:
    """Return a console for results."""
    return Console(highlight=False, markup=False)


def stderr() -> Console:
    """Return a console for progress and errors."""
    return Console(stderr=True, highlight=False, markup=False)


@contextmanager
def bars(console: Console, of: str = "steps") -> Iterator[Progress]:
    """Progress bars that count denoising steps, or something else."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(of),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console) as progress, told(progress):
        yield progress


@contextmanager
def steps_bar(doing: str, total: int) -> Iterator[Callable[[int], None]]:
    """One bar on stderr; what is yielded takes the number of steps that are done."""
    with bars(stderr()) as progress:
        task = progress.add_task(doing, total=total)
        yield lambda done: progress.update(task, completed=done)


@contextmanager
def counting_bar(doing: str) -> Iterator[Callable[[int], None]]:
    """A count on stderr of what has no known end; what is yielded takes it."""
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed} done"))
    with Progress(*columns, TimeElapsedColumn(), console=stderr()) as progress, told(progress):
        task = progress.add_task(doing, total=None)
        yield lambda done: progress.update(task, completed=done)


@contextmanager
def errors(traceback: bool) -> Iterator[None]:
    """Print what fisopt refuses as one red message and exit with code 2.

    Args:
        traceback: show the whole traceback instead.
    """
    with warnings.catch_warnings():
        if not traceback:
            warnings.simplefilter("ignore")
        try:
            yield
        except (FisoptError, ValueError, OSError) as error:
            if traceback:
                raise
            stderr().print(Text(f"error: {error}", style="red"), soft_wrap=True)
            raise typer.Exit(BAD_INPUT) from error


def guarded(run: Callable[..., None]) -> Callable[..., None]:
    """A command under `errors`, with one more option: ``--traceback``."""

    def command(*, traceback: bool, **given: Any) -> None:
        with errors(traceback):
            run(**given)

    options = list(inspect.signature(run, eval_str=True).parameters.values())
    more = inspect.Parameter(
        "traceback", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=Traceback
    )
    signature = inspect.Signature([*options, more], return_annotation=None)
    command.__signature__ = signature  # type: ignore[attr-defined]
    command.__annotations__ = {o.name: o.annotation for o in signature.parameters.values()}
    return command
