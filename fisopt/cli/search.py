"""``fisopt search``: measure candidate masks on a pipeline's own denoising, choose, check, draw."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

import fisopt
from fisopt.attention_map import frame_maps
from fisopt.cli.mask_pictures import kept_tiles, write_mask_pictures
from fisopt.cli.pictures import write_json
from fisopt.cli.sources import Source
from fisopt.errors import FileError, InputError, OptionError
from fisopt.files import check_free
from fisopt.passes.mask_table import MaskTable, as_json, from_json
from fisopt.passes.masks import FrameMask
from fisopt.passes.tile_attention import TileAttention
from fisopt.pipelines import modules_of, one_of
from fisopt.reading import MalformedError, read_json
from fisopt.recipe.identity import weights_digest
from fisopt.rewrite.program import Program
from fisopt.runtime.optimized import OptimizedModule
from fisopt.search import Calls, Measurements, default_candidates, joint_error


@dataclass(frozen=True)
class Settings:
    """What to search, on what, and how to choose.

    Attributes:
        source: the pipeline, and the size of the video.
        threshold: the largest error of a block; exclusive with ``target_ratio``.
        target_ratio: FLOPs of the dense model over those of the result.
        candidates: the masks to try; none for those of `default_candidates`.
        prompts: calibration prompts.
        steps: denoising steps; all are measured.
        guidance: classifier-free guidance; None for the pipeline's own.
        seed: of the first clip; each next clip adds one.
        component: of a pipeline with two transformers, the one to search for.
        out: folder of the table, the pictures and what is measured so far.
    """

    source: Source
    threshold: float | None
    target_ratio: float | None
    candidates: tuple[FrameMask, ...]
    prompts: tuple[str, ...]
    steps: int
    guidance: float | None
    seed: int
    component: str | None
    out: Path

    def measured_on(self) -> dict[str, Any]:
        """What the errors depend on, as JSON values."""
        held = asdict(self)
        for name in ("threshold", "target_ratio", "out", "source"):
            del held[name]
        source = self.source
        held |= {"model": source.model, "size": source.size}
        held |= {"device": source.device, "dtype": source.dtype}
        held["candidates"] = [as_json(mask) for mask in self.candidates]
        held["prompts"] = list(self.prompts)
        return held


class State:
    """What is measured so far, kept in a file, so that a search that was cut short goes on.

    Attributes:
        known: blocks, candidates, FLOPs and frames of the model, empty before the first call.
        errors: by prompt, [calls][blocks][candidates].
        maps: attention of frames to frames, by block path.
    """

    def __init__(self, settings: Settings, weights: str) -> None:
        self.path = settings.out / "search.json"
        self.key = json.loads(json.dumps({**settings.measured_on(), "weights": weights}))
        self.known: dict[str, Any] = {}
        self.errors: dict[str, list[list[list[float]]]] = {}
        self.maps: dict[str, list[list[float]]] = {}
        check_free(self.path, force=True, error=FileError)
        if not self.path.exists():
            return
        try:
            held = read_json(self.path)
        except ValueError as error:
            raise InputError(
                f"{self.path} is not complete: {error}; remove it to start anew"
            ) from error
        there = held.get("settings") if isinstance(held, dict) else None
        if not isinstance(there, dict):
            raise InputError(
                f"{self.path} is not what fisopt search keeps; give another --out, or remove it"
            )
        if other := [name for name in self.key if there.get(name) != self.key[name]]:
            raise InputError(
                f"{self.path} was measured with other {', '.join(other)}: "
                f"{ {name: there.get(name) for name in other} }; give another --out, or remove it"
            )
        if wrong := _damage(held, settings):
            raise InputError(f"{self.path} is damaged: {wrong}; remove it to start anew")
        self.known, self.errors, self.maps = held["known"], held["errors"], held["maps"]

    def save(self) -> None:
        """Write everything, whole or not at all."""
        names = ("known", "maps", "errors")
        write_json({"settings": self.key, **{n: getattr(self, n) for n in names}}, self.path)

    def note(self, calls: Calls, first: dict[str, Any]) -> None:
        """Keep what does not change from call to call; ``first`` is some call's arguments."""
        found = Measurements.of(calls)
        self.known = {
            "blocks": found.blocks,
            "candidates": [as_json(mask) for mask in found.candidates],
            "flops": found.flops,
            "total": found.total,
            "frames": calls.dense.layout.frames,
        }
        for path, share in frame_maps(calls.dense, first).items():
            self.maps[path] = [[round(x, 6) for x in row] for row in share.tolist()]

    def measurements(self) -> Measurements:
        """Everything that was measured."""
        return Measurements(
            tuple(self.known["blocks"]),
            tuple(cast("FrameMask", from_json(mask)) for mask in self.known["candidates"]),
            self.known["flops"],
            self.known["total"],
            [call for index in sorted(self.errors, key=int) for call in self.errors[index]],
        )


