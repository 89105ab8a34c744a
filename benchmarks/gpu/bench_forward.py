"""One forward call of published models with random bfloat16 weights, dense and optimised.

    python benchmarks/gpu/bench_forward.py [--model NAME ...] [--layers 8] [--minutes 8]

Each configuration is timed in turns with the compiled dense model of the same process, beside the
ratio that the cost model predicts at the same depth.  Models run with fewer layers than they have,
said so in the row; seconds for all layers are scaled from them.  What fails or does not fit is a
row that says so.  Rows are kept as they are made, in results/<device>/forward.json and .md: a call
that runs out of minutes is called again.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(1, str(Path(__file__).parents[1]))
sys.path.insert(1, str(Path(__file__).parents[2]))

import torch
from device import Row, Rows, folder, free_memory, said, table
from harness import interleaved, paired_ratio
from tqdm import tqdm

import fisopt
from fisopt import FrameInterleave, TileAttention, TokenReduction, models

MODELS = ("wan2.2-a14b", "wan2.2-ti2v-5b", "hunyuanvideo-1.5", "cogvideox-5b")
CONFIGURATIONS: dict[str, list[Any]] = {
    "fis-a": ["fis-a"],
    "fis-balanced": ["fis-balanced"],
    "fis-fast": ["fis-fast"],
    "frames, stride 2": [FrameInterleave(stride=2)],
    "tiles 2:(F-2)": [TileAttention(mask=2)],
    "reduction, half of queries and values": [TokenReduction(0.5, 0.5, cache_steps=1)],
    "frames, stride 2 + tiles 1:(F-1)": [FrameInterleave(stride=2), TileAttention(mask=1)],
}
PLAIN = ("eager", "torch.compile")
KEY = ("model", "configuration")
SHOWN = ("layers", "of_layers", "tokens", "seconds", "ratio", "predicted", "reached")
COLUMNS = (*KEY, *SHOWN, "seconds_all_layers", "peak_gib", "failed")


class Bench:
    """One model on the device, compiled dense, and what is measured of it."""

    def __init__(self, name: str, options: argparse.Namespace) -> None:
        self.device, self.rounds = torch.device(options.device), options.rounds
        dtype = torch.bfloat16 if self.device.type == "cuda" else torch.float32
        depth = models.build(name).config.num_layers
        self.layers, self.of_layers = min(options.layers, depth), depth
        torch.manual_seed(0)
        model = models.build(name, self.device, dtype, num_layers=self.layers)
        size = {"height": options.height, "width": options.width, "num_frames": options.frames}
        self.call = models.example_inputs(model, **size)
        self.call["return_dict"] = False
        self.dense = fisopt.optimize(model, [], self.call)
        self.layout = self.dense.program(self.call).layout
        self.head = {"model": name, "layers": self.layers, "of_layers": self.of_layers}
        self.head |= {"grid": str(self.layout), "tokens": self.layout.tokens}
        self.timed(self.dense)()

    def timed(self, module: Any) -> Callable[[], None]:
        """A call that returns when the device is done."""

        def run() -> None:
            with torch.no_grad():
                module(**self.call)
            if self.device.type == "cuda":
                torch.cuda.synchronize()

        return run

    def plain(self, name: str) -> Row:
        """The model as it is, eager or compiled as a whole by torch.compile."""
        model = self.dense.original
        if name == "torch.compile":
            model = torch.compile(model, dynamic=False)
        return self.row(name, model, None)

    def optimised(self, name: str) -> Row:
        """The model under some passes."""
        module = fisopt.optimize(self.dense, CONFIGURATIONS[name], self.call)
        predicted = 1 / module.report.variants[0].density
        return self.row(name, module, predicted)

    def row(self, name: str, module: Any, predicted: float | None) -> Row:
        """Time a module in turns with the dense one."""
        calls = {"dense": self.timed(self.dense), name: self.timed(module)}
        start = time.perf_counter()
        calls[name]()
        first = time.perf_counter() - start
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        calls[name]()
        peak = torch.cuda.max_memory_allocated() / 2**30 if self.device.type == "cuda" else None
        seconds = interleaved(calls, self.rounds)
        ratio = paired_ratio(seconds["dense"], seconds[name])
        mine, dense = (statistics.median(seconds[n]) for n in (name, "dense"))
        scale = self.of_layers / self.layers
        return {
            **self.head,
            "configuration": name,
            "seconds": round(mine, 4),
            "dense_seconds": round(dense, 4),
            "seconds_all_layers": round(mine * scale, 3),
            "ratio": round(ratio, 3),
            "predicted": round(predicted, 3) if predicted else None,
            "reached": round(ratio / predicted, 3) if predicted else None,
            "first_call_seconds": round(first, 1),
            "peak_gib": round(peak, 2) if peak else None,
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--model", nargs="+", default=[*MODELS])
    parser.add_argument("--only", nargs="+", choices=[*PLAIN, *CONFIGURATIONS])
    parser.add_argument("--layers", type=int, default=8, help="layers that are built")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--minutes", type=float, default=8.0, help="time limit of a call")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--again", action="store_true", help="measure again what has failed")
    parser.add_argument("--out", type=Path, help="default: results/<device>")
    for name in ("height", "width", "frames"):
        parser.add_argument(f"--{name}", type=int, help="default: as published")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        sys.exit("no CUDA device; --device cpu with a small size shows that all but it is there")
    out = options.out or folder()
    rows = Rows(out / "forward.json", KEY, options.minutes, options.again)
    wanted = options.only or [*PLAIN, *CONFIGURATIONS]
    for name in options.model:
        todo = rows.missing([{"model": name, "configuration": c} for c in wanted])
        measure(name, [row["configuration"] for row in todo], rows, options)
        free_memory()
    (out / "forward.md").write_text(table(rows.rows, COLUMNS))
    left = rows.missing([{"model": m, "configuration": c} for m in options.model for c in wanted])
    print(f"{out / 'forward.md'}: {'run again to go on' if left else 'complete'}")


def measure(name: str, todo: list[str], rows: Rows, options: argparse.Namespace) -> None:
    """Add the rows of one model; a row takes up to two minutes, so the last starts before that.

    A model that cannot be built or captured is not tried again for each of its rows.
    """
    last = rows.until - min(120.0, 15 * options.minutes)
    if not todo or time.monotonic() > last:
        return
    try:
        bench = Bench(name, options)
    except Exception as error:
        for configuration in todo:
            rows.add({"model": name, "configuration": configuration, "failed": said(error)})
        return
    for configuration in tqdm(todo, desc=name):
        if time.monotonic() > last:
            return
        made: Row = {"model": name, "configuration": configuration}
        try:
            plain = configuration not in CONFIGURATIONS
            made = bench.plain(configuration) if plain else bench.optimised(configuration)
        except Exception as error:
            made["failed"] = said(error)
        rows.add(made)
        print(made, flush=True)
        free_memory()


if __name__ == "__main__":
    main()
