"""Wall-clock on the testbed: compiled dense against compiled optimised, in turns, in one run.

    python benchmarks/bench_testbed.py [--rounds 9] [--batch 1] [--only NAME ...]

Reported is the median over rounds of dense seconds / optimised seconds, beside the ratio that
the cost model predicts from FLOPs, and the milliseconds that the processor's ceilings allow: rates
of a product, an attention and a copy of the testbed's sizes.  Where the time goes is what torch's
profiler says of one more call.  A clip is timed whole and in its transformer.  Compilation is
excluded.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

sys.path.insert(1, str(Path(__file__).parent / "gpu"))

import ceilings
import torch
from device import Rows
from harness import interleaved, machine, paired_ratio, write
from roofline import Ceilings, roofline
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

import fisopt
from fisopt.cli.schedule import plan_steps
from fisopt.models.testbed import encode_prompts, load_testbed, sample_prompts
from fisopt.models.testbed.model import with_coordinates
from fisopt.rewrite.pass_manager import PassManager
from fisopt.rewrite.variants import Variants

CONFIGURATIONS: dict[str, list[fisopt.Pass | str]] = {
    "stride 2": [fisopt.FrameInterleave(stride=2)],
    "stride 3": [fisopt.FrameInterleave(stride=3)],
    "stride 4": [fisopt.FrameInterleave(stride=4)],
    "stride 2, all keys": [fisopt.FrameInterleave(stride=2, kv="all")],
    "attention, stride 2, all keys": [
        fisopt.FrameInterleave(stride=2, kv="all", scope="attention")
    ],
    "attention, stride 4, all keys": [
        fisopt.FrameInterleave(stride=4, kv="all", scope="attention")
    ],
    "fis-a": ["fis-a"],
    "fis-balanced": ["fis-balanced"],
    "fis-fast": ["fis-fast"],
}


SIZES = ceilings.Sizes(1024, 128, 384, 2, 64, copied=2**25)


def limits() -> Ceilings:
    """What this processor reaches at the testbed's sizes, in float32."""
    with tempfile.TemporaryDirectory() as folder:
        rows = Rows(Path(folder) / "ceilings.json", ceilings.KEY, minutes=1)
        return ceilings.measured(rows, torch.device("cpu"), SIZES, torch.float32)


def inputs(batch: int) -> dict[str, Any]:
    """One forward call's arguments."""
    noise = torch.randn(batch, 3, 16, 32, 32, generator=torch.Generator().manual_seed(0))
    text: Tensor = encode_prompts(sample_prompts(batch))
    return {
        "hidden_states": with_coordinates(noise),
        "timestep": torch.full((batch,), 500.0),
        "encoder_hidden_states": text,
        "return_dict": False,
    }


KINDS = {
    "linear": ("aten::addmm", "aten::mm", "aten::linear", "aten::bmm"),
    "attention": ("aten::_scaled_dot_product",),
    "pointwise": ("## Call CompiledFxGraph", "aten::copy_"),  # norms, rotary, GELU, gathers, fills
}
"""What torch's profiler calls an operator, by where its time belongs; the rest are calls."""
PROFILED = 5


def spent(run: Callable[[], Any], seconds: float) -> dict[str, float]:
    """Milliseconds of a call by kind of operator; the rest of the seconds that it took is "calls".

    Those are guards, dispatch and Python.
    """
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        for _ in range(PROFILED):
            run()
    found = dict.fromkeys(KINDS, 0.0)
    for event in profiled.key_averages():
        for kind, names in KINDS.items():
            if event.key.startswith(names):
                found[kind] += event.self_cpu_time_total / 1e3 / PROFILED
    found["calls"] = max(0.0, 1e3 * seconds - sum(found.values()))
    return {kind: round(ms, 1) for kind, ms in found.items()}


CLIPS: dict[str, list[fisopt.Pass | str]] = {
    "stride 2": [fisopt.FrameInterleave(stride=2)],
    "few-balanced": ["few-balanced"],
}
STEPS = 4


def predicted(module: fisopt.OptimizedModule, dense: fisopt.Program) -> float:
    """The speed-up of all transformer calls of a clip that FLOPs promise."""
    variants = Variants.of(module.passes, STEPS)
    ratio = plan_steps(variants, STEPS, lambda v: PassManager.of(v, strict=True).run(dense)).ratio
    assert ratio is not None
    return ratio


