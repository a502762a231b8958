"""Conversations as JSON lines."""

import json
from pathlib import Path
from typing import Any

import pytest

from data_tools.convert import convert
from data_tools.errors import SourceError
from data_tools.settings import load_data_settings
from tests.data_tools.small_data import write_corpus, write_settings


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_conversation_is_a_line_with_where_it_comes_from(tmp_path: Path) -> None:
    settings = load_data_settings(write_corpus(tmp_path, count=6))
    counts = convert(settings, tmp_path / "out" / "all.jsonl")
    assert counts == {"tasks": (6, 0), "alpaca": (7, 1), "chats": (6, 0)}
    lines = read(tmp_path / "out" / "all.jsonl")
    assert len(lines) == 19
    assert lines[0] == {
        "messages": [
            {
                "role": "user",
                "content": "Say where the person of the sentence is (task001_place).\n\n"
                "Ada is at the harbour in hour 0.",
            },
            {"role": "assistant", "content": "the harbour"},
        ],
        "source": "tasks",
        "family": "multi_task",
        "task": "task001_place",
        "category": "Text Matching",
        "language": "English",
        "references": ["the harbour", "harbour"],
        "origin": "task001_place.json#0",
    }
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["all.jsonl"]


def test_what_was_converted_converts_to_itself(tmp_path: Path) -> None:
    convert(load_data_settings(write_corpus(tmp_path, count=6)), tmp_path / "all.jsonl")
    path = write_settings(tmp_path, sources=[{"path": "all.jsonl", "format": "messages"}])
    convert(load_data_settings(path), tmp_path / "again.jsonl")
    first, second = (read(tmp_path / name) for name in ("all.jsonl", "again.jsonl"))
    assert [line["messages"] for line in first] == [line["messages"] for line in second]


def test_weights_of_messages_are_kept(tmp_path: Path) -> None:
    write_corpus(tmp_path, count=3)
    turns = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b", "weight": 0},
        {"role": "user", "content": "c"},
        {"role": "assistant", "content": "d", "weight": 1},
    ]
    (tmp_path / "raw" / "weighted.jsonl").write_text(json.dumps({"messages": turns}))
    path = write_settings(tmp_path, sources=[{"path": "raw/weighted.jsonl", "format": "messages"}])
    convert(load_data_settings(path), tmp_path / "out.jsonl")
    assert read(tmp_path / "out.jsonl")[0]["messages"] == turns


def test_a_missing_file_leaves_nothing(tmp_path: Path) -> None:
    write_corpus(tmp_path, count=3)
    sources = [{"path": "raw/alpaca.json", "format": "alpaca"}, {"path": "none.jsonl", "format": "messages"}]
    with pytest.raises(SourceError, match=r"none\.jsonl: no such file"):
        convert(load_data_settings(write_settings(tmp_path, sources=sources)), tmp_path / "out.jsonl")
    assert not (tmp_path / "out.jsonl").exists()
