"""Files that nobody vouches for: crafted and mutated ones are refused by name and run nothing."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.artefact.models import plain
from tests.hostile import crafted
from tests.hostile.child import Child, wrong
from tests.hostile.mutations import Corpus
from tests.hostile.whole import corpus, warm

HARMLESS = {"guards", "size", "range", "verifier", "weight_name", "value_name", "stack", "fields"}
"""Crafted entries that are not looked at: the rest of the file is whole, and is read."""
MUTANTS = 100

pytestmark = pytest.mark.xdist_group("exported")  # captured in one process


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return corpus(tmp_path_factory.mktemp("whole"), lambda passes: plain(passes)[0], onnx=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("read")


@pytest.fixture(scope="module")
def child(whole: Corpus, folder: Path) -> Iterator[Child]:
    held = Child(folder, warm(whole))
    yield held
    held.close()


def test_crafted_artefacts_run_nothing(whole: Corpus, folder: Path, child: Child) -> None:
    """Each tries to run code in its own way; their digests fit."""
    crafted.canary(folder)
    files = [*crafted.archives(whole.whole["pt2"], folder)]
    files += crafted.models(whole.whole["pt2"], folder)
    for file in files:
        answer = child.read("artefact", file)
        assert wrong(answer) is None, file.name
        harmless = file.stem in HARMLESS or file.stem.endswith("_inside")
        assert (answer["outcome"] == "read") == harmless, (file.name, answer)
    assert not (folder / "ran").exists()


def test_the_crafted_artefacts_do_run_code_elsewhere(whole: Corpus, tmp_path: Path) -> None:
    """In torch's own reader, from whose parts they are made."""
    crafted.canary(tmp_path)
    files = {file.stem: file for file in crafted.archives(whole.whole["pt2"], tmp_path)}
    with contextlib.suppress(Exception):
        torch.export.load(files["inputs_pickled"])
    assert (tmp_path / "ran").exists()


def test_mutated_files_are_refused_by_name(whole: Corpus, folder: Path, child: Child) -> None:
    """The first of the 5,000 that ``make hostile`` reads."""
    read = 0
    for seed in range(MUTANTS):
        kind, path = whole.mutated(seed, folder)
        answer = child.read(kind, path)
        assert wrong(answer) is None, (seed, kind, answer)
        read += answer["outcome"] == "read"
    assert 0 < read < MUTANTS // 2