def clips(rounds: int) -> list[dict[str, Any]]:
    """Whole clips, and their transformer calls alone, dense and optimised in turns."""
    pipe = load_testbed()
    pipe.set_progress_bar_config(disable=True)
    prompt = str(sample_prompts(1)[0])
    modules = {"dense": fisopt.optimize(pipe.transformer, [])}
    for name, passes in CLIPS.items():
        modules[name] = fisopt.optimize(modules["dense"], passes)
    inside: dict[str, list[float]] = {name: [] for name in modules}

    def made(name: str) -> None:
        began, took = 0.0, 0.0

        def enter(*_: object) -> None:
            nonlocal began
            began = perf_counter()

        def leave(*_: object) -> None:
            nonlocal took
            took += perf_counter() - began

        pipe.transformer = module = modules[name]
        hooks = module.register_forward_pre_hook(enter), module.register_forward_hook(leave)
        pipe(prompt, num_inference_steps=STEPS, generator=torch.Generator().manual_seed(0))
        inside[name].append(took)
        for hook in hooks:
            hook.remove()

    calls = {name: partial(made, name) for name in modules}
    for run in (*calls.values(), *calls.values()):
        run()
    for times in inside.values():
        times.clear()
    whole, rows = interleaved(calls, rounds), []
    program = modules["dense"].program(modules["dense"].last_inputs.kwargs())
    for name in modules:
        ratio = paired_ratio(whole["dense"], whole[name])
        within = paired_ratio(inside["dense"], inside[name])
        want = predicted(modules[name], program)
        rows.append(
            {
                "configuration": name,
                "median_ms": round(1e3 * statistics.median(whole[name]), 1),
                "transformer_ms": round(1e3 * statistics.median(inside[name]), 1),
                "ratio": round(ratio, 3),
                "transformer_ratio": round(within, 3),
                "predicted": round(want, 3),
                "reached": round(ratio / want, 3),
                "transformer_reached": round(within / want, 3),
            }
        )
        print(rows[-1])
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--only", nargs="+", choices=CONFIGURATIONS, default=[*CONFIGURATIONS])
    arguments = parser.parse_args()
    model = load_testbed().transformer.eval()
    call = inputs(arguments.batch)
    whole = torch.compile(model, fullgraph=True, dynamic=False)
    dense = fisopt.optimize(model, [], call)
    calls: dict[str, Callable[[], Any]] = {
        "eager": lambda: model(**call),
        "torch.compile": lambda: whole(**call),
        "dense": lambda: dense(**call),
    }
    promised = {"dense": 1.0}
    reached = limits()
    at_ceilings = {"dense": roofline(dense.program(call), reached)}
    for name in arguments.only:
        optimised = fisopt.optimize(dense, CONFIGURATIONS[name], call)
        calls[name] = lambda optimised=optimised: optimised(**call)  # type: ignore[misc]
        promised[name] = 1 / optimised.report.variants[0].density
        at_ceilings[name] = roofline(optimised.program(call), reached)
    with torch.no_grad():
        for run in calls.values():
            run(), run()
        seconds = interleaved(calls, arguments.rounds)
    base = min(("dense", "torch.compile"), key=lambda n: statistics.median(seconds[n]))
    rows = []
    for name, times in seconds.items():
        ratio = paired_ratio(seconds[base], times)
        want = promised.get(name)
        rows.append(
            {
                "configuration": name,
                "median_ms": round(1e3 * statistics.median(times), 1),
                "ratio": round(ratio, 3),
                "predicted": round(want, 3) if want else None,
                "reached": round(ratio / want, 3) if want else None,
            }
        )
        if name != "eager":
            with torch.no_grad():
                rows[-1]["spent_ms"] = spent(calls[name], statistics.median(times))
        if (limit := at_ceilings.get(name)) is not None:
            rows[-1] |= {"ceilings_ms": round(1e3 * limit.seconds, 1), "parts_ms": limit.row()}
        print(rows[-1])
    write(
        "testbed_speed",
        {
            "machine": machine(),
            "what": f"one forward, batch {arguments.batch}, 16x8x8 tokens, float32, compiled",
            "baseline": base,
            "rounds": arguments.rounds,
            "rows": rows,
            "clips": clips(arguments.rounds),
        },
    )


if __name__ == "__main__":
    main()
