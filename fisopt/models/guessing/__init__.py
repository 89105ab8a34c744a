"""Models without an adapter: where their blocks are and what their grid is, found by trial."""

from fisopt.models.guessing.guess import Guess, guess, spec_for

__all__ = ["Guess", "guess", "spec_for"]
