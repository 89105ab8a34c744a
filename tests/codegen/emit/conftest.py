"""The interpreter's process, one a session."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.codegen.emit.interpreter import Interpreter, interpreter


@pytest.fixture(scope="session")
def triton_interpreter(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Interpreter]:
    """Triton's interpreter in a process of its own."""
    pytest.importorskip("triton")
    with interpreter(tmp_path_factory.mktemp("cache")) as process:
        yield process
