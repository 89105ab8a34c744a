"""A service of one pipeline: warm-up, buckets of frames, concurrency, metrics, exchange of recipes.

    pip install 'fisopt[serve]'
    uvicorn service:app --app-dir examples/serve

`Service` knows nothing of HTTP; `app` is a thin layer of FastAPI over it.
"""

from __future__ import annotations

import asyncio
import copy
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import imageio.v3 as iio
import torch
from fastapi import FastAPI, HTTPException, Response
from fastapi.responses import PlainTextResponse
from pydantic import BaseModel, Field

import fisopt
from fisopt.errors import FileError, InputError, PreconditionError, RecipeError
from fisopt.models.testbed import load_testbed, parse_prompt

FPS = 8
log = logging.getLogger("fisopt.service")


class RefusedError(ValueError):
    """The request asks for what the service does not have; every other error is the service's."""


@contextmanager
def refusing(*about_the_request: type[Exception]) -> Iterator[None]:
    """Turn errors that only a request causes into `RefusedError`."""
    try:
        yield
    except about_the_request as error:
        raise RefusedError(str(error)) from error


class Request(BaseModel):
    """A clip to make."""

    prompt: str
    frames: int = Field(16, ge=1)
    seed: int = Field(0, ge=0, lt=2**64)


def bucket(request: Request, buckets: Sequence[int]) -> int:
    """The smallest warm frame count that holds a request, all of which is checked here.

    What a pipeline raises later may be its own fault. Put the checks of your pipeline's prompts
    in the place of the testbed's.

    Raises:
        RefusedError: no bucket is that large, or the testbed does not know words of the prompt.
    """
    with refusing(InputError):
        parse_prompt(request.prompt)
    for size in sorted(buckets):
        if request.frames <= size:
            return size
    raise RefusedError(f"{request.frames} frames are more than {max(buckets)}, the largest bucket")


class Service:
    """A pipeline that generates at a few frame counts.

    Args:
        pipe: the pipeline, on its device.
        passes: what it runs under at first.
        recipe: the same as a file, in the place of ``passes``.
        buckets: frame counts that are warm; a request is rounded up to one.
        steps: denoising steps.
        at_once: clips that are generated at the same time.
        backend: of `fisopt.optimize`.
    """

    def __init__(
        self,
        pipe: Any,
        passes: Sequence[Any] = ("few-balanced",),
        buckets: Sequence[int] = (8, 16),
        steps: int = 4,
        at_once: int = 1,
        backend: Any = "inductor",
        recipe: Path | None = None,
    ) -> None:
        self.buckets, self.steps, self.backend = sorted(buckets), steps, backend
        self.counts: Counter[str] = Counter()
        self.seconds = 0.0
        self._turns, self._reloading = asyncio.Semaphore(at_once), asyncio.Lock()
        self._parts, self._class = pipe.components, type(pipe)
        how = {"passes": list(passes)} if recipe is None else {"recipe": recipe}
        self.module = self._optimised(**how)

    def _optimised(self, **how: Any) -> Any:
        original = self._parts["transformer"]
        return fisopt.optimize(original, backend=self.backend, cache_size=64, **how)

    def _pipeline(self, module: Any) -> Any:
        """A pipeline around a transformer; the scheduler, which counts steps, is its own."""
        scheduler = copy.deepcopy(self._parts["scheduler"])
        made = self._class(**{**self._parts, "transformer": module, "scheduler": scheduler})
        made.set_progress_bar_config(disable=True)
        return made

    def warm_up(self, module: Any = None) -> None:
        """Generate once in every bucket, so that no request waits for a compiler."""
        for frames in self.buckets:
            self._run(module or self.module, "red circle moving left fast over waves", frames, 0)

    def make(self, request: Request) -> Any:
        """One clip [frames, height, width, 3] with values in [0, 1], in this thread.

        Raises:
            RefusedError: see `bucket`.
        """
        size = bucket(request, self.buckets)
        return self._run(self.module, request.prompt, size, request.seed)[: request.frames]

    async def generate(self, request: Request) -> Any:
        """The same, in a thread of its own and in its turn."""
        size = bucket(request, self.buckets)
        async with self._turns:
            began = time.perf_counter()
            # The pipeline runs in a thread: the event loop goes on answering.
            clip = await asyncio.to_thread(self.make, request)
            self.seconds += time.perf_counter() - began
        self.counts[f"frames_{size}"] += 1
        return clip

    def _run(self, module: Any, prompt: str, frames: int, seed: int) -> Any:
        noise = torch.Generator("cpu").manual_seed(seed)
        pipe = self._pipeline(module)
        given = {"num_inference_steps": self.steps, "num_frames": frames, "generator": noise}
        return pipe(prompt, **given).frames[0]

    async def reload(self, recipe: Path) -> None:
        """Exchange the recipe.

        Requests go on under the old one until the new one is warm; those that run end under it.
        Two exchanges happen one after the other, so that the newer recipe stays.

        Raises:
            RefusedError: the file is no recipe of this model, or its passes cannot run at a bucket.
        """
        async with self._reloading:
            with refusing(FileError, RecipeError):
                module = await asyncio.to_thread(self._optimised, recipe=recipe)
            with refusing(PreconditionError):
                await asyncio.to_thread(self.warm_up, module)
            self.module = module
            self.counts["reloads"] += 1

    def metrics(self) -> str:
        """Figures as Prometheus reads them."""
        report = self.module.report
        figures = {
            **{f'clips_total{{bucket="{n}"}}': self.counts[f"frames_{n}"] for n in self.buckets},
            "clip_seconds_total": round(self.seconds, 3),
            "reloads_total": self.counts["reloads"],
            "variants": len(report.variants),
            "recaptures_total": len(report.changes),
        }
        return "".join(f"fisopt_{name} {value}\n" for name, value in figures.items())


