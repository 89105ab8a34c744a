"""The style of pages, as checks that proselint runs next to its own.

Subject first, and it acts: "fisopt raises", not "it is refused".  One thought a sentence.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

from proselint.checks import __register__ as usual
from proselint.config import DEFAULT
from proselint.registry import CheckRegistry
from proselint.registry.checks import Check, Padding
from proselint.registry.checks.engine import Fancy
from proselint.registry.checks.types import Existence, ExistenceSimple, PreferredForms
from proselint.tools import LintFile

FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
MADE = re.compile(r"<!-- results.*?<!-- end of results -->", re.DOTALL)
"""What `make results` writes: tables and the lines above them."""
CODE = re.compile(r"`[^`]*`|\]\([^)]*\)")
HEADING = re.compile(r"^#.*$", re.MULTILINE)
LEFT_OUT = {"typography": False}
"""Marks of code and of tables, not of prose."""

PREFERRED = {
    "beside": "next to, or besides",
    "in the place of": "instead of",
    "outside of": "outside",
    "inside of": "inside",
    "in order to": "to",
    "of one's own": "of your own",
    "utili[sz]e": "use",
    "leverage[sd]?": "use",
    "shall": "will, or must",
}
NOBODY_ACTS = r"(?:is|are|was|were|be|been)\s+(?:said|told(?!\s+apart)|refused)"
SAYS_NOTHING = ("simply", "obviously", "basically", r"seamless\w*")
OWN = (
    Check(
        check_type=PreferredForms(items=PREFERRED),
        path="fisopt.preferred",
        message="Write '{}' instead of '{}'.",
    ),
    Check(
        check_type=ExistenceSimple(pattern=Padding.WORDS_IN_TEXT.format(NOBODY_ACTS)),
        engine=Fancy(),
        path="fisopt.actor",
        message="Say who does it, subject first: '{}'.",
    ),
    Check(
        check_type=Existence(items=SAYS_NOTHING),
        path="fisopt.empty",
        message="'{}' says nothing: leave it out.",
    ),
)


@cache
def _registered() -> None:
    CheckRegistry().register_many((*usual, *OWN))


def found(name: str, text: str) -> list[str]:
    """What proselint and the project's checks say of a page, a line each.

    Args:
        name: of the page.
        text: its Markdown; code, links, headings and generated tables are not read.
    """
    _registered()
    for left_out, mark in ((FENCE, " "), (MADE, " "), (HEADING, " "), (CODE, "~")):
        text = left_out.sub(lambda match, mark=mark: re.sub(r"[^\n]", mark, match[0]), text)
    config = {"max_errors": 100, "checks": {**DEFAULT["checks"], **LEFT_OUT, "fisopt": True}}
    results = LintFile(name, text).lint(config)
    return [f"{name}:{r.pos[0] - 1}: {r.check_result.message}" for r in results]


def of_page(page: Path) -> list[str]:
    """The same for a file."""
    return found(page.name, page.read_text())
