"""Fixtures of the tests of what runs."""

from __future__ import annotations

from typing import Any

import pytest

from fisopt.runtime import captures


@pytest.fixture
def captured(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The models that were captured, one entry a capture."""
    made: list[Any] = []
    real = captures.capture

    def capture(*args: Any) -> Any:
        made.append(args[0])
        return real(*args)

    monkeypatch.setattr(captures, "capture", capture)
    return made
