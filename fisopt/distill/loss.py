"""How far a prediction is from its target."""

from __future__ import annotations

from torch import Tensor

EPSILON = 1e-4
"""Below this the distance is quadratic."""


def distance(got: Tensor, wanted: Tensor) -> Tensor:
    """Root mean square difference of each clip (pseudo-Huber), [clips].

    Its gradient has the same length for every clip, so that a hard one counts no more than an
    easy one.
    """
    square = (got.float() - wanted.float()).square().flatten(1).mean(1)
    return (square + EPSILON**2).sqrt() - EPSILON
