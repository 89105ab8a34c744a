"""How the tests are shared out among processes."""

from __future__ import annotations

import pytest

from tests.zoo import Case, zoo


@pytest.mark.parametrize("case", [zoo()["wan"]], ids=["wan"])
def test_tests_of_a_model_stay_in_one_process(case: Case, request: pytest.FixtureRequest) -> None:
    """Else every process captures every model."""
    if not hasattr(request.config, "workerinput"):
        pytest.skip("one process runs all tests")
    assert request.node.nodeid.endswith(f"@{case.name}")
