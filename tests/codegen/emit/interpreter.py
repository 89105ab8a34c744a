"""Runs kernels through Triton's interpreter, in a process of its own.

Triton decides when it is imported whether it compiles or interprets, and the tests' own process
may have imported it already.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parents[3]


class Interpreter:
    """Asks the other process to run kernels on tensors."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process

    def launch(self, kernel: Any, operands: Sequence[torch.Tensor], config: Any = None) -> Any:
        """What `launch` returns, every result filled with NaN (or ones) before it is written."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        pickle.dump((kernel, list(operands), config), self.process.stdin)
        self.process.stdin.flush()
        answer = pickle.load(self.process.stdout)
        if isinstance(answer, Exception):
            raise answer
        return answer


@contextmanager
def interpreter(cache: Path) -> Iterator[Interpreter]:
    """Start the process and end it."""
    environment = {
        **os.environ,
        "TRITON_INTERPRET": "1",
        "FISOPT_CACHE": str(cache),
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
    }
    process = subprocess.Popen(
        [sys.executable, str(Path(__file__).resolve())],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        yield Interpreter(process)
    finally:
        assert process.stdin is not None
        process.stdin.close()
        process.wait()


def poisoned(self: torch.Tensor, *sizes: Any, **options: Any) -> torch.Tensor:
    """What `new_empty` may return at worst."""
    made = torch.empty(*sizes, dtype=options.get("dtype", self.dtype))
    return made.fill_(float("nan") if made.is_floating_point() else 1)


def main() -> None:
    """Answer requests until there are no more."""
    from fisopt.codegen.emit.launch import launch

    torch.set_num_threads(1)
    torch.Tensor.new_empty = poisoned  # type: ignore[method-assign]
    while True:
        try:
            kernel, operands, config = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        try:
            answer: Any = launch(kernel, operands, config)
        except Exception as error:
            answer = RuntimeError(f"{type(error).__name__}: {error}")
        pickle.dump(answer, sys.stdout.buffer)
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
