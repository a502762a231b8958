"""The adapters: every real sample row, every documented quirk, and rows that must be refused by name."""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_tools.conversation import Conversation
from data_tools.errors import Reject, SettingsError
from data_tools.formats import all_formats, format_help, format_list, get_format
from data_tools.formats.registry import Format
from data_tools.sources import BadRow, cut_parts, list_files, read_part


def convert(name: str, row: Any, file_name: str = "rows.json") -> list[Conversation | Reject]:
    """Convert a row; what is raised stands as the last item."""
    made: list[Conversation | Reject] = []
    try:
        made.extend(get_format(name).convert(row, file_name))
    except Reject as reject:
        made.append(reject)
    return made


def one(name: str, row: Any) -> Conversation:
    (made,) = convert(name, row)
    assert isinstance(made, Conversation), made
    return made


def refusal(name: str, row: Any) -> str:
    (made,) = convert(name, row)
    assert isinstance(made, Reject), made
    return str(made)


def turns(conversation: Conversation) -> list[tuple[str, str]]:
    return [(message.role, message.content) for message in conversation.messages]


def convert_files(name: str, folder: Path, pattern: str) -> Iterator[Conversation | Reject]:
    entry = get_format(name)
    for part in cut_parts(list_files([folder / pattern]), entry.reader):
        for row in read_part(part):
            assert not isinstance(row, BadRow), row
            yield from convert(name, row.value, part.name)


# Registry


@pytest.mark.parametrize("entry", all_formats(), ids=lambda entry: entry.name)
def test_each_format_explains_itself_with_its_own_example(entry: Format) -> None:
    text = format_help(entry.name)
    made = [
        item
        for item in entry.convert(entry.example, "task042_example.json")
        if isinstance(item, Conversation)
    ]
    assert made
    assert all(item.family == entry.family for item in made)
    for word in ("fields", "what is done", "a row", "becomes", made[0].messages[-1].content):
        assert word in text
    assert max(map(len, text.splitlines())) < 160
    assert entry.name in format_list()


def test_formats_are_ordered_by_family() -> None:
    assert [(entry.family, entry.name) for entry in all_formats()] == [
        ("multi_task", "super_natural_instructions"),
        ("multi_turn", "messages"),
        ("multi_turn", "oasst_tree"),
        ("multi_turn", "sharegpt"),
        ("single_turn", "alpaca"),
    ]


def test_an_unknown_format_is_explained() -> None:
    with pytest.raises(
        SettingsError, match=r"unknown format: got 'alpacca'; expected one of .*; did you mean 'alpaca'"
    ):
        get_format("alpacca")
    with pytest.raises(SettingsError, match="run `shardtune formats`"):
        get_format("zzz")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


def _replace_somewhere(data: st.DataObject, value: Any) -> Any:
    """Return the value with one thing in it deleted or replaced by any JSON."""
    if isinstance(value, dict) and value and data.draw(st.integers(0, 4)):
        key = data.draw(st.sampled_from(sorted(value)))
        if not data.draw(st.integers(0, 3)):
            return {name: item for name, item in value.items() if name != key}
        return {**value, key: _replace_somewhere(data, value[key])}
    if isinstance(value, list) and value and data.draw(st.integers(0, 4)):
        index = data.draw(st.integers(0, len(value) - 1))
        return [*value[:index], _replace_somewhere(data, value[index]), *value[index + 1 :]]
    return data.draw(JSON)


@settings(deadline=None, max_examples=400)
@given(st.sampled_from(all_formats()), st.data())
def test_damaged_rows_are_converted_or_rejected_and_nothing_else(entry: Format, data: st.DataObject) -> None:
    row = _replace_somewhere(data, entry.example)
    for made in convert(entry.name, row):
        if isinstance(made, Reject):
            assert len(made.reason) < 80
            assert len(made.detail) < 300
        else:
            assert made.messages[-1].role == "assistant"
            assert all(isinstance(message.content, str) for message in made.messages)
            json.dumps([message.as_dict() for message in made.messages])


# Super-Natural Instructions

TASK = {"Definition": ["Add."], "Instances": [{"id": "task1-a", "input": "1 2", "output": ["3"]}]}


def test_real_tasks(shared_data: Path) -> None:
    made = list(
        convert_files(
            "super_natural_instructions", shared_data / "samples/super_natural_instructions", "*.json"
        )
    )
    done = [item for item in made if isinstance(item, Conversation)]
    assert len(done) == len(made) == 924
    assert Counter(str(item.task).split("_")[0] for item in done) == {
        "task1510": 100,
        "task1590": 60,
        "task190": 150,
        "task393": 100,
        "task394": 60,
        "task398": 120,
        "task639": 142,
        "task698": 112,
        "task995": 80,
    }
    assert {item.language for item in done} == {"English", "Persian", "Bengali -> English"}
    assert {len(item.references) for item in done if item.task == "task190_snli_classification"} == {1}
    assert {len(item.references) for item in done if str(item.task).startswith("task394")} == {7}
    assert {item.category for item in done if str(item.task).startswith("task698")} == {"Question Answering"}
    for item in done:
        assert [message.role for message in item.messages] == ["user", "assistant"]
        assert item.messages[1].content == item.references[0] == item.references[0].strip()


