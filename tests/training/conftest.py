"""A tiny model with its shards."""

import pytest

from tests.training.harness import Project, make_project


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Return a project with a Llama of 0.1 M weights and packs of 128 tokens."""
    layers = {
        "hidden_size": 32,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    }
    return make_project(tmp_path_factory.mktemp("tiny"), rows_per_family=60, seq_len=128, layers=layers)
