"""Settings files: what is read, where paths are anchored, and what is said about mistakes."""

import math
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import ValidationError

from data_tools.errors import SettingsError
from data_tools.settings import (
    DataSettings,
    Settings,
    Splits,
    did_you_mean,
    dump_settings,
    load_data_settings,
    load_settings,
)

MINIMAL: dict[str, Any] = {
    "output": "out",
    "tokenizer": "tok",
    "seq_len": 128,
    "sources": [{"path": "raw/*.json", "format": "alpaca"}],
}


def write(folder: Path, **changes: Any) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / "data.yaml"
    values = {key: value for key, value in (MINIMAL | changes).items() if value != "absent"}
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    return path


def report(path: Path, *overrides: str) -> list[str]:
    with pytest.raises(SettingsError) as caught:
        load_data_settings(path, overrides)
    return str(caught.value).splitlines()


def test_defaults_are_those_of_the_design(tmp_path: Path) -> None:
    settings = load_data_settings(write(tmp_path))
    assert (settings.seed, settings.train_on, settings.overlong, settings.dedup) == (
        17,
        "assistant",
        "split",
        "exact",
    )
    assert settings.chat_template is None
    assert settings.max_reject_rate == 0.05
    assert settings.splits == Splits(validation=0.01, test=0.01, unseen_tasks=())
    source = settings.sources[0]
    assert (source.name, source.weight, source.max_per_task) == ("alpaca", 1.0, None)


def test_paths_in_the_file_are_relative_to_the_file_and_overrides_to_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setenv("HOME", "/home/somebody")
    path = write(
        tmp_path / "there",
        chat_template="chat/mine.jinja",
        tokenizer="~/tok",
        sources=[{"path": ["a.jsonl", "../b.jsonl"], "format": "messages"}],
    )
    settings = load_data_settings(path, ["output=made", "sources.0.path.1=c.jsonl"])
    assert settings.output == here / "made"
    assert settings.tokenizer == Path("/home/somebody/tok")
    assert settings.chat_template == str(tmp_path / "there/chat/mine.jinja")
    assert settings.sources[0].path == (tmp_path / "there/a.jsonl", here / "c.jsonl")
    assert load_data_settings(path).sources[0].path[1] == tmp_path / "b.jsonl"


def test_the_name_of_a_built_in_template_is_no_path(tmp_path: Path) -> None:
    assert load_data_settings(write(tmp_path, chat_template="vicuna")).chat_template == "vicuna"


def test_overrides_reach_into_lists_and_make_sections(tmp_path: Path) -> None:
    settings = load_data_settings(
        write(tmp_path), ["sources.0.weight=2", "splits.unseen_tasks=[a*, b]", "splits.test=5e-2", "seed=3"]
    )
    assert settings.sources[0].weight == 2.0
    assert settings.splits == Splits(validation=0.01, test=0.05, unseen_tasks=("a*", "b"))
    assert settings.seed == 3


def test_environment_variables_are_read_where_they_are_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SCRATCH", "/scratch/me")
    path = write(tmp_path, output="${oc.env:SCRATCH}/mix")
    assert load_data_settings(path).output == Path("/scratch/me/mix")
    monkeypatch.delenv("SCRATCH")
    assert "'SCRATCH' not found" in report(path)[0]


def test_an_unknown_key_names_its_line_and_what_was_meant(tmp_path: Path) -> None:
    path = write(tmp_path, seqlen=12)
    assert report(path) == [f"{path}:7: seqlen: unknown key; did you mean 'seq_len'?"]


def test_a_key_of_another_section_is_pointed_to(tmp_path: Path) -> None:
    assert report(write(tmp_path), "max_per_task=3") == [
        "command line: max_per_task: unknown key; did you mean 'sources.0.max_per_task'?"
    ]


def test_all_mistakes_stand_in_one_report(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        train_on="everything",
        splits={"validation": 0.6, "test": 0.5},
        sources=[
            {"path": "a", "format": "alpaca", "weight": -1},
            {"path": "b", "format": "alpaca", "nam": "second"},
            3,
        ],
    )
    text = "\n".join(report(path, "seq_len=long", "overlong"))
    for part in (
        "command line: 'overlong' is no setting; expected key=value",
        "command line: seq_len: got 'long'; expected an integer",
        "train_on: got 'everything'; expected 'assistant', 'last_assistant' or 'all'",
        "nothing is left to train on: got 1.1",
        "sources.0.weight: got -1; expected greater than 0",
        "sources.1.nam: unknown key; did you mean 'name'?",
        "sources.2: got 3; expected keys and values of SourceSettings",
        "2 sources are named 'alpaca'",
    ):
        assert part in text


