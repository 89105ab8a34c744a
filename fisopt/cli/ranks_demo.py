"""``fisopt demo --ranks``: processes of this machine that make the demo's clips together."""

from __future__ import annotations

import hashlib
import os
from contextlib import ExitStack
from dataclasses import replace
from datetime import timedelta
from typing import Any

import torch
from rich.console import Console
from rich.text import Text
from torch import distributed
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from fisopt.cli import demo
from fisopt.cli.console import stderr, stdout
from fisopt.errors import FisoptError, RankError
from fisopt.passes.sequence_parallel import SequenceParallel
from fisopt.passes.sharding.agreement import compare
from fisopt.passes.sharding.group import ranks_of

MINUTES = 10
"""So long a rank waits for the others."""


def run(settings: demo.Settings, ranks: int) -> None:
    """Run the demo in some processes; the first one prints and writes.

    Passes that divide nothing among ranks are followed by a `SequenceParallel`.

    Raises:
        RankError: a rank has failed, or ended.
    """
    demo.check_settings(settings)
    if not (distributed.is_available() and distributed.is_gloo_available()):
        raise RankError(
            "--ranks: this torch is built without gloo, the backend of ranks on a CPU; install "
            "one with gloo, such as those of pytorch.org"
        )
    if not any(each.stage in ("branches", "ranks") for each in settings.passes):
        settings = replace(settings, passes=(*settings.passes, SequenceParallel()))
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=ranks,
        run_id="fisopt",
        rdzv_backend="c10d",
        rdzv_endpoint="127.0.0.1:0",
        max_restarts=0,
    )
    try:
        ended: dict[int, Any] = elastic_launch(config, _rank)(settings)
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        raise RankError(
            f"rank {rank} of {ranks} ended with status {failure.exitcode}; its own message comes "
            "first"
        ) from error
    for rank, said in sorted(ended.items()):
        if said is not None:
            raise RankError(f"rank {rank} of {ranks}: {said}")


def _rank(settings: demo.Settings) -> str | None:
    """What a rank runs; returns what the error says that it ended with."""
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // int(os.environ["WORLD_SIZE"])))
    distributed.init_process_group("gloo", timeout=timedelta(minutes=MINUTES))
    first = distributed.get_rank() == 0
    try:
        with ExitStack() as stack:
            nowhere = Console(file=stack.enter_context(open(os.devnull, "w", encoding="utf-8")))
            out, err = (stdout(), stderr()) if first else (nowhere, nowhere)
            clips = demo.run(settings, out, err, writes=first)
            made = hashlib.sha256(b"".join(clip.frames.tobytes() for clip in clips)).hexdigest()
            compare({"the clips' sha256": made}, ranks_of(None, None, "demo").group)
            count = distributed.get_world_size()
            said = f"{count} ranks made the same clips; on one machine their seconds say nothing"
            out.print(Text(said))
    except FisoptError as error:
        return str(error)
    finally:
        distributed.destroy_process_group()
    return None
