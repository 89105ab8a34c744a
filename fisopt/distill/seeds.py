"""Seeds: what is random anywhere in a run follows from the run's seed and where that is."""

from __future__ import annotations

from random import Random

import torch


def generator(device: torch.device, *place: object) -> torch.Generator:
    """A generator for one place of a run, such as its seed, a step and a micro-batch."""
    seed = Random(repr(place)).getrandbits(62)
    return torch.Generator(device).manual_seed(seed)