def test_both_branches_of_a_choice_are_one_mistake(tmp_path: Path) -> None:
    (line,) = report(write(tmp_path, splits={"unseen_tasks": True}))
    assert line.endswith("splits.unseen_tasks: got True; expected a list or a number")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seq_len": True}, "seq_len: got True; expected an integer"),
        ({"seq_len": 12.0}, "seq_len: got 12.0; expected an integer"),
        ({"bos_token": False}, "bos_token: got False; expected a string; write it in quotes"),
        ({"max_reject_rate": math.inf}, "max_reject_rate: got inf; expected a finite number"),
        ({"output": "absent"}, "output: missing; expected a value"),
        ({"sources": []}, "sources: got []; expected a list of at least 1 item"),
        (
            {"sources": [{"path": [], "format": "alpaca"}]},
            "sources.0.path: got neither of `path` and `hub`; expected one of them",
        ),
        ({"dedup": "nearly"}, "dedup: got 'nearly'; expected 'none', 'exact' or 'near'"),
    ],
)
def test_values_are_not_bent_to_fit(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    assert message in "\n".join(report(write(tmp_path, **changes)))


def test_a_missing_file_names_its_neighbour(tmp_path: Path) -> None:
    write(tmp_path)
    assert report(tmp_path / "data.yml") == [f"{tmp_path}/data.yml: no such file; did you mean 'data.yaml'?"]
    assert report(tmp_path) == [f"{tmp_path}: is a folder; expected a settings file"]
    assert report(tmp_path / "no" / "data.yaml") == [f"{tmp_path}/no/data.yaml: no such file"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1\n", ":2: is not YAML: did not find expected ',' or ']'"),
        ("a: 1\na: 2\n", ":2: is not YAML: found duplicate key a"),
        ("- 1\n", ": holds no settings"),
        ("words\n", ": holds no settings: got a str;"),
        ("seq_len: 2024-02-30\n", ": is not YAML: day is out of range for month"),
        (f"seq_len: {'9' * 5000}\n", ": is not YAML: Exceeds the limit"),
        (f"seq_len: {'[' * 3000 + ']' * 3000}\n", ": is not YAML: "),
        ("a: !!python/object:os.system x\n", ":1: is not YAML: could not determine a constructor"),
    ],
)
def test_what_is_no_settings_file(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "data.yaml"
    path.write_text(text)
    assert report(path)[0].startswith(f"{path}{message}")


def test_a_file_that_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / "data.yaml"
    path.write_bytes(b"output: \xff\xfe")
    assert report(path) == [f"{path}: is not UTF-8 text: byte 8; expected a YAML file"]


def test_an_empty_file_lacks_everything_at_once(tmp_path: Path) -> None:
    path = tmp_path / "data.yaml"
    path.write_text("")
    assert [line.split(": ")[1] for line in report(path)] == ["output", "tokenizer", "seq_len", "sources"]


@pytest.mark.parametrize("override", ["sources.5.weight=1", "sources.x.weight=1", "seq_len.more=1"])
def test_an_override_of_a_place_that_is_not_there(tmp_path: Path, override: str) -> None:
    path = write(tmp_path)
    key = override.partition("=")[0]
    assert report(path, override) == [f"command line: {key}: there is no such place in {path}"]


def test_an_override_that_is_no_yaml(tmp_path: Path) -> None:
    (line,) = report(write(tmp_path), "output=[")
    assert line.startswith("command line: output: is not YAML:")
    assert "quote the value" in line


def test_settings_cannot_be_changed(tmp_path: Path) -> None:
    settings = load_data_settings(write(tmp_path))
    with pytest.raises(ValidationError, match="frozen"):
        settings.seed = 3  # type: ignore[misc]


def test_did_you_mean_says_nothing_where_nothing_is_near() -> None:
    assert did_you_mean("weigth", ["weight", "name"]) == "; did you mean 'weight'?"
    assert did_you_mean("colour", ["weight", "name"]) == ""


class Numbers(Settings):
    """A model for the property test."""

    first: int = 0
    second: float = 0.0
    third: str = ""


@example(0, 0.0, "0E0")
@given(st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.text(st.characters(codec="ascii")))
def test_what_is_written_is_what_is_read(first: int, second: float, third: str) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "numbers.yaml"
        third = third.replace("$", "")  # OmegaConf's own sign
        path.write_text(dump_settings({"first": first, "second": second, "third": third}), encoding="utf-8")
        assert load_settings(Numbers, path, path_keys=()) == Numbers(first=first, second=second, third=third)


def test_the_model_of_data_yaml_says_which_keys_are_paths() -> None:
    assert set(DataSettings.path_keys) == {
        "output",
        "tokenizer",
        "chat_template:*.jinja",
        "sources.*.path",
        "sources.*.dataset_info",
        "sources.*.options.templates",
        "decontaminate.path",
        "replay.shards",
    }
