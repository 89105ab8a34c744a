"""Adapters for families of video diffusion transformers: names, shapes and example inputs.

One family is one module with a ``FAMILY``; fisopt finds a new module in this package by itself.
"""

from fisopt.models.family import Family, Published
from fisopt.models.guessing import Guess, guess
from fisopt.models.registry import (
    build,
    example_inputs,
    families,
    find_family,
    published,
    spec_of,
)

__all__ = [
    "Family",
    "Guess",
    "Published",
    "build",
    "example_inputs",
    "families",
    "find_family",
    "guess",
    "published",
    "spec_of",
]
