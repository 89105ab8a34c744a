#!/usr/bin/env python
"""Keep the lines of pages short: wrap every paragraph that has a line of more than 120 characters.

    python scripts/wrap.py [--check] [PAGE ...]

Code, tables, headings, pictures and what `make results` writes stay as they are.
"""

from __future__ import annotations

import argparse
import re
import sys
import textwrap
from pathlib import Path

ROOT = Path(__file__).parents[1]
WIDTH = 120
ITEM = re.compile(r"^(\s*)([-*+]|\d+\.)\s+")
PROSE = re.compile(r"^(?!\s{4}|\s*\||#|<!--|!\[|:::|\s*$)")
BEGINS_ANOTHER = re.compile(r"^([-*+#>|]|\d+\.)(\s|$)")


def pages() -> list[Path]:
    """Every page of the repository."""
    mine = [page for page in ROOT.glob("*.md") if page.name != "CHANGELOG.md"]  # a change, a line
    return [*sorted(mine), *sorted((ROOT / "docs").rglob("*.md"))]


def wrapped(text: str, width: int = WIDTH) -> str:
    """A page whose paragraphs fit."""
    made: list[str] = []
    paragraph: list[str] = []
    within = ""
    for line in [*text.split("\n"), ""]:
        opens = line.lstrip().startswith("```")
        kept = bool(within) or opens or line.startswith("<!-- results")
        if kept or not PROSE.match(line) or (paragraph and ITEM.match(line)):
            made += _fitted(paragraph, width)
            paragraph = []
        if opens:
            within = "" if within == "code" else within or "code"
        elif line.startswith("<!-- results"):
            within = "results"
        elif line.startswith("<!-- end of results"):
            within = ""
        if kept or not PROSE.match(line):
            made.append(line)
        else:
            paragraph.append(line)
    return "\n".join(made[:-1])


def _fitted(paragraph: list[str], width: int) -> list[str]:
    if all(len(line) <= width for line in paragraph):
        return paragraph
    found = ITEM.match(paragraph[0])
    first = found[0] if found else re.match(r"\s*", paragraph[0])[0]  # type: ignore[index]
    words = " ".join(line.strip() for line in paragraph)[len(first.strip()) :].strip()
    lines = textwrap.wrap(
        words,
        width,
        initial_indent=first,
        subsequent_indent=" " * len(first),
        break_long_words=False,
        break_on_hyphens=False,
    )
    for index in range(1, len(lines)):
        while BEGINS_ANOTHER.match(lines[index].strip()):  # it would become a list or a heading
            lines[index - 1], word = lines[index - 1].rsplit(" ", 1)
            lines[index] = " " * len(first) + word + " " + lines[index].strip()
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("pages", nargs="*", type=Path)
    parser.add_argument("--check", action="store_true", help="change nothing, fail if one differs")
    arguments = parser.parse_args()
    wide = []
    for page in arguments.pages or pages():
        text = page.read_text()
        if (fitting := wrapped(text)) != text:
            wide.append(page)
            if not arguments.check:
                page.write_text(fitting)
    if arguments.check and wide:
        sys.exit(f"run scripts/wrap.py: too wide are {', '.join(map(str, wide))}")


if __name__ == "__main__":
    main()
