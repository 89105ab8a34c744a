"""One of two processes of which one ends, or has other facts; prints what the first is told."""

from __future__ import annotations

import os
import sys

import torch
from torch import distributed

from fisopt.errors import RankError
from fisopt.passes.sharding.agreement import compare, together

functional = torch.ops._c10d_functional


def exchange() -> None:
    """Send one number to each rank."""
    sent = functional.all_to_all_single(torch.arange(2.0), [1, 1], [1, 1], "0")
    functional.wait_tensor(sent)


def main(kind: str) -> None:
    """Exchange once, then do what is asked for."""
    distributed.init_process_group("gloo")
    rank = distributed.get_rank()
    exchange()
    if kind == "lost" and rank == 1:
        os._exit(9)
    try:
        with together(2):
            if kind == "lost":
                exchange()
            compare({"passes": "[]", "weights": f"{rank}{rank}"}, "0")
    except RankError as error:
        print(error, flush=True)
    os._exit(0)  # a group that has lost a rank does not come to an end


if __name__ == "__main__":
    main(sys.argv[1])
