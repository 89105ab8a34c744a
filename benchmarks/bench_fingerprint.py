"""What it costs at every call to see whether a model has changed: a tiny Wan of forty blocks.

    python benchmarks/bench_fingerprint.py

The state of the model is compared with the one that was captured; nothing is run.  The cost
follows from the number of modules and weights, not from their sizes.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

from diffusers import WanTransformer3DModel
from harness import machine, write

from fisopt.runtime.fingerprint import Fingerprint

BLOCKS, CALLS = 40, 1000
TINY: dict[str, Any] = {
    "num_attention_heads": 2,
    "attention_head_dim": 12,
    "in_channels": 4,
    "out_channels": 4,
    "text_dim": 16,
    "freq_dim": 32,
    "ffn_dim": 48,
    "rope_max_seq_len": 32,
}


def milliseconds(call: Callable[[], Any], calls: int) -> dict[str, float]:
    """Smallest and median time of a call."""
    seconds = []
    for _ in range(calls):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    times = {"least": min(seconds), "median": statistics.median(seconds)}
    return {name: round(1e3 * value, 3) for name, value in times.items()}


def main() -> None:
    model = WanTransformer3DModel(num_layers=BLOCKS, **TINY).eval()
    taken = Fingerprint(model)
    if not taken.holds():
        raise SystemExit("the state of a model that nobody has changed does not hold")
    result = {
        "machine": machine(),
        "blocks": BLOCKS,
        "modules": len(list(model.modules())),
        "weights": len(list(model.parameters())) + len(list(model.buffers())),
        "compare_ms": milliseconds(taken.holds, CALLS),
        "take_ms": milliseconds(lambda: Fingerprint(model), 20),
    }
    print(result)
    write("fingerprint", result)


if __name__ == "__main__":
    main()
