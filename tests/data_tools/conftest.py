"""A shard folder of the small corpus, made once for all tests that read one."""

import shutil
from pathlib import Path

import pytest

from data_tools.pack import pack
from data_tools.settings import load_data_settings
from tests.data_tools.small_data import write_corpus


@pytest.fixture(scope="session")
def sealed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a sealed folder; its data.yaml lies beside it."""
    folder = tmp_path_factory.mktemp("small")
    settings = load_data_settings(write_corpus(folder))
    pack(settings)
    return settings.output


@pytest.fixture
def copy(sealed: Path, tmp_path: Path) -> Path:
    """Return a copy of the sealed folder that a test may damage."""
    shutil.copytree(sealed, tmp_path / "copy", ignore=shutil.ignore_patterns("parts"))
    return tmp_path / "copy"
