"""The service on Ray Serve: a replica is a group of GPUs that make every clip together.

    pip install 'fisopt[ray]'
    python examples/serve/serve_ray.py --ranks 4 --gpus 1 --replicas 2 --recipe recipe.yaml
    curl -d '{"prompt": "red circle moving left fast over waves"}' localhost:8000 -o clip.mp4

Every replica starts an actor for each of its GPUs.  All of them load the pipeline, warm it up in
every bucket of frames, and are handed the same requests in the same order.  Ray puts a group on one
machine, and starts it again when one of its ranks fails.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import socket
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import torch
from pydantic import ValidationError
from ray import serve
from service import RefusedError, Request, Service, bucket, refusing, video
from starlette.requests import Request as Http
from starlette.responses import Response
from torch import distributed

import fisopt
from fisopt.models.testbed import load_testbed

log = logging.getLogger("ray.serve")
CPUS = 0.5
"""Of each rank."""
PROBES = ("/health", "/livez", "/readyz")
"""A replica answers them once it is warm, and with 503 after its group failed."""


@dataclass(frozen=True)
class Options:
    """What a group runs.

    Attributes:
        ranks: how many make a clip together.
        gpus: of each; 0 runs on the CPU, over gloo.
        recipe: a file of `save_recipe`; it names SequenceParallel() where ranks share a clip.
        weights: a folder of the pipeline.
        buckets: frame counts that are warm.
        steps: denoising steps.
        backend: of `fisopt.optimize`.
    """

    ranks: int = 1
    gpus: int = 0
    recipe: str | None = None
    weights: str | None = None
    buckets: tuple[int, ...] = (8, 16)
    steps: int = 4
    backend: str = "inductor"

    @property
    def how(self) -> dict[str, Any]:
        if self.recipe is not None:
            return {"recipe": Path(self.recipe)}
        parallel = [fisopt.SequenceParallel()] if self.ranks > 1 else []
        return {"passes": ["few-balanced", *parallel]}


@ray.remote
class Rank:
    """One GPU of a group."""

    def address(self) -> str:
        """Where the ranks of a group find each other, if this is the first of them."""
        with socket.socket() as free:
            free.bind(("", 0))
            return f"{ray.util.get_node_ip_address()}:{free.getsockname()[1]}"

    def start(self, rank: int, address: str, options: Options) -> None:
        """Load the pipeline and warm it up, beside the other ranks."""
        self.rank = rank
        if options.ranks > 1:
            distributed.init_process_group(
                "nccl" if options.gpus else "gloo",
                init_method=f"tcp://{address}",
                rank=rank,
                world_size=options.ranks,
            )
        pipe = load_testbed(options.weights).to("cuda" if options.gpus else "cpu")
        sizes = {"buckets": options.buckets, "steps": options.steps, "backend": options.backend}
        self.service = Service(pipe, **options.how, **sizes)
        with torch.no_grad():
            self.service.warm_up()

    def make(self, request: Request) -> Any:
        """The clip, of the first rank."""
        clip = self.service.make(request)
        return clip if self.rank == 0 else None


@serve.deployment(max_ongoing_requests=4)
class Group:
    """A replica."""

    def __init__(self, options: Options) -> None:
        self.ranks = [
            Rank.options(num_gpus=options.gpus, num_cpus=CPUS).remote()
            for _ in range(options.ranks)
        ]
        address = ray.get(self.ranks[0].address.remote())
        ray.get([each.start.remote(i, address, options) for i, each in enumerate(self.ranks)])
        self.buckets, self.lost = options.buckets, ""

    async def __call__(self, http: Http) -> Response:
        if self.lost:
            return self.gone()
        if http.url.path in PROBES:
            return Response("ready")
        try:
            with refusing(ValidationError):
                asked = Request.model_validate_json(await http.body())
            bucket(asked, self.buckets)
        except RefusedError as error:
            return Response(str(error), 422)
        try:
            # Nothing is awaited until all ranks have it: they take requests in the same order.
            calls = [each.make.remote(asked) for each in self.ranks]
            clip, *_ = await asyncio.gather(*calls)
        except Exception as error:
            if self.lost:  # by another clip
                return self.gone()
            log.exception("a clip of %d frames failed, and ends its group", asked.frames)
            self.end(str(error))
            return Response("the clip failed; the log of the service says why", 500)
        return Response(await asyncio.to_thread(video, clip), media_type="video/mp4")

    def gone(self) -> Response:
        return Response(f"this group failed, and Ray starts it again: {self.lost}", 503)

    def end(self, why: str) -> None:
        """End all ranks: after an error of one, the others may still wait for it in that clip."""
        self.lost = self.lost or why
        for each in self.ranks:
            ray.kill(each)

    def check_health(self) -> None:
        """Ray asks now and then; a group that failed is started again."""
        if self.lost:
            raise RuntimeError(self.lost)


def application(options: Options, replicas: int = 1) -> serve.Application:
    """The service; each replica has a group of GPUs of one machine to itself."""
    rank = {"CPU": CPUS, "GPU": float(options.gpus)} if options.gpus else {"CPU": CPUS}
    made = Group.options(
        num_replicas=replicas,
        ray_actor_options={"num_cpus": 0.1},
        placement_group_bundles=[{"CPU": 0.1}, *([rank] * options.ranks)],
        placement_group_strategy="STRICT_PACK",
    )
    return made.bind(options)


def start(options: Options, replicas: int = 1, **how: Any) -> None:
    """Start Ray, the groups, and HTTP on port 8000; returns when all are warm."""
    paths = [str(Path(__file__).parent), *filter(None, sys.path)]
    ray.init(runtime_env={"env_vars": {"PYTHONPATH": os.pathsep.join(paths)}}, **how)
    serve.run(application(options, replicas))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--ranks", type=int, default=1, help="GPUs that make a clip together")
    parser.add_argument("--gpus", type=int, default=0, help="of each rank: 1, or 0 for the CPU")
    parser.add_argument("--replicas", type=int, default=1, help="groups")
    parser.add_argument("--recipe", help="a file of save_recipe")
    given = parser.parse_args()
    start(Options(given.ranks, given.gpus, given.recipe), given.replicas)
    input("on port 8000; Enter ends it\n")


if __name__ == "__main__":
    main()
