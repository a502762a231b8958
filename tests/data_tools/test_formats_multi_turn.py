"""The adapters of dialogues: messages, ShareGPT, OpenAssistant trees."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from data_tools.conversation import Conversation
from tests.data_tools.test_formats import convert_files, one, refusal, turns

USER = {"role": "user", "content": "Hi"}
ANSWER = {"role": "assistant", "content": "Hello"}


def call(name: str = "f", arguments: Any = "{}", call_id: str = "c1") -> dict[str, Any]:
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}


def done(format_name: str, folder: Path, pattern: str, total: int) -> list[Conversation]:
    made = list(convert_files(format_name, folder, pattern))
    conversations = [item for item in made if isinstance(item, Conversation)]
    assert len(conversations) == len(made) == total, made
    return conversations


# The OpenAI form


def test_real_messages(shared_data: Path) -> None:
    folder = shared_data / "samples" / "openai_messages"
    for item in done("messages", folder, "chat_train_gsm8k.jsonl", 60):
        assert [message.role for message in item.messages] == ["system", "user", "assistant"]
    bare = done("messages", folder, "bare_lists.jsonl", 40)
    assert {tuple(message.role for message in item.messages) for item in bare} == {("user", "assistant")}
    assert any(item.messages[0].content.endswith("\n") for item in bare)
    toy = done("messages", folder, "toy_chat_fine_tuning.jsonl", 4)
    assert [len(item.messages) for item in toy] == [3, 9, 2, 2]
    assert [message.role for message in toy[3].messages] == ["system", "assistant"]
    stock = done("messages", folder, "stock_toolcall_training.jsonl", 20)
    assert Counter(len(item.messages[-1].tool_calls) for item in stock) == {0: 12, 1: 8}
    assert all(len(item.tools) == 2 for item in stock)


def test_contents_are_taken_as_they_are() -> None:
    made = one(
        "messages",
        {"messages": [{"role": "user", "content": " Hi\n"}, {"role": "assistant", "content": "\tx "}]},
    )
    assert turns(made) == [("user", " Hi\n"), ("assistant", "\tx ")]
    assert made.family == "multi_turn"


def test_tool_calls_tools_names_and_weights() -> None:
    row = {
        "id": 7,
        "tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}],
        "parallel_tool_calls": False,
        "messages": [
            {"role": "developer", "content": "Use f."},
            {
                "role": "user",
                "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}],
                "name": "Ann",
            },
            {
                "role": "assistant",
                "content": None,
                "weight": 0,
                "tool_calls": [call(), call("g", {"x": 1}, "c2")],
            },
            {"role": "tool", "tool_call_id": "c2", "content": "1"},
            {"role": "tool", "tool_call_id": "c1", "content": "", "name": "own"},
            {"role": "assistant", "content": "Done", "weight": 1.0, "refusal": None, "function_call": None},
            {"role": "assistant", "function_call": {"name": "h", "arguments": ""}},
            {"role": "function", "name": "h", "content": "2"},
            {"role": "assistant", "content": "End", "tool_calls": []},
        ],
    }
    made = one("messages", row)
    assert [(message.role, message.name, message.train) for message in made.messages] == [
        ("system", None, None),
        ("user", "Ann", None),
        ("assistant", None, False),
        ("tool", "g", None),
        ("tool", "own", None),
        ("assistant", None, True),
        ("assistant", None, None),
        ("tool", "h", None),
        ("assistant", None, None),
    ]
    assert made.messages[1].content == "ab"
    assert made.messages[2].tool_calls == (call(), call("g", '{"x":1}', "c2"))
    assert made.messages[6].tool_calls == (
        {"type": "function", "function": {"name": "h", "arguments": "{}"}},
    )
    assert made.tools == tuple(row["tools"])  # type: ignore[arg-type]


def test_tools_may_be_text_bare_functions_or_the_older_field() -> None:
    function = {"name": "f", "parameters": {}}
    wrapped = ({"type": "function", "function": function},)
    messages = [USER, ANSWER]
    for row in (
        {"tools": json.dumps([function])},
        {"tools": [function]},
        {"functions": [function]},
        {"tools": None, "functions": [function]},
        {"tools": list(wrapped)},
    ):
        assert one("messages", {"messages": messages, **row}).tools == wrapped
    nothing: tuple[Any, ...] = (None, [], "", " ", "[]", "null")
    for empty in nothing:
        assert one("messages", {"messages": messages, "tools": empty}).tools == ()


def test_turns_behind_the_last_answer_and_empty_system_turns_are_left_out() -> None:
    messages = [{"role": "system", "content": " "}, USER, ANSWER, USER, USER]
    assert turns(one("messages", messages)) == [("user", "Hi"), ("assistant", "Hello")]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (3, "row is not an object: got number"),
        ({"prompt": "x"}, "missing field 'messages'"),
        ({"messages": "x"}, "wrong type of field 'messages': got string; expected list"),
        ([], "no messages"),
        (["x"], "wrong type of field 'messages[]': messages[0]: got string"),
        ([USER], "no assistant message"),
        ([{"content": "x"}], "missing field 'messages[].role': messages[0]"),
        (
            [{"role": "robot", "content": "x"}],
            "unknown value of field 'messages[].role': messages[0]: got 'robot'",
        ),
        ([USER, {"role": "assistant"}], "missing field 'messages[].content': messages[1]"),
        (
            [USER, {"role": "assistant", "content": None}],
            "wrong type of field 'messages[].content': messages[1]: got null",
        ),
        ([USER, {"role": "assistant", "content": " "}], "empty assistant message"),
        ([{"role": "user", "content": ""}, ANSWER], "empty user message"),
        ([{"role": "user", "content": 5}, ANSWER], "wrong type of field 'messages[].content'"),
        ([USER, {"role": "system", "content": "x"}, ANSWER], "system message is not the first"),
        (
            [USER, {**ANSWER, "weight": 0.5}],
            "unknown value of field 'messages[].weight': messages[1]: expected 0 or 1",
        ),
        ([USER, {**ANSWER, "weight": True}], "unknown value of field 'messages[].weight'"),
        (
            [{**USER, "weight": 1}, ANSWER],
            "unknown value of field 'messages[].weight': messages[0]: got 1 on a user",
        ),
        ([{**USER, "tool_calls": [call()]}, ANSWER], "tool calls of another role than assistant"),
        ([USER, {"role": "assistant", "tool_calls": "x"}], "wrong type of field 'messages[].tool_calls'"),
        (
            [USER, {"role": "assistant", "tool_calls": [{"id": "1"}]}],
            "wrong type of field 'messages[].tool_calls[].function'",
        ),
        (
            [USER, {"role": "assistant", "tool_calls": [call(arguments="{x")]}],
            "field 'messages[].tool_calls[].function.arg",
        ),
        (
            [USER, {"role": "assistant", "tool_calls": [call(arguments="[1]")]}],
            "wrong type of field 'messages[].tool_calls",
        ),
        (
            [USER, {"role": "assistant", "tool_calls": [call(name=" ")]}],
            "empty field 'messages[].tool_calls[].function.name'",
        ),
        ([{"role": "user", "content": [{"type": "image_url"}]}, ANSWER], "part of a content is not text"),
        (
            [USER, {**ANSWER, "reasoning_content": "so"}],
            "field 'messages[].reasoning_content' is not supported",
        ),
        ([USER, {**ANSWER, "name": 1}], "wrong type of field 'messages[].name'"),
        ({"messages": [USER, ANSWER], "system": "x"}, "field 'system' is not supported"),
        ({"messages": [USER, ANSWER], "images": ["x.png"]}, "field 'images' is not supported"),
        ({"messages": [USER, ANSWER], "tools": "{"}, "field 'tools' is not JSON"),
        ({"messages": [USER, ANSWER], "tools": {"name": "f"}}, "wrong type of field 'tools': got object"),
        ({"messages": [USER, ANSWER], "tools": [{}]}, "missing field 'tools[].name'"),
        (
            {"messages": [USER, ANSWER], "tools": [{"type": "x", "function": {}}]},
            "unknown value of field 'tools[].type'",
        ),
    ],
)
def test_damaged_messages_are_refused_by_the_field(row: Any, message: str) -> None:
    assert refusal("messages", row).startswith(message)


# ShareGPT


def talk(*values: tuple[str, str], **fields: Any) -> dict[str, Any]:
    return {"conversations": [{"from": speaker, "value": value} for speaker, value in values], **fields}


H, G = ("human", "Hi"), ("gpt", "Hello")


def test_real_dialogues(shared_data: Path) -> None:
    folder = shared_data / "samples"
    vicuna = done("sharegpt", folder, "vicuna_sharegpt_dummy.json", 100)
    assert Counter(len(item.messages) for item in vicuna) == {4: 34, 2: 33, 6: 33}
    assert {item.group for item in vicuna} == {None}
    with_system = done("sharegpt", folder, "vicuna_sharegpt_with_system.json", 23)
    assert Counter(item.messages[0].role for item in with_system) == {"user": 20, "system": 3}
    chinese = done("sharegpt", folder, "sharegpt_zh.jsonl", 54)
    assert {item.language for item in chinese} == {"zh"}
    # Five end with a turn of the human's, which is dropped; nothing else is.
    assert sum(len(item.messages) for item in chinese) == 311 - 5
    glaive = done("sharegpt", folder, "sharegpt_glaive_toolcall.json", 40)
    roles = Counter(message.role for item in glaive for message in item.messages)
    assert roles == {"user": 104, "assistant": 104 + 29, "tool": 29}
    calls = [call for item in glaive for message in item.messages for call in message.tool_calls]
    assert len(calls) == 29
    assert all(isinstance(json.loads(call["function"]["arguments"]), dict) for call in calls)
    assert {tool["type"] for item in glaive for tool in item.tools} == {"function"}


@pytest.mark.parametrize("speaker", ["gpt", "chatgpt", "bing", "bard", "assistant"])
def test_speakers(speaker: str) -> None:
    assert turns(one("sharegpt", talk(("user", " a "), (speaker, "b\n")))) == [
        ("user", "a"),
        ("assistant", "b"),
    ]


def test_first_and_last_turns_that_teach_nothing_are_dropped() -> None:
    made = one("sharegpt", talk(("gpt", "earlier"), H, G, ("human", ""), id="QWJhYvA_12"))
    assert turns(made) == [("user", "Hi"), ("assistant", "Hello")]
    assert made.group == "QWJhYvA"
    assert one("sharegpt", talk(H, G, id="identity_0")).group is None
    assert one("sharegpt", talk(H, G, id=12)).group is None


@pytest.mark.parametrize(
    "row",
    [
        talk(H, G, system=" Be kind. "),
        talk(("system", "Be kind."), H, G),
        talk(("system", "Be kind."), H, G, system="Be kind."),
        talk(("system", "Be kind."), ("gpt", "x"), H, G, system=""),
        talk(("system", ""), H, G, system="Be kind."),
    ],
)
def test_the_system_prompt_is_a_field_or_the_first_turn(row: Any) -> None:
    assert turns(one("sharegpt", row)) == [("system", "Be kind."), ("user", "Hi"), ("assistant", "Hello")]


def test_calls_and_observations() -> None:
    row = talk(
        ("human", "Time?"),
        ("function_call", '[{"name": "f", "arguments": {"é": 1}}, {"name": "g", "arguments": "{}"}]'),
        ("observation", '{"t": 5}'),
        ("gpt", "Five."),
        tools='[{"name": "f", "description": "d", "parameters": {}}]',
    )
    made = one("sharegpt", row)
    assert turns(made) == [("user", "Time?"), ("assistant", ""), ("tool", '{"t": 5}'), ("assistant", "Five.")]
    assert [entry["function"] for entry in made.messages[1].tool_calls] == [
        {"name": "f", "arguments": '{"é":1}'},
        {"name": "g", "arguments": "{}"},
    ]
    assert made.tools[0]["function"]["description"] == "d"


def test_what_the_web_page_added_is_removed_from_replies() -> None:
    reply = "2 / 2\n\nHere:\n```pythonCopy code\nprint(1 / 2)\n```\nCopy12 chars / 3 words"
    made = one("sharegpt", talk(("human", "2 / 2\nCopy code"), ("gpt", reply)))
    assert turns(made) == [("user", "2 / 2\nCopy code"), ("assistant", "Here:\n```python\nprint(1 / 2)\n```")]
    kept = "1 / 2 is a half.\n<div>Copy code</div>"
    assert one("sharegpt", talk(H, ("gpt", kept))).messages[1].content == kept


def test_weights_of_turns() -> None:
    row = {
        "conversations": [
            {"from": "human", "value": "a", "weight": None},
            {"from": "gpt", "value": "b", "weight": 0},
            {"from": "human", "value": "c", "weight": 0.0},
            {"from": "gpt", "value": "d", "weight": 1},
        ]
    }
    assert [message.train for message in one("sharegpt", row).messages] == [None, False, None, True]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ([], "row is not an object: got list"),
        ({"messages": []}, "missing field 'conversations'"),
        (
            {"conversations": ["a", "b"]},
            "wrong type of field 'conversations[]': conversations[0]: got string",
        ),
        ({"conversations": [{"value": "x"}]}, "missing field 'conversations[].from': conversations[0]"),
        ({"conversations": [{"from": "human"}]}, "missing field 'conversations[].value': conversations[0]"),
        (
            {"conversations": [{"from": "human", "value": None}]},
            "wrong type of field 'conversations[].value'",
        ),
        (
            talk(("robot", "x")),
            "unknown value of field 'conversations[].from': conversations[0]: got 'robot'",
        ),
        (talk(), "no messages"),
        (talk(H), "no assistant message"),
        (talk(G), "no messages"),
        (talk(G, G, H, G), "turns do not alternate: turn 0"),
        (talk(H, H, G), "turns do not alternate: turn 1"),
        (talk(H, G, G), "turns do not alternate: turn 2"),
        (talk(G, ("observation", "x"), G), "turns do not alternate: turn 0"),
        (talk(H, ("gpt", " ")), "empty turn: turn 1"),
        (talk(("human", ""), G), "empty turn: turn 0"),
        (talk(H, ("system", "x"), G), "system message is not the first"),
        (talk(("system", "x"), H, G, system="y"), "two system prompts that differ"),
        (talk(H, ("function_call", "f()")), "field 'conversations[].value' is not JSON: conversations[1]"),
        (talk(H, ("function_call", '{"name": "f"}')), "missing field 'conversations[].value.arguments'"),
        (talk(H, G, tools="nope"), "field 'tools' is not JSON"),
        (talk(H, G, image="x.jpg"), "field 'image' is not supported"),
        (talk(H, G, chosen={"from": "gpt", "value": "x"}), "field 'chosen' is not supported"),
        (talk(H, G, lang=["en"]), "wrong type of field 'lang'"),
    ],
)
def test_damaged_dialogues_are_refused_by_the_field(row: Any, message: str) -> None:
    assert refusal("sharegpt", row).startswith(message)


# OpenAssistant


def node(text: str, role: str = "assistant", *replies: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {"message_id": f"id-{text}", "text": text, "role": role, "replies": list(replies), **fields}


def tree(*replies: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {
        "message_tree_id": "t1",
        "tree_state": "ready_for_export",
        "prompt": node("Q", "prompter", *replies, lang="en"),
        **fields,
    }


def test_real_trees(shared_data: Path) -> None:
    folder = shared_data / "samples"
    made = done("oasst_tree", folder, "oasst1_trees.jsonl", 28)
    assert Counter(len(item.messages) for item in made) == {2: 15, 4: 13}
    assert len({item.group for item in made}) == 28
    trees = [json.loads(line) for line in (folder / "oasst1_trees.jsonl").read_bytes().splitlines()]
    for item, row in zip(made, trees, strict=True):
        best = min(row["prompt"]["replies"], key=lambda reply: reply["rank"])
        assert item.messages[1].content == best["text"].strip()
        assert item.language == row["prompt"]["lang"]
    synthetic = done("oasst_tree", folder, "oasst1_trees_synthetic.jsonl", 10)
    assert Counter(len(item.messages) for item in synthetic) == {10: 4, 2: 3, 4: 2, 8: 1}


def test_the_flat_message_export_is_refused(shared_data: Path) -> None:
    made = list(convert_files("oasst_tree", shared_data / "samples", "oasst1_messages.jsonl"))
    assert len(made) == 148
    assert {str(item)[:22] for item in made} == {"missing field 'prompt'"}


def test_the_best_path_is_taken() -> None:
    row = tree(
        node("unranked"),
        node("deleted", deleted=True, rank=0),
        node("failed", review_result=False, rank=0),
        node(" ", rank=0),
        node("second", rank=2),
        node(
            "best\n",
            "assistant",
            node("first of equals", "prompter", node("end", "assistant", node("bye", "prompter"), rank=None)),
            node("other", "prompter"),
            rank=1,
            review_result=None,
            synthetic=True,
        ),
    )
    made = one("oasst_tree", row)
    assert turns(made) == [
        ("user", "Q"),
        ("assistant", "best"),
        ("user", "first of equals"),
        ("assistant", "end"),
    ]
    assert (made.group, made.language, made.task) == ("t1", "en", None)
    assert turns(one("oasst_tree", tree(node("a"), node("b"), node("c", rank=7))))[1][1] == "c"
    assert turns(one("oasst_tree", tree(node("a"), node("b"))))[1][1] == "a"


def test_null_and_absent_keys_are_the_same() -> None:
    reply = {"text": "A", "role": "assistant"}
    absent = {"prompt": {"message_id": "m", "text": "Q", "role": "prompter", "replies": [reply]}}
    nulls = dict.fromkeys(
        ("rank", "deleted", "review_result", "replies", "synthetic", "emojis", "lang", "parent_id")
    )
    null = {"message_tree_id": None, "tree_state": None, "prompt": {**nulls, **absent["prompt"]}}
    null["prompt"]["replies"] = [{**nulls, **reply}]  # type: ignore[index]
    for row in (absent, null):
        made = one("oasst_tree", row)
        assert turns(made) == [("user", "Q"), ("assistant", "A")]
        assert (made.group, made.language) == ("m", None)


def test_a_reply_of_the_same_role_ends_the_path() -> None:
    row = tree(node("A", "assistant", node("B", "assistant", node("C", "prompter"))))
    assert turns(one("oasst_tree", row)) == [("user", "Q"), ("assistant", "A")]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("x", "row is not an object"),
        ({"thread_id": "t", "messages": []}, "missing field 'prompt': the row has messages, thread_id"),
        (tree(node("A"), tree_state="growing"), "tree_state is not ready_for_export: got 'growing'"),
        (tree(node("A"), tree_state=1), "wrong type of field 'tree_state'"),
        (tree(node("A"), prompt=[]), "wrong type of field 'prompt'"),
        (tree(node("A"), prompt=node("Q", "assistant")), "the tree's first message is not a prompter's"),
        (
            tree(node("A"), prompt=node("Q", "prompter", deleted=True)),
            "prompt is deleted, failed review or is empty",
        ),
        (tree(node("A"), prompt=node("Q", "prompter", review_result=False)), "prompt is deleted, failed"),
        (tree(), "no usable reply"),
        (tree(node("A", deleted=True)), "no usable reply"),
        (tree(node("A", "robot")), "unknown value of field 'role': below message id-Q: got 'robot'"),
        (tree(node("A", rank="0")), "wrong type of field 'rank'"),
        (tree(node("A", deleted="no")), "wrong type of field 'deleted'"),
        (tree({"role": "assistant"}), "missing field 'text'"),
        (tree({"role": "assistant", "text": None}), "wrong type of field 'text'"),
        (tree(node("A", replies={})), "wrong type of field 'replies'"),
        ({"prompt": {"text": "Q", "role": "prompter"}}, "missing field 'message_tree_id'"),
    ],
)
def test_damaged_trees_are_refused_by_the_field(row: Any, message: str) -> None:
    assert refusal("oasst_tree", row).startswith(message)
