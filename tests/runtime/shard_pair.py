"""One of two processes that hold half of the weights each; prints what came of it as JSON."""

from __future__ import annotations

import copy
import json
import os
import sys
from typing import Any

import torch
from torch import distributed

import fisopt
from tests.zoo import zoo


def main(kind: str, backend: Any) -> None:
    """Compare a model with the same one whose weights are divided, then give it other weights."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo")
    case = zoo()[kind]
    model, other, inputs = case.model, copy.deepcopy(case.model), case.inputs(4, 2, 3)
    blocks = case.blocks_of(model)
    whole = sum(w.numel() for b in blocks for w in b.parameters())
    passes: list[fisopt.Pass] = [fisopt.FrameInterleave(stride=2)]
    divided = [*passes, fisopt.SequenceParallel(shard_weights=True)]
    errors = []
    with torch.no_grad():
        want = fisopt.optimize(model, passes, spec=case.spec, backend="eager")(**inputs)[0]
        fast = fisopt.optimize(model, divided, spec=case.spec, backend=backend)
        errors.append((fast(**inputs)[0] - want).abs().max())
        again = fisopt.optimize(fast, divided, backend="eager")
        errors.append((again(**inputs)[0] - want).abs().max())
        next(case.blocks_of(other)[0].parameters()).add_(distributed.get_rank())
    held: Any = [w for b in blocks for w in b.parameters()]
    said = ""
    try:
        fisopt.optimize(other, divided, spec=case.spec, backend="eager")
    except fisopt.RankError as error:
        said = str(error)
    try:
        fisopt.optimize(fast, passes, backend="eager")(**inputs)
    except fisopt.InputError as error:
        said += str(error)
    told = {
        "errors": [*map(float, errors)],
        "held": sum(w.to_local().numel() for w in held) / whole,
        "report": str(fast.report),
        "said": said,
    }
    print(json.dumps(told), flush=True)
    os._exit(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
