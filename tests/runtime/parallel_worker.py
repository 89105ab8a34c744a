"""One of some processes that make a clip together; `tests/runtime/test_parallel.py` starts them."""

from __future__ import annotations

import os
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import distributed

import fisopt
from fisopt.models.testbed import load_testbed

PROMPT = "red circle moving left fast over waves"


def clip(pipe: Any, prompt: str = PROMPT) -> torch.Tensor:
    """A clip of few steps, from a seed."""
    made = pipe(
        prompt,
        num_inference_steps=2,
        generator=torch.Generator().manual_seed(0),
        output_type="latent",
    )
    return torch.as_tensor(made.frames)


def main(folder: str, kind: str) -> None:
    """Make a clip, and write it; or fail in the way that is asked for."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", timeout=timedelta(seconds=600))
    rank = distributed.get_rank()
    pipe = load_testbed()
    backend = "inductor" if "inductor" in kind else "eager"
    passes = [fisopt.FrameInterleave(stride=3 if kind == "passes" and rank else 2)]
    degree, shards = 2 if kind == "degree" else None, "weights" in kind
    parallel: list[fisopt.Pass] = [fisopt.SequenceParallel(degree, shard_weights=shards)]
    if kind.startswith("guidance"):
        parallel = [fisopt.GuidanceParallel(), *(parallel if "tokens" in kind else [])]
    fisopt.optimize(pipe, passes=[*passes, *parallel], backend=backend)
    if kind == "killed" and rank == 1:
        pipe.transformer.register_forward_hook(lambda *_: os._exit(9))  # after its first call
    prompt = "blue square moving up slow over checks" if kind == "prompts" and rank else PROMPT
    said = ""
    try:
        torch.save(clip(pipe, prompt), Path(folder) / f"clip_{rank}.pt")
    except fisopt.RankError as error:
        said = str(error)
    (Path(folder) / f"said_{rank}.txt").write_text(said)
    os._exit(0)  # a group that has lost a rank does not come to an end


if __name__ == "__main__":
    main(*sys.argv[1:])
