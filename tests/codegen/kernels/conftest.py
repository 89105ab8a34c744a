"""Kernels run on the GPU where there is one, else in Triton's interpreter on the CPU."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec

import pytest
import torch

collect_ignore_glob = [] if find_spec("triton") else ["test_*.py"]


@pytest.fixture(autouse=True)
def _poison() -> Iterator[None]:
    """Memory that a kernel does not write holds NaN, or the largest integer."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(autouse=True)
def _device() -> Iterator[None]:
    """Tensors are made where kernels run."""
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        yield
