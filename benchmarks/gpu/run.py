"""Everything that waits for a GPU, in three parts of at most nine minutes, most valuable first.

    python benchmarks/gpu/run.py [--part 1 2 3] [--minutes 9]
    python benchmarks/gpu/run.py --dry-run

1. What the device reaches; four layers of Wan2.2-A14B in every configuration; attention by tiles.
2. All layers of Wan2.2-A14B: dense in two ways, frames, frames and tiles.
3. HunyuanVideo 1.5, Wan2.2-TI2V-5B, CogVideoX-5B; the tests that need a GPU; other kernels;
   emitted kernels.

Rows are kept as they are made in the folder that the environment variable OUT names, else in
results/<device>: a part that was cut off goes on when it is run again.  Nothing is downloaded;
torch 2.11 or newer and diffusers are all that has to be installed.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

from device import folder
from page import write_page

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
A14B = "wan2.2-a14b"
SPARSE = ("dense", "stride 2", "stride 3", "stride 2 + tiles k=1")
OTHERS = ("hunyuanvideo-1.5", "wan2.2-ti2v-5b", "cogvideox-5b")
FORWARD, KERNELS, EMITTED = "bench_forward.py", "bench_kernels.py", "bench_emitted.py"
TESTS = "tests"
PARTS: dict[int, tuple[tuple[str, ...], ...]] = {
    1: (
        (FORWARD, "--model", A14B),
        (KERNELS, "--part", "tile_attention"),
    ),
    2: (
        (
            *(FORWARD, "--model", A14B, "--layers", "all", "--only", *SPARSE),
            *("compile_repeated_blocks", "stride 2 + tiles k=2"),
        ),
    ),
    3: (
        (FORWARD, "--model", *OTHERS, "--only", *SPARSE, "tiles k=2"),
        (TESTS,),
        (KERNELS, "--part", "match_tokens", "reduce_attend_restore"),
        (EMITTED,),
    ),
}


def command(step: tuple[str, ...], minutes: float, out: Path, dry: bool) -> list[str]:
    """The command of one step."""
    name, *options = step
    if name == TESTS:
        mark = "not gpu" if dry else "gpu"
        tests = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", mark]
        return [sys.executable, *tests, "tests/codegen/kernels/test_merge.py" if dry else TESTS]
    options += ["--minutes", str(round(minutes, 2)), "--out", str(out)]
    if dry:
        options += ["--device", "cpu", "--dry-run"]
        options = ["4" if option == "all" else option for option in options]
    return [sys.executable, str(HERE / name), *options]


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
        for step in PARTS[part]:
            left = until - time.monotonic()
            if left < 20:
                print(f"part {part}: no time is left for {' '.join(step)}; run it again to go on")
                continue
            run = command(step, left / 60 - 0.25, out, options.dry_run)
            print(f"part {part}: {' '.join(step)}", flush=True)
            try:
                done = subprocess.run(run, cwd=ROOT, check=False, timeout=left)
            except subprocess.TimeoutExpired:
                print(f"part {part}: cut off after {left:.0f} s; its rows are kept")
                continue
            if done.returncode:
                failed.append(" ".join(step))
            write_page(out)
    if failed:
        sys.exit("failed: " + "; ".join(failed))


if __name__ == "__main__":
    main()
