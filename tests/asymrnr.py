"""Where the tables that AsymRnR's authors have published are, if they are on this machine.

They are not part of fisopt.  FISOPT_ASYMRNR_DATA names their folder; by default it is
``shared/data/asymrnr`` beside the project.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

_BESIDE = Path(__file__).parents[2] / "shared" / "data" / "asymrnr"


def authors_data() -> Path:
    """The folder of the authors' tables and thresholds; it need not exist."""
    return Path(os.environ.get("FISOPT_ASYMRNR_DATA", _BESIDE))


needs_authors_data = pytest.mark.skipif(
    not authors_data().is_dir(), reason="the authors' tables are not here: FISOPT_ASYMRNR_DATA"
)
