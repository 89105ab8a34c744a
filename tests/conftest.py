"""Fixtures shared by the tests: tiny models, each captured once a process."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import cache

import pytest
import torch
from hypothesis import settings

import fisopt
from fisopt import ModelSpec, Program
from tests import plain_dit
from tests.zoo import Case, zoo

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # Triton reads it once, when it is imported

GRID = (5, 3, 4)

settings.register_profile("fisopt", deadline=None, max_examples=60, derandomize=True)
settings.load_profile("fisopt")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--exhaustive", action="store_true", help="sweeps in full: an hour and more")


@pytest.fixture(scope="session")
def exhaustive(request: pytest.FixtureRequest) -> bool:
    """Whether sweeps run in full."""
    return bool(request.config.getoption("--exhaustive"))


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep the tests of one model in one worker, so that it is captured once."""
    for item in items:
        params = getattr(getattr(item, "callspec", None), "params", {})
        if isinstance(case := params.get("case"), Case):
            item.add_marker(pytest.mark.xdist_group(case.name))
        elif isinstance(form := params.get("form"), plain_dit.Form):
            item.add_marker(pytest.mark.xdist_group(str(form)))
        elif "wan" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.xdist_group("wan"))


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    """Tiny models run faster on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@cache
def captured(name: str) -> Program:
    """The Program of a tiny model, every size open, batch of two."""
    case = zoo()[name]
    return fisopt.capture(case.model, case.inputs(*GRID, batch=2), dynamic="all")


@cache
def plain_captured(form: plain_dit.Form) -> tuple[plain_dit.PlainDiT, Program]:
    """A plain model and its Program, every size open, batch of two, grid 5x2x3."""
    model, grid = plain_dit.build(form), (5, 2, 3)
    inputs = plain_dit.inputs(form, *grid, batch=2)
    spec = ModelSpec(blocks=("layers.*",), grid=grid)
    return model, fisopt.capture(model, inputs, spec=spec, dynamic="all")


@pytest.fixture
def program(case: Case) -> Program:
    """The Program of the test's ``case``."""
    return captured(case.name)


@pytest.fixture
def wan() -> Program:
    """The Program of the tiny Wan, for tests that need some video transformer."""
    return captured("wan")