def test_real_tasks_of_version_1_are_refused(shared_data: Path) -> None:
    made = list(
        convert_files("super_natural_instructions", shared_data / "samples/natural_instructions_v1", "*.json")
    )
    assert [item.reason for item in made if isinstance(item, Reject)] == [
        "a file of Natural Instructions v1"
    ] * 5


def test_an_instance_becomes_a_question_and_all_its_answers() -> None:
    task = {
        "Categories": ["Arithmetic", "Other"],
        "Input_language": ["Bengali"],
        "Output_language": ["English"],
        "Definition": [" Add. ", "Then stop.\n"],
        "Instances": [
            {"id": "x", "input": "  1 2\n", "output": [" 3 ", "", "three"]},
            {"input": " ", "output": "one string"},
        ],
    }
    first, second = convert("super_natural_instructions", task, "tasks/task007_add.json.gz")
    assert isinstance(first, Conversation)
    assert isinstance(second, Conversation)
    assert turns(first) == [("user", "Add.\nThen stop.\n\n1 2"), ("assistant", "3")]
    assert (first.task, first.category, first.language) == ("task007_add", "Arithmetic", "Bengali -> English")
    assert first.references == ("3", "three")
    assert turns(second) == [("user", "Add.\nThen stop."), ("assistant", "one string")]


def test_old_revisions_have_a_string_and_no_languages() -> None:
    (made,) = convert("super_natural_instructions", {**TASK, "Definition": "Add."}, "task1_add.json")
    assert isinstance(made, Conversation)
    assert (made.task, made.category, made.language) == ("task1_add", None, None)


@pytest.mark.parametrize(
    ("name", "task"),
    [
        ("task1_a/train.json", "task1_a"),
        ("train.json", "train"),
        ("sub/task2_b.json", "task2_b"),
        ("task3_v1.5.json", "task3_v1.5"),
    ],
)
def test_the_task_is_the_name_of_the_file(name: str, task: str) -> None:
    (made,) = convert("super_natural_instructions", TASK, name)
    assert isinstance(made, Conversation)
    assert made.task == task


def test_a_bad_instance_is_rejected_alone_and_in_its_place() -> None:
    instances = [
        {"input": "a", "output": ["b"]},
        {"input": "a", "output": []},
        {"input": "a", "output": [" "]},
        {"input": "a", "output": [1]},
        {"input": "a"},
        {"output": ["b"]},
        {"input": None, "output": ["b"]},
        "text",
        {"input": "c", "output": ["d"]},
    ]
    made = convert("super_natural_instructions", {**TASK, "Instances": instances})
    assert [item.reason if isinstance(item, Reject) else "" for item in made] == [
        "",
        "empty output",
        "empty output",
        "wrong type of field 'Instances[].output'",
        "missing field 'Instances[].output'",
        "missing field 'Instances[].input'",
        "wrong type of field 'Instances[].input'",
        "wrong type of field 'Instances[]'",
        "",
    ]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ([], "row is not an object: got list"),
        ({"Instances": []}, "missing field 'Definition'"),
        ({"Definition": ["x"]}, "missing field 'Instances'"),
        ({**TASK, "Definition": []}, "empty field 'Definition'"),
        ({**TASK, "Definition": [1]}, "wrong type of field 'Definition': got number"),
        ({**TASK, "Instances": {}}, "wrong type of field 'Instances': got object; expected list"),
        ({**TASK, "Instances": []}, "empty field 'Instances'"),
        ({**TASK, "Categories": [{}]}, "wrong type of field 'Categories'"),
        ({**TASK, "Prompt": "-"}, "a file of Natural Instructions v1: it has the field 'Prompt'"),
    ],
)
def test_damaged_tasks_are_refused_by_the_field(row: Any, message: str) -> None:
    assert refusal("super_natural_instructions", row).startswith(message)


# Alpaca


@pytest.mark.parametrize(
    ("file", "num_made", "num_empty"),
    [
        ("alpaca_data.json", 129, 0),
        ("alpaca_hf_with_text.json", 50, 0),
        ("alpaca_input_placeholders.json", 115, 4),
        ("alpaca_zh_carbonz0.json", 150, 0),
        ("alpaca_zh_hikariming.json", 150, 0),
        ("gpt4_llm_alpaca_en.json", 130, 0),
        ("gpt4_llm_alpaca_zh.json", 150, 0),
        ("lima_llamafactory.json", 74, 0),
        ("oasst1_sft_zh_llamafactory.json", 40, 0),
    ],
)
def test_real_alpaca_files(shared_data: Path, file: str, num_made: int, num_empty: int) -> None:
    made = list(convert_files("alpaca", shared_data / "samples", file))
    assert [item.reason for item in made if isinstance(item, Reject)] == ["empty output"] * num_empty
    done = [item for item in made if isinstance(item, Conversation)]
    assert len(done) == num_made
    for item in done:
        text = "\n".join(message.content for message in item.messages)
        assert "noinput" not in text.lower()
        assert "Below is an instruction" not in text
        assert "\n\n输入：" not in text