def _damage(held: dict[str, Any], settings: Settings) -> str:
    """What of a file of measurements is not as `State.save` writes it; empty if nothing is."""
    try:
        known, errors, maps = held["known"], held["errors"], held["maps"]
        blocks, candidates = known["blocks"], [from_json(mask) for mask in known["candidates"]]
        frames, sizes = known["frames"], [len(blocks), len(candidates)]
        wanted = {
            "blocks are names": all(isinstance(name, str) for name in blocks),
            "candidates are masks": None not in candidates,
            "flops are numbers [blocks][candidates + 1]": _sizes(known["flops"])
            == [sizes[0], sizes[1] + 1],
            "total is a number": known["total"] > 0,
            "frames are counted": type(frames) is int and frames > 0,
            "errors are of the prompts": errors.keys()
            <= set(map(str, range(len(settings.prompts)))),
            "errors are numbers [calls][blocks][candidates]": all(
                _sizes(calls) == [len(calls), *sizes] for calls in errors.values()
            ),
            "maps are of blocks, numbers [frames][frames]": maps.keys() <= set(blocks)
            and all(_sizes(rows) == [frames, frames] for rows in maps.values()),
        }
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        return f"{type(error).__name__}: {error}"
    return ", ".join(f"wanted that {said}" for said, so in wanted.items() if not so)


def _sizes(value: Any) -> list[int]:
    """Sizes of nested lists of finite numbers.

    Raises:
        MalformedError: they are none.
    """
    found = torch.tensor(value, dtype=torch.float64)
    if not found.isfinite().all():
        raise MalformedError("numbers are not finite")
    return list(found.shape)


