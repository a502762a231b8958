"""What all tests share: where the real rows and tokenizers lie."""

import os
from pathlib import Path

import pytest
from hypothesis import settings

# How long an example takes says how busy the machine is.
settings.register_profile("patient", settings(), deadline=None)
settings.load_profile("patient")

ROOT = Path(__file__).resolve().parent.parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files whose tests take longest, so that no core waits for another at the end."""
    items.sort(key=lambda item: "training" not in item.path.parts)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Return the folder of real dataset rows and tokenizers, which lies beside the project.

    Elsewhere a test that needs it is skipped; in CI its absence is a failure.
    """
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        message = f"needs the shared data folder at {folder}"
        if os.environ.get("CI") == "true":
            pytest.fail(message)
        pytest.skip(message)
    return folder
