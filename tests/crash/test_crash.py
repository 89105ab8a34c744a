"""Some kills of every small writer and of an artefact; `make crash` does five hundred of all."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.crash import writers
from tests.crash.trial import RIGHT, Trials

SMALL = ("schedules", "mask_tables", "recipes", "kernels", "choices")


@pytest.mark.parametrize("kind", SMALL)
def test_small_files_are_old_or_new(kind: str, tmp_path: Path) -> None:
    trials = Trials(getattr(writers, kind)(tmp_path), seed=0)
    outcomes = [trials.one() for _ in range(12)]
    full = [trials.full() for _ in range(4)]
    assert [o for o in (*outcomes, *full) if o.kind not in RIGHT] == []
    assert {o.kind for o in outcomes} == set(RIGHT)
    assert "old" in {o.kind for o in full}


def test_an_artefact_is_old_or_new(tmp_path: Path) -> None:
    trials = Trials(writers.texts(tmp_path), seed=0)
    outcomes = [trials.one() for _ in range(5)]
    assert [o for o in outcomes if o.kind not in RIGHT] == []
