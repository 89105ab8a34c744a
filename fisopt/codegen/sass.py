"""What the machine code of a kernel says, as cuobjdump lists it: SASS."""

from __future__ import annotations

import re
from collections import Counter

_LINE = re.compile(r"^\s+/\*([0-9a-f]{4,})\*/\s+(.*?)\s*;", re.MULTILINE)
_TENSOR_CORE = re.compile(r"\b(HGMMA|HMMA|UTCHMMA|UTCMMA|UTCQMMA)\b")
_ASYNC_COPY = re.compile(r"\b(UTMALDG|LDGSTS)\b")
_BRANCH = re.compile(r"\bBRA\b.*\b0x([0-9a-f]+)")
_WAIT = re.compile(r"(?<![A-Z])(DEPBAR|SYNCS\.PHASECHK)")
_BARRIER = re.compile(r"\bBAR\.SYNC\b")
_EXIT = re.compile(r"^EXIT\b")


def instructions(listing: str) -> list[tuple[int, str]]:
    """Address and text of each instruction."""
    return [(int(address, 16), text) for address, text in _LINE.findall(listing)]


def tensor_core(code: list[tuple[int, str]]) -> dict[str, int]:
    """How many tensor-core instructions there are, by name."""
    return dict(Counter(name for _, text in code for name in _TENSOR_CORE.findall(text)))


def async_copies(code: list[tuple[int, str]]) -> dict[str, int]:
    """How many instructions copy to shared memory while others compute, by name."""
    return dict(Counter(name for _, text in code for name in _ASYNC_COPY.findall(text)))


def main_loop(code: list[tuple[int, str]]) -> dict[str, int]:
    """Instructions, waits and barriers of one turn of the main loop.

    The main loop is that with tensor-core instructions that waits for all threads least often, of
    two alike the shorter: one that masks nothing.  Waits are those for copies and for tensor
    cores, barriers those of all threads of a program.  Empty if there is no such loop.
    """
    found: list[dict[str, int]] = []
    for end, branch in code:
        target = _BRANCH.search(branch)
        if target and int(target[1], 16) < end:
            body = [text for place, text in code if int(target[1], 16) <= place <= end]
            # a retry that stands behind the end of the program jumps back too: that is no loop
            left = any(_EXIT.match(text) for text in body)
            if not left and any(_TENSOR_CORE.search(text) for text in body):
                waits, barriers = (sum(bool(p.search(t)) for t in body) for p in (_WAIT, _BARRIER))
                found.append({"instructions": len(body), "waits": waits, "barriers": barriers})
    return min(found, key=lambda loop: (loop["barriers"], loop["instructions"]), default={})
