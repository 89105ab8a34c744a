"""Prompts of the testbed: ``red circle moving left fast over waves``."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, fields

import numpy as np

from fisopt.errors import InputError
from fisopt.nearest import did_you_mean

COLOURS = ("red", "green", "blue", "yellow", "magenta", "cyan")
SHAPES = ("circle", "square", "triangle")
DIRECTIONS = ("left", "right", "up", "down")
SPEEDS = ("slow", "fast")
BACKGROUNDS = ("plain", "waves", "stripes", "checks", "clouds")

SLOTS: dict[str, tuple[str, ...]] = {
    "colour": COLOURS,
    "shape": SHAPES,
    "direction": DIRECTIONS,
    "speed": SPEEDS,
    "background": BACKGROUNDS,
}
"""The attributes in the order in which a prompt names them, with the words of each."""

_TEMPLATE = ("{colour}", "{shape}", "moving", "{direction}", "{speed}", "over", "{background}")
EXAMPLE = "red circle moving left fast over waves"


@dataclass(frozen=True)
class Prompt:
    """What one clip shows.

    Attributes:
        colour: One of ``COLOURS``.
        shape: One of ``SHAPES``.
        direction: Where the shape moves until it first bounces, one of ``DIRECTIONS``.
        speed: One of ``SPEEDS``.
        background: One of ``BACKGROUNDS``.
    """

    colour: str
    shape: str
    direction: str
    speed: str
    background: str

    def __post_init__(self) -> None:
        for slot, words in SLOTS.items():
            word = getattr(self, slot)
            if word not in words:
                raise InputError(_unknown_word("Prompt", slot, word, words))

    def __str__(self) -> str:
        return " ".join(part.format(**self.as_dict()) for part in _TEMPLATE)

    def as_dict(self) -> dict[str, str]:
        """Return attribute name to word, in slot order."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def indices(self) -> tuple[int, ...]:
        """Return the place of each word among the words of its slot."""
        return tuple(words.index(getattr(self, slot)) for slot, words in SLOTS.items())

    @classmethod
    def from_indices(cls, indices: tuple[int, ...] | list[int]) -> Prompt:
        """Build a prompt from the place of each word among the words of its slot."""
        words = (slot[index] for slot, index in zip(SLOTS.values(), indices, strict=True))
        return cls(*words)


def parse_prompt(text: str) -> Prompt:
    """Read ``COLOUR SHAPE moving DIRECTION SPEED over BACKGROUND``.

    Args:
        text: The prompt; case and spacing do not matter.

    Returns:
        The prompt, word by word.

    Raises:
        InputError: The text has another form or a word that the testbed was not trained on.
    """
    if not isinstance(text, str):
        raise InputError(f"parse_prompt: got {type(text).__name__}, wanted text as '{EXAMPLE}'")
    words = text.lower().split()
    if len(words) != len(_TEMPLATE):
        raise InputError(
            f"parse_prompt: got {len(words)} words in {text!r}, wanted {len(_TEMPLATE)}: "
            f"COLOUR SHAPE moving DIRECTION SPEED over BACKGROUND, as '{EXAMPLE}'"
        )
    found: dict[str, str] = {}
    for position, (part, word) in enumerate(zip(_TEMPLATE, words, strict=True), start=1):
        where = f"parse_prompt: word {position} of {text!r}"
        if not part.startswith("{"):
            if word != part:
                raise InputError(f"{where}: got {word!r}, wanted {part!r}, as in '{EXAMPLE}'")
            continue
        slot = part.strip("{}")
        if word not in SLOTS[slot]:
            raise InputError(_unknown_word(where, slot, word, SLOTS[slot]))
        found[slot] = word
    return Prompt(**found)


def all_prompts() -> Iterator[Prompt]:
    """Yield every prompt there is, the last slot changing fastest."""
    for words in itertools.product(*SLOTS.values()):
        yield Prompt(*words)


def sample_prompts(count: int, seed: int = 0) -> list[Prompt]:
    """Draw prompts that cover every word of every slot as evenly as the count allows.

    Args:
        count: How many prompts.
        seed: Equal seeds give equal prompts.

    Returns:
        The prompts; each slot's words are dealt like cards, so counts differ by one at most.
    """
    if count < 0:
        raise InputError(f"sample_prompts: got count={count}, wanted 0 or more")
    rng = np.random.default_rng(seed)
    columns = []
    for words in SLOTS.values():
        rounds = 1 + count // len(words)
        dealt = np.concatenate([rng.permutation(len(words)) for _ in range(rounds)])
        columns.append(rng.permutation(dealt[:count]))
    return [Prompt.from_indices([int(column[row]) for column in columns]) for row in range(count)]


def _unknown_word(where: str, slot: str, word: object, words: tuple[str, ...]) -> str:
    hint = did_you_mean(word, words).strip()
    wanted = f"{where}: got {word!r} as {slot}, wanted one of {', '.join(words)}"
    return f"{wanted}; {hint}" if hint else wanted
