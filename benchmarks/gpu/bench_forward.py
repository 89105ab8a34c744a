"""One forward call of published models with random bfloat16 weights, dense and optimised.

    python benchmarks/gpu/bench_forward.py [--model NAME ...] [--layers 4 | --layers all]
        [--only CONFIGURATION ...] [--rounds 3] [--minutes 8]
    python benchmarks/gpu/bench_forward.py --device cpu --dry-run

Everything is compiled first, then timed in turns in one process: a ratio is the median over rounds
of dense seconds over seconds, dense being compiled with the fastest dense attention of the device.
Beside it stand the ratio of FLOPs and the seconds that the device's ceilings allow.  Where fewer
layers are built than a model has, seconds for all of them count dense and sparse blocks apart.
Of a plan that differs between steps all calls of a clip are timed; its seconds are those of a
step.  What fails or does not fit is a row that says so.  Rows are written after every round, in
results/<device>/forward.json: a call that runs out of minutes is called again.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

sys.path.insert(1, str(Path(__file__).parents[1]))
sys.path.insert(1, str(Path(__file__).parents[2]))

import ceilings
import plans
import torch
from device import Row, Rows, folder, free_memory, said
from harness import interleaved, paired_ratio
from page import table
from roofline import Ceilings, roofline
from tqdm import tqdm
from turns import COMPILING, side_by_side, turn

import fisopt
from fisopt import FrameInterleave, TileAttention, TokenReduction, models

TINY: dict[str, Any] = {
    "num_attention_heads": 2,
    "attention_head_dim": 24,
    "ffn_dim": 64,
    "text_dim": 16,
}
TINY_SIZE = {"height": 32, "width": 64, "num_frames": 17}
MODELS = ("wan2.2-a14b", "hunyuanvideo-1.5", "wan2.2-ti2v-5b", "cogvideox-5b")
CONFIGURATIONS: dict[str, list[Any]] = {
    "dense": [],
    "stride 2": [FrameInterleave(stride=2)],
    "stride 3": [FrameInterleave(stride=3)],
    "tiles k=1": [TileAttention(mask=1)],
    "tiles k=2": [TileAttention(mask=2)],
    "tiles k=4": [TileAttention(mask=4)],
    "stride 2 + tiles k=1": [FrameInterleave(stride=2), TileAttention(mask=1)],
    "stride 2 + tiles k=2": [FrameInterleave(stride=2), TileAttention(mask=2)],
    "reduction, half of queries and values": [TokenReduction(0.5, 0.5, search="all")],
    "reduction, half of queries and values, near": [TokenReduction(0.5, 0.5, search="near")],
    "dense, fp8": [],
    "stride 2, fp8": [FrameInterleave(stride=2)],
    "stride 3, fp8": [FrameInterleave(stride=3)],
    "stride 2 + tiles k=1, fp8": [FrameInterleave(stride=2), TileAttention(mask=1)],
}
PLAIN = ("eager", "torch.compile", "compile_repeated_blocks")
KEY = ("model", "layers", "configuration")


class Bench:
    """One model on a device, and the calls that are timed of it."""

    def __init__(self, name: str, layers: int, options: argparse.Namespace) -> None:
        self.device, self.tiny = torch.device(options.device), options.dry_run
        dtype = torch.float32 if self.tiny else torch.bfloat16
        self.of_layers = depth(name)
        torch.manual_seed(0)
        config = {**(TINY if self.tiny else {}), "num_layers": layers}
        self.model = models.build(name, self.device, dtype, **config)
        self.call = models.example_inputs(self.model, **(TINY_SIZE if self.tiny else {}))
        self.call["return_dict"] = False
        backend: Any = "eager" if self.tiny else "inductor"
        self.dense = fisopt.optimize(self.model, [], self.call, backend=backend)
        layout = self.dense.program(self.call).layout
        self.head: Row = {"model": name, "layers": layers, "of_layers": self.of_layers}
        self.head |= {"grid": str(layout), "tokens": layout.tokens}

    def made(self, name: str) -> tuple[Callable[[], Any], Any]:
        """The call of a configuration, and its optimised module if it is one."""
        if name == "eager":
            return lambda: self.model(**self.call), None
        if name == "torch.compile":
            backend = "eager" if self.device.type == "cpu" else "inductor"
            whole = torch.compile(self.model, dynamic=False, backend=backend)
            return lambda: whole(**self.call), None
        if name == "compile_repeated_blocks":
            return self.repeated(), None
        if name in plans.TARGETS:
            target = plans.TINY if self.tiny else plans.TARGETS[name]
            planned = plans.planned(self.dense, self.call, target)
            return plans.clip(planned, self.call), planned
        fp8 = "fp8-simulated" if self.device.type == "cpu" else "fp8"
        options: Any = {"linear": fp8} if name.endswith("fp8") else {}
        module = fisopt.optimize(self.dense, CONFIGURATIONS[name], self.call, **options)
        return lambda: module(**self.call), module

    def repeated(self) -> Callable[[], Any]:
        """The model with its blocks compiled by diffusers, only while this is called.

        Its attributes are as they were between calls: fisopt would capture a changed model anew.
        """
        name = "_compiled_call_impl"
        backend = "eager" if self.device.type == "cpu" else "inductor"
        self.model.compile_repeated_blocks(fullgraph=True, dynamic=False, backend=backend)
        held = {m: vars(m).pop(name) for m in self.model.modules() if name in vars(m)}

        def run() -> Any:
            for block, compiled in held.items():
                vars(block)[name] = compiled
            try:
                return self.model(**self.call)
            finally:
                for block in held:
                    del vars(block)[name]

        return run

    def timed(self, call: Callable[[], Any]) -> Callable[[], None]:
        """A call that returns when the device is done."""

        def run() -> None:
            with torch.no_grad():
                call()
            if self.device.type == "cuda":
                torch.cuda.synchronize()

        return run

    def described(self, name: str, module: Any, limits: Ceilings | None) -> Row:
        """What is predicted of an optimised module, and how its blocks divide."""
        if name in plans.TARGETS:
            return plans.described(module, self.dense, self.call, limits)
        variant = module.report.variants[0]
        dense = {graph for _, graph in self.dense.report.variants[0].blocks}
        row: Row = {}
        if limits is not None:
            parts = roofline(module.program(self.call), limits).row()
            row = {"roofline": round(sum(parts.values()) / 1e3, 4), "roofline_ms": parts}
        return row | {
            "predicted": round(1 / variant.density, 3),
            "dense_blocks": sum(graph in dense for _, graph in variant.blocks),
            "sparse_kinds": len({graph for _, graph in variant.blocks} - dense),
            "lowering": [str(c) for c in variant.choices if c.chosen != "reference"],
        }


def prepared(bench: Bench, todo: list[str], rows: Rows, limits: Ceilings) -> dict[str, Any]:
    """Compile and run each configuration once; its call and the row that is known of it."""
    ready: dict[str, Any] = {}
    for name in tqdm(todo, desc=bench.head["model"]):
        row: Row = {**bench.head, "configuration": name}
        try:
            call, module = bench.made(name)
            run, start = bench.timed(call), time.perf_counter()
            run()
            row["first_call_seconds"] = round(time.perf_counter() - start, 1)
            if bench.device.type == "cuda":
                torch.cuda.reset_peak_memory_stats()
                start = time.perf_counter()
                run()
                row["alone"] = round((time.perf_counter() - start) / steps_of(name), 4)
                row["peak_gib"] = round(torch.cuda.max_memory_allocated() / 2**30, 2)
            if module is not None:
                reached = limits.in_fp8 if name.endswith("fp8") else limits
                row |= bench.described(name, module, reached)
            ready[name] = (run, row)
        except Exception as error:
            row["failed"] = said(error)
        rows.put(row)
        print(row, flush=True)
        free_memory()
        if rows.over or (side_by_side() and rows.used > COMPILING):
            break
    return ready


def compared(bench: Bench, ready: dict[str, Any], rows: Rows, rounds: int) -> None:
    """Time in turns what is ready, and write what is known after each round."""
    seconds: dict[str, list[float]] = {name: [] for name in ready}
    for _ in range(rounds):
        once = interleaved({name: run for name, (run, _) in ready.items()}, 1)
        for name, (taken,) in once.items():
            seconds[name].append(taken / steps_of(name))
        for name, (_, row) in ready.items():
            rows.put(finished(row, seconds[name], seconds.get("dense"), bench.of_layers))
        finish_scaling(rows, bench.head)
        if rows.over:
            break


def steps_of(name: str) -> int:
    """How many calls of the model are timed together."""
    return plans.STEPS if name in plans.TARGETS else 1


def finished(row: Row, mine: list[float], dense: list[float] | None, of_layers: int) -> Row:
    """A row with what was timed."""
    done = {**row, "rounds": len(mine), "seconds": round(statistics.median(mine), 4)}
    if dense:
        done["ratio"] = round(paired_ratio(dense, mine), 3)
        done["dense_seconds"] = round(statistics.median(dense), 4)
    if "predicted" in row and dense:
        done["reached"] = round(done["ratio"] / row["predicted"], 3)
    if "roofline" in row:
        done["of_roofline"] = round(done["seconds"] / row["roofline"], 3)
    return done


def finish_scaling(rows: Rows, head: Row) -> None:
    """Seconds for all layers, where the sparse blocks are of one kind.

    A dense block costs what it costs in the dense model of the same precision.
    """
    mine = [r for r in rows.rows if (r["model"], r["layers"]) == (head["model"], head["layers"])]
    dense = {r["configuration"]: r["seconds"] for r in mine if "ratio" in r}
    for row in mine:
        base = dense.get("dense, fp8" if row["configuration"].endswith("fp8") else "dense")
        alike = "steps" not in row and row.get("sparse_kinds", 0) < 2
        if "ratio" in row and base is not None and alike:
            scaled = scaled_seconds(row, base / row["layers"])
            rows.put({**row, "seconds_all_layers": round(scaled, 3)})


def scaled_seconds(row: Row, block: float) -> float:
    """Seconds of as many layers as the model has, given those of a dense block."""
    few, layers = row.get("dense_blocks", 0), row["layers"]
    if few == layers:
        return float(row["seconds"]) / layers * row["of_layers"]
    rest = (row["seconds"] - few * block) / (layers - few)
    return float(few * block + rest * (row["of_layers"] - few))


def depth(name: str) -> int:
    """How many layers a published model has."""
    return int(models.build(name).config.num_layers)


def measure(head: Row, todo: list[str], rows: Rows, options: argparse.Namespace) -> None:
    """Add the rows of one model; one that cannot be built or captured has a row that says so."""
    try:
        bench = Bench(head["model"], head["layers"], options)
    except Exception as error:
        for configuration in todo:
            rows.put({**head, "configuration": configuration, "failed": said(error)})
        return
    ready = prepared(bench, ["dense", *(c for c in todo if c != "dense")], rows, options.limits)
    with turn(options.model[0], rows.until):
        compared(bench, ready, rows, options.rounds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--model", nargs="+", default=[*MODELS])
    parser.add_argument("--only", nargs="+", choices=[*PLAIN, *CONFIGURATIONS, *plans.TARGETS])
    parser.add_argument("--layers", default="4", help="layers that are built, or all")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--minutes", type=float, default=8.0, help="time limit of a call")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--dry-run", action="store_true", help="a tiny model, nothing compiled")
    parser.add_argument("--again", action="store_true", help="measure again what has failed")
    parser.add_argument("--out", type=Path, help="default: results/<device>")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        sys.exit("no CUDA device; --device cpu --dry-run shows that everything but it is there")
    if (options.device == "cpu") != options.dry_run:
        sys.exit("--device cpu and --dry-run belong together: a CPU's times say nothing")
    out, device = options.out or folder(), torch.device(options.device)
    known = ceilings.of_device(device, out, options.minutes, options.again)
    options.limits = ceilings.read(known)
    rows = Rows(out / "forward.json", KEY, options.minutes, options.again)
    wanted = options.only or [*CONFIGURATIONS, *plans.TARGETS, *PLAIN]
    backend = ceilings.fastest(known)
    print(f"dense attention: {backend}", flush=True)
    with nullcontext() if options.dry_run else ceilings.preferred(backend):
        for name in ["wan2.1-1.3b"] if options.dry_run else options.model:
            layers = (
                depth(name) if options.layers == "all" else min(int(options.layers), depth(name))
            )
            head = {"model": name, "layers": layers}
            todo = rows.unfinished([{**head, "configuration": c} for c in wanted])
            if todo and not rows.over:
                measure(head, [row["configuration"] for row in todo], rows, options)
                free_memory()
    print(table("forward", rows.rows))


if __name__ == "__main__":
    main()
