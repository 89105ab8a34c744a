"""A service of one pipeline: warm-up, buckets of frames, concurrency, metrics, exchange of recipes.

    pip install 'fisopt[serve]'
    uvicorn service:app --app-dir examples/serve

`Service` knows nothing of HTTP; `app` is a thin layer of FastAPI over it.
"""

from __future__ import annotations

import asyncio
import copy
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import imageio.v3 as iio
import torch
from fastapi import FastAPI, HTTPException, Response
from fastapi.responses import PlainTextResponse
from pydantic import BaseModel, Field

import fisopt
from fisopt.models.testbed import load_testbed

FPS = 8


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
        self.seconds, self.ready = 0.0, False
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
        self.ready = True

    def bucket(self, frames: int) -> int:
        """The smallest warm frame count that holds a request.

        Raises:
            ValueError: none does.
        """
        for size in self.buckets:
            if frames <= size:
                return size
        raise ValueError(f"{frames} frames are more than {self.buckets[-1]}, the largest bucket")

    def make(self, prompt: str, frames: int, seed: int) -> Any:
        """One clip [frames, height, width, 3] with values in [0, 1], in this thread."""
        return self._run(self.module, prompt, self.bucket(frames), seed)[:frames]

    async def generate(self, prompt: str, frames: int, seed: int) -> Any:
        """The same, in a thread of its own and in its turn."""
        size = self.bucket(frames)
        async with self._turns:
            began = time.perf_counter()
            # The pipeline runs in a thread: the event loop goes on answering.
            clip = await asyncio.to_thread(self.make, prompt, frames, seed)
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
        """
        async with self._reloading:
            module = await asyncio.to_thread(self._optimised, recipe=recipe)
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
            "ready": int(self.ready),
        }
        return "".join(f"fisopt_{name} {value}\n" for name, value in figures.items())


def video(clip: Any) -> bytes:
    """A clip as a file of MPEG-4."""
    pixels = (255 * clip).round().astype("uint8")
    made: bytes = iio.imwrite(
        "<bytes>", pixels, extension=".mp4", fps=FPS, codec="libx264", plugin="pyav"
    )
    return made


class Request(BaseModel):
    """A clip to make."""

    prompt: str
    frames: int = Field(16, ge=1)
    seed: int = Field(0, ge=0, lt=2**64)


def application(service: Service) -> FastAPI:
    """The service over HTTP; it is warmed up before it answers."""

    @asynccontextmanager
    async def life(_: FastAPI) -> AsyncIterator[None]:
        await asyncio.to_thread(service.warm_up)
        yield

    made = FastAPI(title="fisopt", lifespan=life)

    @made.get("/health")
    def health() -> dict[str, bool]:
        return {"ready": service.ready}

    @made.get("/metrics", response_class=PlainTextResponse)
    def metrics() -> str:
        return service.metrics()

    @made.post("/clips", response_class=Response)
    async def clips(request: Request) -> Response:
        try:
            clip = await service.generate(request.prompt, request.frames, request.seed)
        except ValueError as error:
            raise HTTPException(422, str(error)) from error
        return Response(await asyncio.to_thread(video, clip), media_type="video/mp4")

    @made.post("/recipe")
    async def recipe(path: Path) -> dict[str, str]:
        try:
            await service.reload(path)
        except fisopt.FisoptError as error:
            raise HTTPException(422, str(error)) from error
        return {"recipe": str(path)}

    return made


def __getattr__(name: str) -> Any:
    """Make ``app`` when uvicorn asks for it, and not when a test imports `Service`."""
    if name != "app":
        raise AttributeError(name)
    return application(Service(load_testbed()))
