"""What an unknown name may have meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def did_you_mean(name: object, known: Iterable[str]) -> str:
    """``did you mean a or b? ``, or nothing if no known name is like it, whatever its case."""
    if not isinstance(name, str):
        return ""
    by_lower = {word.lower(): word for word in known}
    near = difflib.get_close_matches(name.lower(), by_lower, n=3, cutoff=0.5)
    return f"did you mean {' or '.join(by_lower[word] for word in near)}? " if near else ""
