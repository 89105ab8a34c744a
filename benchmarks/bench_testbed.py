"""Wall-clock on the testbed: compiled dense against compiled optimised, in turns, in one run.

    python benchmarks/bench_testbed.py [--rounds 9] [--batch 1] [--only NAME ...]

Reported is the median over rounds of dense seconds / optimised seconds, beside the ratio that
the cost model predicts from FLOPs, and the milliseconds that the processor's ceilings allow: rates
of a product, an attention and a copy of the testbed's sizes.  Compilation is excluded.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(1, str(Path(__file__).parent / "gpu"))

import ceilings
import torch
from device import Rows
from harness import interleaved, machine, paired_ratio, write
from roofline import Ceilings, roofline
from torch import Tensor

import fisopt
from fisopt.models.testbed import encode_prompts, load_testbed, sample_prompts
from fisopt.models.testbed.model import with_coordinates

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
    predicted = {"dense": 1.0}
    reached = limits()
    at_ceilings = {"dense": roofline(dense.program(call), reached)}
    for name in arguments.only:
        optimised = fisopt.optimize(dense, CONFIGURATIONS[name], call)
        calls[name] = lambda optimised=optimised: optimised(**call)  # type: ignore[misc]
        predicted[name] = 1 / optimised.report.variants[0].density
        at_ceilings[name] = roofline(optimised.program(call), reached)
    with torch.no_grad():
        for run in calls.values():
            run(), run()
        seconds = interleaved(calls, arguments.rounds)
    base = min(("dense", "torch.compile"), key=lambda n: statistics.median(seconds[n]))
    rows = []
    for name, times in seconds.items():
        ratio = paired_ratio(seconds[base], times)
        want = predicted.get(name)
        rows.append(
            {
                "configuration": name,
                "median_ms": round(1e3 * statistics.median(times), 1),
                "ratio": round(ratio, 3),
                "predicted": round(want, 3) if want else None,
                "reached": round(ratio / want, 3) if want else None,
            }
        )
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
        },
    )


if __name__ == "__main__":
    main()
