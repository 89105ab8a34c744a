"""Noise floors: the dense model as it was, computed otherwise; what differs there is no loss."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from fisopt.comparison.making import Maker

KERNEL, BATCH = "dense, another kernel", "dense, in a batch"
FLOORS = (KERNEL, BATCH)


def clips(maker: Maker, index: int, notes: dict[str, None]) -> Iterator[tuple[str, np.ndarray]]:
    """The dense clip of a prompt, made in other ways, by the name of the way.

    The model is not captured and not compiled.  A way that the pipeline does not take is left
    out with a note.

    Args:
        maker: makes the clips; its pipeline holds its own transformers.
        index: the prompt.
        notes: where a way that is left out is noted.
    """

    def by_another_kernel(index: int) -> np.ndarray:
        other = SDPBackend.EFFICIENT_ATTENTION if torch.cuda.is_available() else SDPBackend.MATH
        with sdpa_kernel([other, SDPBackend.MATH], set_priority=True):
            return maker.clip(index)[0]

    for name, make in ((KERNEL, by_another_kernel), (BATCH, maker.in_a_batch)):
        try:
            clip = make(index)
        except (TypeError, ValueError, RuntimeError) as error:
            notes[f"no noise floor {name!r}: {error}"] = None
        else:
            yield name, clip
