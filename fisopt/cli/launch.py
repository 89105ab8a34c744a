"""What launches a command: one process, or a launcher that starts several."""

from __future__ import annotations

import os

from fisopt.errors import OptionError


def check_alone(command: str) -> None:
    """Refuse to run in one of several processes: they would do the same, and write one folder.

    Raises:
        OptionError: a launcher such as torchrun has started several.
    """
    said = os.environ.get("WORLD_SIZE", "1")
    if said.isdigit() and int(said) > 1:
        raise OptionError(
            f"{command} runs in one process, and its launcher started {said} (WORLD_SIZE), which "
            "would all write the same folder; start it alone, or train in several processes from "
            "Python: torch.distributed.init_process_group(), then fisopt.distill.sparse or "
            "fisopt.distill.consistency"
        )
