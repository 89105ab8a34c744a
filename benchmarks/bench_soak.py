"""Soaks: many shapes, which must not need ever more memory; two threads, which must agree.

    python benchmarks/bench_soak.py [--shapes 200] [--generations 200] [--turns 1000]

The first runs a small plain transformer at one shape after the other, with room for 16 variants.
The others run generations in two threads and compare every output with that of the same
generation alone: through two optimised modules of one model, and through two diffusers pipelines
with different schedulers that share one optimised transformer.
"""

from __future__ import annotations

import argparse
import gc
import threading
from collections.abc import Callable
from typing import Any, Literal

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler, WanPipeline
from harness import machine, write
from torch import Tensor, nn
from torch.nn import functional

import fisopt
from fisopt import FrameInterleave, ModelSpec, TokenReduction

WIDTH, ROOM, STEPS = 16, 16, 4
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
        return int(file.read().split()[1]) * 4096 / 2**20


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
            rows.append({"shapes": i + 1, "resident_mib": round(resident_mib(), 1), **held})
            print(rows[-1], flush=True)
    middle, last = rows[len(rows) // 2]["resident_mib"], rows[-1]["resident_mib"]
    return {"room": ROOM, "rows": rows, "grown_mib_in_second_half": round(last - middle, 1)}


def generations(count: int) -> dict[str, Any]:
    """Generations in two threads, of two modules that share a model; each step is compared."""
    model = Small().eval().requires_grad_(False)
    passes = [FrameInterleave(stride=2, first_block=0, dense_steps=(0, -1))]
    first = fisopt.optimize(model, passes, call(5, 3), SPEC, backend="eager")
    modules = [first, fisopt.optimize(first, passes, backend="eager")]
    times = [900.0 - 200 * i for i in range(STEPS)]
    given = [[call(5 + which, 3, time) for time in times] for which in range(2)]

    def generate(which: int) -> list[Tensor]:
        with modules[which].generation(STEPS):
            return [modules[which](**inputs) for inputs in given[which]]

    return in_two_threads(generate, count) | {"steps": STEPS}


def pipelines(count: int) -> dict[str, Any]:
    """Generations in two threads, of two pipelines that share a transformer, not optimised twice.

    Steps at both ends keep every frame, and matches are held from step to step.
    """
    family = fisopt.models.families()["wan"]
    model = family.transformer(**family.tiny["wan"]).eval().requires_grad_(False)
    parts = {"tokenizer": None, "text_encoder": None, "vae": None, "transformer": model}
    first = WanPipeline(scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0), **parts)
    sparse = [TokenReduction(0.5, 0.4, cache_steps=2), FrameInterleave(dense_steps=(0, -1))]
    parts["transformer"] = fisopt.optimize(first, sparse, backend="eager").transformer
    second = WanPipeline(scheduler=UniPCMultistepScheduler(flow_shift=5.0), **parts)
    texts = torch.randn(2, 2, 1, 12, model.config.text_dim)
    noise = torch.randn(2, 1, model.config.in_channels, 5, 6, 8)
    pipes = first, second
    for pipe in pipes:
        pipe.set_progress_bar_config(disable=True)

    def generate(which: int) -> list[Tensor]:
        made = pipes[which](
            prompt_embeds=texts[which, 0],
            negative_prompt_embeds=texts[which, 1],
            latents=noise[which].clone(),
            height=48,
            width=64,
            num_frames=17,
            num_inference_steps=STEPS + which,
            output_type="latent",
        )
        return [made.frames]

    return in_two_threads(generate, count) | {"steps": [STEPS, STEPS + 1]}


def turns(count: int, shapes: int, backend: Literal["eager", "inductor"]) -> dict[str, Any]:
    """Generations of many shapes in turn, two models in two threads, every pass that holds state.

    Each thread runs its own optimised model.  What each shape gives is first found by a module that
    runs alone; the memory is that after each turn of all shapes.
    """
    passes = [
        TokenReduction(0.5, 0.4, destination_stride=(2, 1, 1), cache_steps=2),
        FrameInterleave(first_block=0, fill="carry", dense_steps=(0, -1)),
    ]
    times = [900.0 - 200 * i for i in range(STEPS)]
    sizes = [(4 + i % 10, 2 + i // 10) for i in range(shapes)]
    calls = [[call(*size, time) for time in times] for size in sizes]
    models = [Small().eval().requires_grad_(False) for _ in range(2)]

    def optimised(model: nn.Module) -> fisopt.OptimizedModule:
        made: fisopt.OptimizedModule = fisopt.optimize(
            model, passes, calls[0][0], SPEC, backend, cache_size=8 * shapes
        )
        return made

    def generate(module: fisopt.OptimizedModule, shape: int) -> list[Tensor]:
        with module.generation(STEPS):
            return [module(**inputs) for inputs in calls[shape]]

    wanted = []
    for model in models:
        alone = optimised(model)
        wanted.append([generate(alone, shape) for shape in range(shapes)])
    modules, unequal, rows = [optimised(model) for model in models], [], []
    for turn in range(-(-count // (2 * shapes))):

        def run(which: int, turn: int = turn) -> None:
            for i in range(shapes):
                shape = (i + which * shapes // 2) % shapes
                got = generate(modules[which], shape)
                if not all(map(torch.equal, got, wanted[which][shape])):
                    unequal.append(f"turn {turn}, thread {which}, shape {sizes[shape]}")

        threads = [threading.Thread(target=run, args=(which,)) for which in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        done = 2 * shapes * (turn + 1)
        rows.append({"generations": done, "resident_mib": round(resident_mib(), 1)})
        print(rows[-1], flush=True)
    middle, last = rows[len(rows) // 2]["resident_mib"], rows[-1]["resident_mib"]
    return {
        "backend": backend,
        "passes": [str(each) for each in passes],
        "shapes": shapes,
        "generations": rows[-1]["generations"],
        "unequal": unequal,
        "rows": rows,
        "grown_mib_in_second_half": round(last - middle, 1),
    }


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

    threads = [threading.Thread(target=run, args=(which,)) for which in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return {"threads": 2, "generations": sum(done), "unequal": unequal}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--shapes", type=int, default=200)
    parser.add_argument("--generations", type=int, default=200)
    parser.add_argument("--turns", type=int, default=1000, help="generations of shapes in turn")
    parser.add_argument("--turn-shapes", type=int, default=50)
    parser.add_argument("--backend", choices=["eager", "inductor"], default="eager")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    result = {"machine": machine(), "threads": generations(arguments.generations)}
    print(result["threads"], flush=True)
    result["pipelines"] = pipelines(arguments.generations)
    print(result["pipelines"], flush=True)
    result["turns"] = turns(arguments.turns, arguments.turn_shapes, arguments.backend)
    write("soak", result | {"shapes": shapes(arguments.shapes)})


if __name__ == "__main__":
    main()