class Runner:
    """A dense pipeline that shows the arguments of every forward call of a transformer."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.pipeline = settings.source.load()
        self.pipeline.set_progress_bar_config(disable=True)
        name = one_of(self.pipeline, settings.component)
        self.weights = weights_digest(modules_of(self.pipeline).values())
        fisopt.optimize(self.pipeline, {name: []}, backend="eager")
        self.module: OptimizedModule = getattr(self.pipeline, name)

    def run(
        self, index: int, see: Callable[[Program, dict[str, Any]], None], step: Callable[[], None]
    ) -> None:
        """Generate one clip; ``see`` gets every forward call, ``step`` is called at every step."""

        def seen(_: object, args: object, kwargs: dict[str, Any]) -> None:
            see(self.module.program(kwargs), kwargs)

        def advance(pipeline: object, i: int, time: object, tensors: dict[str, Any]) -> Any:
            step()
            return tensors

        given: dict[str, Any] = {"callback_on_step_end": advance}
        if given.keys() - inspect.signature(self.pipeline.__call__).parameters.keys():
            given.clear()
        if self.settings.guidance is not None:
            given["guidance_scale"] = self.settings.guidance
        hook = self.module.register_forward_pre_hook(seen, with_kwargs=True)
        try:
            arguments = self.settings.source.arguments(
                self.pipeline,
                prompt=self.settings.prompts[index],
                num_inference_steps=self.settings.steps,
                generator=torch.Generator().manual_seed(self.settings.seed + index),
                output_type="latent",
                **given,
            )
            self.pipeline(**arguments)
        finally:
            hook.remove()


def run(settings: Settings, out: Console, err: Console) -> MaskTable:
    """Measure, choose, check, print the table, write the files."""
    if (settings.threshold is None) == (settings.target_ratio is None):
        raise OptionError("give either --threshold or --target-ratio")
    for name, value, least in (
        ("threshold", settings.threshold, 0.0),
        ("target ratio", settings.target_ratio, 1.0),
    ):
        if value is not None and not value > least:
            raise OptionError(f"{name} must be more than {least:g}, got {value}")
    runner = Runner(settings)
    state = State(settings, runner.weights)
    with _progress(err) as progress:
        _measure(settings, runner, state, progress)
        found = state.measurements()
        if settings.threshold is not None:
            table = found.within(settings.threshold)
        else:
            table = found.for_ratio(cast("float", settings.target_ratio))
        joint = _check(settings, runner, table, progress)
    frames: int = state.known["frames"]
    figures = {
        "threshold": settings.threshold,
        "target_ratio": settings.target_ratio,
        "predicted_speed_up": found.ratio(table),
        "joint_error_mean": sum(joint) / len(joint),
        "joint_error_max": max(joint),
        "frames": frames,
        "torch": torch.__version__,
        "fisopt": fisopt.__version__,
        **settings.measured_on(),
    }
    table = MaskTable(table.masks, figures)
    out.print(_table(table, found, frames))
    out.print(
        Text(
            f"predicted speed-up {figures['predicted_speed_up']:.3f}x; all masks together move "
            f"the model's result by {figures['joint_error_mean']:.3f} on the mean, "
            f"{figures['joint_error_max']:.3f} at most"
        )
    )
    maps = {path: torch.tensor(rows) for path, rows in state.maps.items()}
    with err.status("writing pictures"):
        written = [table.save(settings.out / "masks.json")]
        written += write_mask_pictures(table, frames, maps, settings.out)
    for path in written:
        out.print(Text(f"wrote {path}"))
    return table


@contextmanager
def _progress(console: Console) -> Iterator[Progress]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("steps"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console) as progress:
        yield progress


def _measure(settings: Settings, runner: Runner, state: State, progress: Progress) -> None:
    """Measure every prompt that is not measured yet; each is saved when it is done."""
    made: dict[int, Calls] = {}
    errors: list[list[list[float]]] = []

    def see(program: Program, call: dict[str, Any]) -> None:
        if id(program) not in made:
            masks = settings.candidates or default_candidates(program.layout.frames)
            made[id(program)] = Calls.of(program, masks)
        calls = made[id(program)]
        if not state.known:
            state.note(calls, call)
        errors.append(calls.errors(call))

    task = progress.add_task("measuring masks", total=settings.steps * len(settings.prompts))
    for index in range(len(settings.prompts)):
        if str(index) in state.errors:
            progress.advance(task, settings.steps)
            continue
        runner.run(index, see, lambda: progress.advance(task))
        progress.update(task, completed=(index + 1) * settings.steps)
        state.errors[str(index)] = [*errors]
        errors.clear()
        state.save()


def _check(settings: Settings, runner: Runner, table: MaskTable, progress: Progress) -> list[float]:
    """The error of the whole model under a table, at every call."""
    made: dict[int, Program] = {}
    joint: list[float] = []

    def see(program: Program, call: dict[str, Any]) -> None:
        if id(program) not in made:
            made[id(program)] = TileAttention(table=table)(program).program
        joint.append(joint_error(program, made[id(program)], call))

    task = progress.add_task("checking them together", total=settings.steps * len(settings.prompts))
    for index in range(len(settings.prompts)):
        runner.run(index, see, lambda: progress.advance(task))
        progress.update(task, completed=(index + 1) * settings.steps)
    return joint


def _table(table: MaskTable, found: Measurements, frames: int) -> Table:
    worst = found.worst()
    view = Table(
        title="Masks by block; errors are the largest over the calls", title_justify="left"
    )
    view.add_column("block", style="cyan")
    view.add_column("mask")
    for header in ("density", "sparsity", "error"):
        view.add_column(header, justify="right")
    for candidate in found.candidates:
        view.add_column(candidate.label, justify="right", style="dim")
    for row, (path, mask) in enumerate(table.items()):
        density = float(kept_tiles(mask, frames).mean())
        error = 0.0 if mask is None else worst[row, found.candidates.index(mask)]
        view.add_row(
            path,
            "dense" if mask is None else str(mask),
            f"{density:.3f}",
            f"{1 - density:.3f}",
            f"{error:.3f}",
            *(f"{value:.3f}" for value in worst[row]),
        )
    return view
