"""Everything that waits for a GPU, in three parts of at most nine minutes, most valuable first.

    python benchmarks/gpu/run.py [--part 1 2 3] [--minutes 9]
    python benchmarks/gpu/run.py --dry-run

1. What the device reaches; four layers of four models, compiled side by side and beside the tests
   that need a GPU, then timed one after the other.
2. All layers of Wan2.2-A14B: dense in two ways, frames, frames and tiles, plans of four steps.
3. Every other configuration of Wan2.2-A14B; attention by tiles; other kernels; emitted kernels.

Rows are kept as they are made in the folder that the environment variable OUT names, else in
results/<device>: a part that was cut off goes on when it is run again.  Nothing is downloaded;
torch 2.11 or newer and diffusers are all that has to be installed.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

sys.path.insert(1, str(Path(__file__).parents[2]))

from device import folder
from page import write_page
from turns import run_together

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
A14B = "wan2.2-a14b"
SPARSE = ("dense", "stride 2", "stride 3", "stride 2 + tiles k=1")
EIGHT = ("dense, fp8", "stride 2, fp8", "stride 3, fp8", "stride 2 + tiles k=1, fp8")
PLANS = ("plan for 2x, 4 steps", "plan for 3x, 4 steps")
NEAR = "reduction, half of queries and values, near"
OTHERS = ("hunyuanvideo-1.5", "wan2.2-ti2v-5b", "cogvideox-5b")
CEILINGS, FORWARD, KERNELS = "ceilings.py", "bench_forward.py", "bench_kernels.py"
EMITTED = "bench_emitted.py"
TESTS = "tests"
Step = tuple[str, ...]
PARTS: dict[int, tuple[tuple[Step, ...], ...]] = {
    1: (
        ((CEILINGS,),),
        (
            (FORWARD, "--model", A14B, "--only", *SPARSE, *EIGHT, *PLANS, NEAR, "torch.compile"),
            *((FORWARD, "--model", m, "--only", *SPARSE, "torch.compile") for m in OTHERS),
            (TESTS,),
        ),
    ),
    2: (
        (
            (
                *(FORWARD, "--model", A14B, "--layers", "all", "--only", *SPARSE),
                *("compile_repeated_blocks", *PLANS, "stride 2 + tiles k=2"),
            ),
        ),
    ),
    3: (
        ((FORWARD, "--model", A14B),),
        ((KERNELS, "--part", "tile_attention"),),
        ((KERNELS, "--part", "match_tokens", "reduce_attend_restore"),),
        ((EMITTED,),),
    ),
}
"""What each part runs, in order; several steps run side by side."""


def command(step: Step, minutes: float, out: Path, dry: bool) -> list[str]:
    """The command of one step."""
    name, *options = step
    if name == TESTS:
        mark = "not gpu" if dry else "gpu"
        tests = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "-n", "4", "-m", mark]
        tests += ["--continue-on-collection-errors", "--durations=10"]
        return [sys.executable, *tests, "tests/codegen/kernels/test_merge.py" if dry else TESTS]
    options += ["--minutes", str(round(minutes, 2)), "--out", str(out)]
    if dry:
        options += ["--device", "cpu", "--dry-run"]
        options = ["4" if option == "all" else option for option in options]
    return [sys.executable, str(HERE / name), *options]


def named(step: Step) -> str:
    """The name of a step, and that by which it takes its turn: of one model, the model's."""
    return step[2] if step[0] == FORWARD else " ".join(step)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--part", nargs="+", type=int, choices=PARTS, default=[*PARTS])
    parser.add_argument("--minutes", type=float, default=9.0, help="time limit of a part")
    parser.add_argument("--dry-run", action="store_true", help="on a CPU, tiny, nothing compiled")
    options = parser.parse_args()
    out = Path(os.environ.get("OUT") or folder())
    out.mkdir(parents=True, exist_ok=True)
    failed = []
    for part in options.part:
        until = time.monotonic() + 60 * options.minutes
        for steps in PARTS[part]:
            left, names = until - time.monotonic(), [named(step) for step in steps]
            if left < 20:
                print(f"part {part}: no time is left for {'; '.join(names)}; run it again to go on")
                continue
            commands = [command(step, left / 60 - 0.25, out, options.dry_run) for step in steps]
            print(f"part {part}: {'; '.join(names)}", flush=True)
            failed += run_together(dict(zip(names, commands, strict=True)), ROOT, left)
            write_page(out)
    if failed:
        sys.exit("failed: " + "; ".join(failed))


if __name__ == "__main__":
    main()
