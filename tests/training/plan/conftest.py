"""A run of invented rows, made once."""

from pathlib import Path

import pytest

from tests.training.small_run import make_small_run


@pytest.fixture(scope="session")
def small_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run.yaml; copy its folder before changing anything."""
    return make_small_run(tmp_path_factory.mktemp("plan") / "small")
