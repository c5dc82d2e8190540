"""What the suite itself relies on."""

from __future__ import annotations

import os

import pytest


@pytest.mark.xdist_group("cluster")
def test_tests_of_one_group_go_to_one_worker(request: pytest.FixtureRequest) -> None:
    """pytest-xdist knows a group by the end of the test's name. Otherwise each worker brings up every cluster, at the same time."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        assert request.node.nodeid.endswith("@cluster"), "pytest and pytest-xdist do not fit together"
