"""One forward call of published models on several GPUs, beside one GPU and what is predicted.

    torchrun --nproc-per-node 4 benchmarks/gpu/bench_parallel.py [--model NAME ...] [--layers 4]
        [--link 350GB/s] [--rounds 5]
    torchrun --nproc-per-node 2 benchmarks/gpu/bench_parallel.py --device cpu --dry-run

Random bfloat16 weights.  Every rank compiles the model for itself and on all ranks, then the two
are timed in turns, each from a barrier to the end of the slowest rank; seconds are medians.  The
efficiency is the speed-up over one rank for each rank.  Rank 0 writes parallel.json into
results/<device>; what ranks do on one machine's CPU says nothing and is not kept.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(1, str(Path(__file__).parents[1]))
sys.path.insert(1, str(Path(__file__).parents[2]))

import torch
from device import folder, machine
from torch import Tensor, distributed

import fisopt
from fisopt import FrameInterleave, SequenceParallel, models
from fisopt.cli.ranks_view import bytes_a_second, shared

TINY = {"num_attention_heads": 4, "attention_head_dim": 24, "ffn_dim": 64, "text_dim": 16}
TINY_SIZE = {"height": 32, "width": 64, "num_frames": 17}
CONFIGURATIONS: dict[str, list[Any]] = {"dense": [], "stride 2": [FrameInterleave(stride=2)]}


def seconds(module: Any, call: dict[str, Any], device: torch.device) -> float:
    """Seconds of a call, from a barrier to the end of the slowest rank."""
    distributed.barrier()
    began = time.perf_counter()
    with torch.no_grad():
        module(**call)
    if device.type == "cuda":
        torch.cuda.synchronize()
    spent = torch.tensor([time.perf_counter() - began], device=device)
    distributed.all_reduce(spent, distributed.ReduceOp.MAX)
    return float(spent)


def row(name: str, configuration: str, options: argparse.Namespace) -> dict[str, Any]:
    """What a configuration of a model takes on one rank and on all."""
    device, tiny = torch.device(options.device), options.dry_run
    torch.manual_seed(0)
    config = {**(TINY if tiny else {}), "num_layers": options.layers}
    dtype = torch.float32 if tiny else torch.bfloat16
    model = models.build(name, device, dtype, **config)
    call = models.example_inputs(model, **(TINY_SIZE if tiny else {}))
    call = {k: x.to(device) if isinstance(x, Tensor) else x for k, x in call.items()}
    passes, backend = CONFIGURATIONS[configuration], "eager" if tiny else "inductor"
    made = {"backend": backend, "example_inputs": call}
    alone: Any = fisopt.optimize(model, passes, **made)
    every: Any = fisopt.optimize(model, [*passes, SequenceParallel()], **made)
    with torch.no_grad():
        error = max(
            float((a - b).abs().max())
            for a, b in zip(alone(**call), every(**call), strict=True)
            if isinstance(a, Tensor)
        )
    pairs = [[seconds(m, call, device) for m in (alone, every)] for _ in range(options.rounds)]
    one, many = (statistics.median(times) for times in zip(*pairs, strict=True))
    ranks, link = distributed.get_world_size(), bytes_a_second(options.link)
    program = alone.program(call)
    predicted = shared(program, ranks).efficiency(shared(program, 1), link)
    return {
        "model": name,
        "layers": options.layers,
        "configuration": configuration,
        "ranks": ranks,
        "seconds_one": one,
        "seconds": many,
        "efficiency": one / many / ranks,
        "predicted": predicted,
        "largest_difference": error,
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", nargs="+", default=["wan2.2-a14b", "hunyuanvideo-1.5"])
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--link", default="350GB/s")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dry-run", action="store_true")
    options = parser.parse_args()
    if options.device == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    distributed.init_process_group("nccl" if options.device == "cuda" else "gloo")
    first, rows = distributed.get_rank() == 0, []
    for name in options.model:
        for configuration in CONFIGURATIONS:
            rows.append(row(name, configuration, options))
            if first:
                print(json.dumps(rows[-1]), flush=True)
    if first and not options.dry_run:
        path = folder() / "parallel.json"
        path.write_text(json.dumps({"machine": machine(), "rows": rows}, indent=1) + "\n")
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
