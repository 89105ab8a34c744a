"""Fixtures shared by the tests: tiny models, each captured once a process."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read once, when a test's import needs Triton

from hypothesis import settings
from torch import nn
from torch.utils._pytree import tree_leaves

import fisopt
from fisopt import ModelSpec, Program
from fisopt.models import testbed
from fisopt.rewrite.tracing.kept import Keeping
from fisopt.runtime import captures
from fisopt.runtime.disk import on_disk
from tests import plain_dit
from tests.zoo import Case, forms

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
        elif isinstance(name := params.get("name"), str) and name in forms():
            item.add_marker(pytest.mark.xdist_group(name))
        elif isinstance(name, str) and name in plain_dit.FORMS:
            item.add_marker(pytest.mark.xdist_group(str(plain_dit.FORMS[name])))
        elif isinstance(form := params.get("form"), plain_dit.Form):
            item.add_marker(pytest.mark.xdist_group(str(form)))
        elif "wan" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.xdist_group("wan"))
        elif isinstance(form := getattr(item.module, "FORM", None), plain_dit.Form):
            item.add_marker(pytest.mark.xdist_group(str(form)))


@pytest.fixture(scope="session", autouse=True)
def _rare_collection() -> Iterator[None]:
    """Traces make millions of objects that live: looking through them often is a tenth of a run."""
    threshold = gc.get_threshold()
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)
    yield
    gc.set_threshold(*threshold)


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    """Tiny models run faster on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session", autouse=True)
def _nothing_on_disk() -> Iterator[None]:
    """Captures are made, not read from what another run has left on the disk."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(on_disk, "captures", lambda: None)
        yield


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def captured(name: str) -> Program:
    """The Program of a tiny model, batch of two."""
    return forms()[name].captured(*GRID, batch=2)


@cache
def plain_captured(form: plain_dit.Form) -> tuple[plain_dit.PlainDiT, Program]:
    """A plain model and its Program, batch of two, grid 5x2x3."""
    model, grid = plain_dit.build(form), (5, 2, 3)
    inputs = plain_dit.inputs(form, *grid, batch=2)
    spec = ModelSpec(blocks=("layers.*",), grid=grid)
    return model, fisopt.capture(model, inputs, spec=spec)


@pytest.fixture
def program(case: Case) -> Program:
    """The Program of the test's ``case``."""
    return captured(case.name)


@pytest.fixture
def wan() -> Program:
    """The Program of the tiny Wan, for tests that need some video transformer."""
    return captured("wan")


@pytest.fixture
def captured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Optimised modules of one model and one form of inputs share one capture, in all tests.

    For tests of what is around a model that does not change: commands, pipelines, pages.
    """
    real = captures.capture

    def capture(
        model: nn.Module, inputs: dict[str, Any], spec: ModelSpec, keeping: Keeping
    ) -> Program:
        leaves = [x for x in tree_leaves(inputs) if isinstance(x, torch.Tensor)]
        form = tuple((x.shape, x.dtype, x.device) for x in leaves)
        key = (model, tuple(inputs), form, spec.blocks)
        if key not in _CAPTURED:
            _CAPTURED[key] = real(model, inputs, spec, keeping)
        return _CAPTURED[key]

    monkeypatch.setattr(captures, "capture", capture)


_CAPTURED: dict[Any, Program] = {}


@cache
def _transformer(path: object) -> nn.Module:
    model: nn.Module = _LOAD(path).transformer  # type: ignore[arg-type]
    return model


_LOAD = testbed.load_testbed


@pytest.fixture
def one_testbed(captured_once: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Testbeds that are loaded from one folder share their transformer, which is captured once."""

    def load(path: Any = None) -> Any:
        pipeline = _LOAD(path)
        pipeline.transformer = _transformer(path)
        return pipeline

    monkeypatch.setattr(testbed, "load_testbed", load)
