"""Soaks: two threads, which must agree with each alone; many shapes, which must not need more.

    python benchmarks/bench_soak.py [--generations 200] [--turns 1000] [--shapes 200]

Generations run in two threads, and every output is compared with that of the same generation alone:
through two optimised modules of one model; through two diffusers pipelines with different
schedulers that share one optimised transformer; and through two such pipelines at fifty shapes in
turn, compiled.  Last, a small plain transformer runs at one shape after the other, with room for 16
variants.
"""

from __future__ import annotations

import argparse
import gc
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler, WanPipeline
from harness import RESULTS, machine, write_part
from kept import code
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

import fisopt
from fisopt import FrameInterleave, ModelSpec, TokenReduction

FILE = RESULTS / "reliability.json"
WIDTH, ROOM, STEPS = 16, 16, 4
STATEFUL = [
    TokenReduction(0.5, 0.4, destination_stride=(2, 1, 1), cache_steps=2),
    FrameInterleave(blocks=":", fill="carry", steps="1:-1"),
]
VARIANTS = 24
"""More than these passes have at one shape in generations of 4 and 5 steps: nothing is dropped."""
Backend = Literal["eager", "inductor"]
SPEC = ModelSpec(blocks=("layers.*",), grid=lambda call: (call["video"].shape[1] // 2, 1, 2))


class Layer(nn.Module):
    """Attention and a linear map, with one residual."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.mlp = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens in and out."""
        q, k, v = self.qkv(x).unsqueeze(1).chunk(3, dim=-1)
        return x + self.mlp(functional.scaled_dot_product_attention(q, k, v)[:, 0])


class Small(nn.Module):
    """Two layers over tokens [B, 2 F, 16], a text [B, T, 16] and a timestep [B]."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer() for _ in range(2))

    def forward(self, video: Tensor, text: Tensor, timestep: Tensor) -> Tensor:
        """Tokens out."""
        x = video + text.mean(1, keepdim=True) + timestep[:, None, None] / 1000
        for layer in self.layers:
            x = layer(x)
        return x


def call(frames: int, text: int, time: float = 500.0) -> dict[str, Tensor]:
    """Inputs of one call: a video of some frames, a text of some length."""
    return {
        "video": torch.randn(1, 2 * frames, WIDTH),
        "text": torch.randn(1, text, WIDTH),
        "timestep": torch.tensor([time]),
    }


def resident_mib() -> float:
    """Memory of this process now."""
    gc.collect()
    with open("/proc/self/statm", encoding="ascii") as file:
        return round(int(file.read().split()[1]) * 4096 / 2**20, 1)


def shapes(count: int) -> dict[str, Any]:
    """Memory over many shapes: the first half fills what is held and warms the process up."""
    model = Small().eval().requires_grad_(False)
    fast = fisopt.optimize(model, [], call(4, 3), SPEC, backend="eager", cache_size=ROOM)
    rows = []
    for i in range(count):
        inputs = call(3 + i % 20, 2 + i // 20)
        error = float((fast(**inputs) - model(**inputs)).abs().max())
        if error > 1e-6:
            raise SystemExit(f"shape {i} is off by {error:.1e}")
        if (i + 1) % max(1, count // 20) == 0:
            held = {"variants": len(fast.report.variants), "captures": len(fast.captures)}
            rows.append({"shapes": i + 1, "resident_mib": resident_mib(), **held})
            print(rows[-1], flush=True)
    middle, last = rows[len(rows) // 2]["resident_mib"], rows[-1]["resident_mib"]
    return {"room": ROOM, "rows": rows, "grown_mib_in_second_half": round(last - middle, 1)}


def modules(count: int) -> dict[str, Any]:
    """Generations in two threads, of two modules that share a model; each step is compared."""
    model = Small().eval().requires_grad_(False)
    passes = [FrameInterleave(stride=2, blocks=":", steps="1:-1")]
    first = fisopt.optimize(model, passes, call(5, 3), SPEC, backend="eager")
    both = [first, fisopt.optimize(first, passes, backend="eager")]
    times = [900.0 - 200 * i for i in range(STEPS)]
    given = [[call(5 + which, 3, time) for time in times] for which in range(2)]

    def generate(which: int) -> list[Tensor]:
        with both[which].generation(STEPS):
            return [both[which](**inputs) for inputs in given[which]]

    return in_two_threads(generate, count) | {"steps": STEPS}


def pipelines(count: int) -> dict[str, Any]:
    """Generations in two threads, of two pipelines that share an optimised transformer."""
    pipes = two_pipelines(backend="eager", room=ROOM)

    def generate(which: int) -> list[Tensor]:
        return [pipes[which](5, 6, 8)]

    return in_two_threads(generate, count) | {"steps": [STEPS, STEPS + 1]}


def turns(count: int, shapes: int, backend: Backend) -> dict[str, Any]:
    """Generations of many shapes in turn, in two threads, of two pipelines as in `pipelines`.

    What each shape gives is first found one after the other: by pipelines of their own, so that the
    threads meet every shape anew; compiled, by the same ones, which saves half an hour and
    gigabytes.  The memory is that after each turn of all shapes.
    """
    sizes = [(3 + i % 10, 2 * (2 + i // 10), 4) for i in range(shapes)]
    alone = two_pipelines(backend, room=VARIANTS * shapes)
    wanted = [[pipe(*size) for size in tqdm(sizes, "alone")] for pipe in alone]
    pipes = two_pipelines(backend, room=VARIANTS * shapes) if backend == "eager" else alone
    unequal, rows = [], []
    for turn in range(-(-count // (2 * shapes))):

        def run(which: int, turn: int = turn) -> None:
            for i in range(shapes):
                shape = (i + which * shapes // 2) % shapes
                if not torch.equal(pipes[which](*sizes[shape]), wanted[which][shape]):
                    unequal.append(f"turn {turn}, thread {which}, shape {sizes[shape]}")

        in_threads(run)
        rows.append({"generations": 2 * shapes * (turn + 1), "resident_mib": resident_mib()})
        print(rows[-1], flush=True)
    middle, last = rows[len(rows) // 2]["resident_mib"], rows[-1]["resident_mib"]
    return {
        "backend": backend,
        "passes": [str(each) for each in STATEFUL],
        "shapes": shapes,
        "generations": rows[-1]["generations"],
        "unequal": unequal,
        "rows": rows,
        "grown_mib_in_second_half": round(last - middle, 1),
    }


def two_pipelines(backend: Backend, room: int) -> list[Callable[[int, int, int], Tensor]]:
    """Two pipelines that share a transformer with every kind of pass that holds state.

    Returns:
        For each a function of latent frames, height and width that generates the latents.
    """
    torch.manual_seed(0)
    family = fisopt.models.families()["wan"]
    model = family.transformer(**family.tiny["wan"]).eval().requires_grad_(False)
    parts = {"tokenizer": None, "text_encoder": None, "vae": None, "transformer": model}
    first = WanPipeline(scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0), **parts)
    fast = fisopt.optimize(first, STATEFUL, backend=backend, cache_size=room).transformer
    second = WanPipeline(
        scheduler=UniPCMultistepScheduler(flow_shift=5.0), **{**parts, "transformer": fast}
    )
    texts = torch.randn(2, 2, 1, 12, model.config.text_dim)

    def generated(which: int) -> Callable[[int, int, int], Tensor]:
        pipe = (first, second)[which]
        pipe.set_progress_bar_config(disable=True)

        def generate(frames: int, height: int, width: int) -> Tensor:
            noise = torch.Generator().manual_seed(which)
            shape = (1, model.config.in_channels, frames, height, width)
            made: Tensor = pipe(
                prompt_embeds=texts[which, 0],
                negative_prompt_embeds=texts[which, 1],
                latents=torch.randn(shape, generator=noise),
                height=8 * height,
                width=8 * width,
                num_frames=4 * frames - 3,
                num_inference_steps=STEPS + which,
                output_type="latent",
            ).frames
            return made

        return generate

    return [generated(which) for which in range(2)]


def in_two_threads(generate: Callable[[int], list[Tensor]], count: int) -> dict[str, Any]:
    """Run half of the generations in each thread and compare each with the same one alone."""
    wanted = [generate(which) for which in range(2)]
    unequal: list[str] = []
    done = [0, 0]

    def run(which: int) -> None:
        for i in range(count // 2):
            got = generate(which)
            if not all(map(torch.equal, got, wanted[which])):
                unequal.append(f"thread {which}, generation {i}")
            done[which] += 1

    in_threads(run)
    return {"threads": 2, "generations": sum(done), "unequal": unequal}


def in_threads(run: Callable[[int], None]) -> None:
    """Run a function of the thread's number in two threads, to the end of both."""
    with ThreadPoolExecutor(2) as threads:
        list(threads.map(run, range(2)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--shapes", type=int, default=200)
    parser.add_argument("--generations", type=int, default=200)
    parser.add_argument("--turns", type=int, default=1000, help="generations of shapes in turn")
    parser.add_argument("--turn-shapes", type=int, default=50)
    parser.add_argument("--only", help="this soak alone")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    held = json.loads(FILE.read_text()).get("soak", {}) if FILE.exists() else {}
    result: dict[str, Any] = {**held, "machine": machine(), "code": code("soak")}
    for name, soak in (
        ("modules", lambda: modules(arguments.generations)),
        ("pipelines", lambda: pipelines(arguments.generations)),
        ("turns", lambda: turns(arguments.turns, arguments.turn_shapes, "inductor")),
        ("turns_eager", lambda: turns(arguments.turns, arguments.turn_shapes, "eager")),
        ("shapes", lambda: shapes(arguments.shapes)),
    ):
        if arguments.only not in (None, name):
            continue
        result[name] = soak()
        print(name, {k: v for k, v in result[name].items() if k != "rows"}, flush=True)
        write_part("reliability", "soak", result)


if __name__ == "__main__":
    main()