def test_real_histories_are_kept(shared_data: Path) -> None:
    made = convert_files("alpaca", shared_data / "samples", "lima_llamafactory.json")
    lengths = Counter(len(item.messages) for item in made if isinstance(item, Conversation))
    assert lengths == {2: 60, 4: 5, 6: 5, 8: 3, 20: 1}


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            " ",
            "No input",
            "Noinput",
            "<no input>",
            "No Input.",
            "No input required.",
            '"<noinput>"',
            "N/A",
            "n/a",
        ),
        *(
            "< noinput >",
            "`<noinput>`",
            "None",
            "none",
            r"\<noinput>",
            "<noinput",
            "[noinput]",
            "NA",
            "(No input)",
        ),
        *(
            "No input needed.",
            "<noinput?",
            "<noinput> 8",
            "<noinput>\n11",
            r"{\noinput}",
            r"\<noinput\>",
            "<noinputs>",
        ),
        *(
            ":\n<noinput>",
            "<noinpute>",
            "no_input",
            "No additional input required.",
            "not applicable",
            "无输入",
        ),
        *(
            "<无输入>",
            "输入：无输入",
            "输入：",
            "### 输入：\n",
            "The boy <noinput> the ball",
            "[3, 4, <noinput>]",
        ),
    ],
)
def test_an_input_that_says_there_is_none_is_none(text: str) -> None:
    made = one("alpaca", {"instruction": " Do it. ", "input": text, "output": " Done.\n"})
    assert turns(made) == [("user", "Do it."), ("assistant", "Done.")]


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("Na", "Na"),
        ("nan", "nan"),
        ("?", "?"),
        ("None of them came.", "None of them came."),
        ("There is no input here.", "There is no input here."),
        ("a | N/A | b", "a | N/A | b"),
        ("one\nNone\ntwo", "one\nNone\ntwo"),
        ("Joe Smith \n<noinput>", "Joe Smith"),
        ("[Image]\n\nNo input needed.", "[Image]"),
        ("输入：光合作用", "光合作用"),
        ("### 输入：\n123_", "123_"),
        ("4 / 16\n", "4 / 16"),
    ],
)
def test_other_inputs_are_kept(text: str, kept: str) -> None:
    made = one("alpaca", {"instruction": "Do it.", "input": text, "output": "Done."})
    assert made.messages[0].content == f"Do it.\n\n{kept}"


def test_alpaca_without_input_with_text_system_and_history() -> None:
    row = {
        "instruction": "And now?",
        "output": "<noinput>\nLater.",
        "text": "Below is an instruction …",
        "system": "Be brief.",
        "history": [["Now?", "No."]],
        "category": "open_qa",
    }
    assert turns(one("alpaca", row)) == [
        ("system", "Be brief."),
        ("user", "Now?"),
        ("assistant", "No."),
        ("user", "And now?"),
        ("assistant", "Later."),
    ]
    empty = {"instruction": "a", "input": None, "output": "b", "system": None, "history": None}
    assert turns(one("alpaca", empty)) == [("user", "a"), ("assistant", "b")]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("text", "row is not an object: got string"),
        ({"input": "", "output": "x"}, "missing field 'instruction'"),
        ({"instruction": "x", "input": ""}, "missing field 'output'"),
        (
            {"instruction": "x", "input": "", "output": None},
            "wrong type of field 'output': got null; expected string",
        ),
        ({"instruction": "x", "input": ["y"], "output": "z"}, "wrong type of field 'input': got list"),
        ({"instruction": 5, "output": "z"}, "wrong type of field 'instruction': got number"),
        ({"instruction": " ", "output": "z"}, "empty instruction"),
        ({"instruction": "x", "output": " \n"}, "empty output"),
        ({"instruction": "x", "output": "<nooutput>"}, "empty output"),
        (
            {"instruction": "x", "output": "y", "history": [["a"]]},
            "wrong type of field 'history[]': history[0]",
        ),
        ({"instruction": "x", "output": "y", "history": [["a", 1]]}, "wrong type of field 'history[][]'"),
        ({"instruction": "x", "output": "y", "history": [["a", ""]]}, "empty turn in field 'history'"),
        ({"instruction": "x", "output": "y", "system": 1}, "wrong type of field 'system'"),
        ({"instruction": "x", "output": "y", "images": ["z"]}, "field 'images' is not supported"),
    ],
)
def test_damaged_alpaca_rows_are_refused_by_the_field(row: Any, message: str) -> None:
    assert refusal("alpaca", row).startswith(message)
