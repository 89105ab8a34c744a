"""Compiles emitted kernels for GPUs that are not here, in a process that does not interpret them."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fisopt.codegen.emit.kernel import Config, Kernel

ROOT = Path(__file__).parents[3]


@dataclass(frozen=True)
class Request:
    """A kernel in a cut for dense operands of some types on an architecture."""

    kernel: Kernel
    config: Config
    operands: tuple[torch.dtype, ...]
    capability: int
    wide: bool = False


def compile_all(requests: Sequence[Request], cache: Path) -> list[str]:
    """The PTX of each, a cubin having been made of it."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment |= {"FISOPT_CACHE": str(cache), "TRITON_CACHE_DIR": str(cache / "triton")}
    environment |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.codegen.emit.ahead"],
        input=pickle.dumps(list(requests)),
        env=environment,
        cwd=ROOT,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    texts: list[str] = pickle.loads(done.stdout)
    return texts


def compiled(request: Request) -> Any:
    """Compile one kernel, in this process."""
    import triton
    from triton.backends.compiler import GPUTarget

    from fisopt.codegen.aot_emitted import source_of

    source, options = source_of(request.kernel, request.config, request.operands, request.wide)
    return triton.compile(source, GPUTarget("cuda", request.capability, 32), options)


def main() -> None:
    """Answer with the PTX of every kernel that is asked for."""
    texts = []
    for request in pickle.load(sys.stdin.buffer):
        binary = compiled(request)
        assert binary.asm["cubin"]
        texts.append(binary.asm["ptx"])
    pickle.dump(texts, sys.stdout.buffer)


if __name__ == "__main__":
    main()