def video(clip: Any) -> bytes:
    """A clip as a file of MPEG-4."""
    pixels = (255 * clip).round().astype("uint8")
    made: bytes = iio.imwrite(
        "<bytes>", pixels, extension=".mp4", fps=FPS, codec="libx264", plugin="pyav"
    )
    return made


@dataclass
class State:
    """Whether the process can serve.

    Attributes:
        service: once it is loaded, compiled and warm.
        lost: why this process will never serve (again); a new one may.
    """

    service: Service | None = None
    lost: str = ""

    async def start(self, load: Callable[[], Service]) -> None:
        """Load and warm up in a thread: the event loop answers probes meanwhile."""

        def warm() -> Service:
            service = load()
            service.warm_up()
            return service

        try:
            self.service = await asyncio.to_thread(warm)
        except Exception:
            log.exception("the service did not start")
            self.lost = "the service did not start; its log says why"

    @property
    def wanting(self) -> str:
        """Why no clip can be made now; empty if one can."""
        return self.lost or ("" if self.service else "the pipeline is being loaded and warmed up")

    def ready(self) -> Service:
        if self.wanting or self.service is None:
            raise HTTPException(503, self.wanting, {"Retry-After": "10"})
        return self.service

    @contextmanager
    def answering(self, what: str) -> Iterator[None]:
        """422 for what the request caused, 500 and a line of the log for all else."""
        try:
            yield
        except RefusedError as error:
            raise HTTPException(422, str(error)) from error
        except Exception as error:
            log.exception("%s failed", what)
            if isinstance(error, torch.AcceleratorError):  # no kernel of this process runs again
                self.lost = "the GPU failed in this process; its log says how"
            raise HTTPException(500, f"{what} failed; the log of the service says why") from error


def application(load: Callable[[], Service]) -> FastAPI:
    """The service over HTTP, which answers probes while `load` and the warm-up run."""
    state = State()

    @asynccontextmanager
    async def life(_: FastAPI) -> AsyncIterator[None]:
        starting = asyncio.create_task(state.start(load))
        yield
        starting.cancel()

    made = FastAPI(title="fisopt", lifespan=life)

    @made.get("/livez")
    @made.get("/health")
    def alive() -> dict[str, bool]:
        """Restart the process if this fails; it does not while the pipeline warms up."""
        if state.lost:
            raise HTTPException(503, state.lost)
        return {"ready": not state.wanting}

    @made.get("/readyz")
    def ready() -> dict[str, bool]:
        """Send requests only while this succeeds."""
        state.ready()
        return {"ready": True}

    @made.get("/metrics", response_class=PlainTextResponse)
    def metrics() -> str:
        figures = state.service.metrics() if state.service else ""
        return f"{figures}fisopt_ready {int(not state.wanting)}\n"

    @made.post("/clips", response_class=Response)
    async def clips(request: Request) -> Response:
        service = state.ready()
        with state.answering(f"a clip of {request.frames} frames with seed {request.seed}"):
            clip = await service.generate(request)
            file = await asyncio.to_thread(video, clip)
        return Response(file, media_type="video/mp4")

    @made.post("/recipe")
    async def recipe(path: Path) -> dict[str, str]:
        service = state.ready()
        with state.answering(f"the exchange for {path}"):
            await service.reload(path)
        return {"recipe": str(path)}

    return made


def __getattr__(name: str) -> Any:
    """Make ``app`` when uvicorn asks for it, and not when a test imports `Service`."""
    if name != "app":
        raise AttributeError(name)
    return application(lambda: Service(load_testbed()))
