"""Formats of dialogues: lists of messages, ShareGPT conversations, and trees of replies."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from data_tools.conversation import Conversation, Message, Role
from data_tools.errors import Reject
from data_tools.formats.fields import (
    MEDIA_FIELDS,
    make_call,
    parse_json,
    refuse_filled,
    take_list,
    take_object,
    take_optional_text,
    take_text,
    take_tools,
    take_weight,
    wrong_type,
)
from data_tools.formats.registry import Converted, register

# The OpenAI form

_MESSAGES_ROLES: dict[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
    "function": "tool",
}
_NOT_IN_RECORD = ("audio", "refusal", "reasoning_content", "reasoning", "thinking")


@register(
    "messages",
    "multi_turn",
    reader="chats",
    summary="the OpenAI fine-tuning form: {messages: [{role, content}], tools}, or bare lists of messages",
    fields=(
        ("messages", "list of messages; or the row itself is that list"),
        ("messages[].role", "system | developer | user | assistant | tool | function"),
        ("messages[].content", "string, or list of text parts; may be null or absent beside tool_calls"),
        ("messages[].tool_calls", "optional, of the assistant: [{id, type, function: {name, arguments}}]"),
        ("messages[].function_call", "optional, the older form of one call: {name, arguments}"),
        ("messages[].tool_call_id", "optional, of a tool: the call that it answers"),
        ("messages[].name", "optional: who speaks, or the tool's name"),
        ("messages[].weight", "optional, of the assistant: 0 = no target, 1 = target"),
        ("tools", "optional list of tool definitions, or its JSON text; `functions` is the older form"),
    ),
    quirks=(
        "Contents are taken as they are, white space included.",
        "`developer` is a system turn, `function` a tool's turn.",
        "Turns behind the last assistant message are dropped: nothing is learned from them.",
        "A system message without text is left out; an empty user message rejects the row.",
        "System and assistant without a user turn are kept; whether they can be written the template"
        " decides.",
        "Arguments of calls must be a JSON object or its text, and are kept as text; empty text means none.",
        "A tool's turn without a name gets that of the call whose id it answers.",
        "A list of text parts is joined; a part of another type (image, audio, …) rejects the row.",
        "A row in which `system`, `history`, `images`, or a message's `refusal`, `reasoning_content` or"
        " `audio`"
        " says something is rejected: leaving it out would change what is learned. Other keys (id,"
        " prompt, …) are"
        " ignored.",
    ),
    example={
        "messages": [
            {"role": "system", "content": "Answer briefly."},
            {"role": "user", "content": "What is the weather in Oslo?"},
            {
                "role": "assistant",
                "tool_calls": [
                    {
                        "id": "call_1",
                        "type": "function",
                        "function": {"name": "get_weather", "arguments": '{"city": "Oslo"}'},
                    }
                ],
            },
            {"role": "tool", "tool_call_id": "call_1", "content": '{"sky": "clear", "celsius": 4}'},
            {"role": "assistant", "content": "Clear, 4 °C.", "weight": 1},
        ],
        "tools": [
            {
                "type": "function",
                "function": {
                    "name": "get_weather",
                    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
                },
            }
        ],
    },
)
def convert_messages(row: Any, name: str) -> Converted:
    """Yield the row's conversation."""
    row = {"messages": row} if isinstance(row, list) else take_object(row)
    refuse_filled(row, (*MEDIA_FIELDS, "system", "history"))
    messages: list[Message] = []
    names_of_calls: dict[str, str] = {}
    for index, entry in enumerate(take_list(row, "messages")):
        message = _read_message(entry, f"messages[{index}]", names_of_calls)
        if message.role == "user" and not message.content.strip():
            raise Reject("empty user message", f"messages[{index}]")
        if message.role != "system" or message.content.strip():
            messages.append(message)
    tools = take_tools(row, "tools") or take_tools(row, "functions")
    yield Conversation(_until_last_answer(messages), "multi_turn", tools=tools)


def _read_message(value: Any, where: str, names_of_calls: dict[str, str]) -> Message:
    entry = take_object(value, "messages[]", where=where)
    given = take_text(entry, "role", "messages[].role", where=where)
    role = _MESSAGES_ROLES.get(given)
    if role is None:
        raise Reject("unknown value of field 'messages[].role'", f"{where}: got {given[:40]!r}")
    refuse_filled(entry, _NOT_IN_RECORD, "messages[].", where=where)
    calls = _read_calls(entry, where)
    if calls and role != "assistant":
        raise Reject("tool calls of another role than assistant", f"{where}: got {given!r}")
    for call in calls:
        names_of_calls[call.get("id", "")] = call["function"]["name"]
    if calls and entry.get("content") is None:
        content = ""
    else:
        content = _read_content(entry, where)
    speaker = take_optional_text(entry, "name", "messages[].name", where=where)
    if role == "tool":
        answered = take_optional_text(entry, "tool_call_id", "messages[].tool_call_id", where=where)
        speaker = speaker or names_of_calls.get(answered, "")
    train = take_weight(entry, role, "messages[].weight", where=where)
    return Message(role, content, speaker or None, calls, train)


def _read_content(entry: Mapping[str, Any], where: str) -> str:
    if not isinstance(entry.get("content"), list):
        return take_text(entry, "content", "messages[].content", where=where)
    texts = []
    for index, value in enumerate(entry["content"]):
        part = take_object(value, "messages[].content[]", where=f"{where}.content[{index}]")
        kind = take_text(part, "type", "messages[].content[].type", where=where)
        if kind != "text":
            raise Reject("part of a content is not text", f"{where}.content[{index}]: got {kind[:40]!r}")
        texts.append(take_text(part, "text", "messages[].content[].text", where=where))
    return "".join(texts)


def _read_calls(entry: Mapping[str, Any], where: str) -> tuple[Mapping[str, Any], ...]:
    calls = []
    if entry.get("tool_calls") is not None:
        for index, value in enumerate(take_list(entry, "tool_calls", "messages[].tool_calls", where=where)):
            place = f"{where}.tool_calls[{index}]"
            call = take_object(value, "messages[].tool_calls[]", where=place)
            if call.get("type", "function") != "function":
                raise Reject("unknown value of field 'messages[].tool_calls[].type'", place)
            call_id = take_optional_text(call, "id", "messages[].tool_calls[].id", where=place)
            function = call.get("function")
            calls.append(
                make_call(function, "messages[].tool_calls[].function", where=place, call_id=call_id)
            )
    if entry.get("function_call") is not None:
        calls.append(make_call(entry["function_call"], "messages[].function_call", where=where))
    return tuple(calls)


def _until_last_answer(messages: Sequence[Message]) -> tuple[Message, ...]:
    answers = [index for index, message in enumerate(messages) if message.role == "assistant"]
    if not messages:
        raise Reject("no messages")
    if not answers:
        raise Reject("no assistant message")
    return tuple(messages[: answers[-1] + 1])


# ShareGPT

_SHAREGPT_ROLES: dict[str, Role] = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "function_call": "assistant",
    "observation": "tool",
    "tool": "tool",
}
# What the web page added to replies: the counter of regenerated answers, and the labels of its copy buttons.
_COUNTER = re.compile(r"\A\s*\d+ / \d+[ \t]*\r?\n")
_COPY_CODE = re.compile(r"```([\w+#.-]*)[ \t]*(?:Copy code)+[ \t]*\n?")
_COPY_CHARS = re.compile(r"Copy\d+ chars / \d+ words")
# `<id>_<n>`: pieces of one long conversation in the split release, whose ids have seven letters.
_PIECE_ID = re.compile(r"([A-Za-z0-9]{7})_\d+")


@register(
    "sharegpt",
    "multi_turn",
    summary="ShareGPT, Vicuna and LLaMA-Factory dialogues: {conversations: [{from, value}], system, tools}",
    fields=(
        ("conversations", "list of turns"),
        (
            "conversations[].from",
            "human, user | gpt, assistant, chatgpt, bing, bard | system | function_call | observation, tool",
        ),
        (
            "conversations[].value",
            "the turn's text; of a function_call the JSON text of {name, arguments} or a list",
        ),
        ("conversations[].weight", "optional, of the assistant: 0 = no target, 1 = target"),
        ("system", "optional system prompt"),
        ("tools", "optional: JSON text of a list of tool definitions, or the list"),
        ("lang", "optional: language"),
        ("id", "optional: `<id>_<n>` of the split release keeps the pieces of a conversation in one split"),
    ),
    quirks=(
        "A first turn that is not the human's is dropped (one, as FastChat does).",
        "Turns behind the last reply are dropped.",
        "The human's side (human, observation) and the assistant's (gpt, function_call) must alternate,"
        " else the"
        " row is rejected; so is a row with an empty turn, or without a question and a reply.",
        "function_call becomes a tool call, observation the tool's turn.",
        "The system prompt is the field `system` or the first turn; two that differ are rejected.",
        "Replies lose what the web page added: a first line `2 / 2`, `Copy code` behind a code fence,"
        " `Copy12 chars / 3 words`. HTML is left as it is: most of it stands in code.",
        "A row with images, videos, audio, history, or chosen and rejected answers is refused: it is"
        " another kind"
        " of data.",
        "White space around each turn is removed. No row is left out for its words or length.",
    ),
    example={
        "id": "QWJhYvA_0",
        "conversations": [
            {"from": "human", "value": "How late is it in Lima?"},
            {"from": "function_call", "value": '{"name": "get_time", "arguments": {"city": "Lima"}}'},
            {"from": "observation", "value": '{"time": "14:05"}'},
            {"from": "gpt", "value": "It is five past two in the afternoon."},
            {"from": "human", "value": "Thanks!"},
        ],
        "tools": '[{"name": "get_time", "parameters": {"type": "object"}}]',
    },
)
def convert_sharegpt(row: Any, name: str) -> Converted:
    """Yield the row's conversation."""
    row = take_object(row)
    refuse_filled(row, (*MEDIA_FIELDS, "history", "chosen", "rejected"))
    entries = take_list(row, "conversations")
    turns = [_read_turn(entry, f"conversations[{index}]") for index, entry in enumerate(entries)]
    system = take_optional_text(row, "system").strip()
    if turns and turns[0].role == "system":
        first = turns.pop(0).content
        if system and first and first != system:
            raise Reject("two system prompts that differ", "field 'system' and the first turn")
        system = system or first
    if turns and turns[0].role in ("assistant", "tool"):
        turns.pop(0)
    turns = list(_until_last_answer(turns))
    for index, turn in enumerate(turns):
        if turn.role == "system":
            raise Reject("system message is not the first", f"turn {index}")
        if (turn.role == "assistant") != (index % 2 == 1) or (index == 0 and turn.role != "user"):
            raise Reject("turns do not alternate", f"turn {index} of the dialogue is of {turn.role}")
        if not turn.content and not turn.tool_calls:
            raise Reject("empty turn", f"turn {index} of the dialogue")
    if system:
        turns.insert(0, Message("system", system))
    piece = _PIECE_ID.fullmatch(row["id"]) if isinstance(row.get("id"), str) else None
    yield Conversation(
        tuple(turns),
        "multi_turn",
        language=take_optional_text(row, "lang") or None,
        group=piece[1] if piece else None,
        tools=take_tools(row, "tools"),
    )


def _read_turn(value: Any, where: str) -> Message:
    entry = take_object(value, "conversations[]", where=where)
    speaker = take_text(entry, "from", "conversations[].from", where=where)
    role = _SHAREGPT_ROLES.get(speaker)
    if role is None:
        raise Reject("unknown value of field 'conversations[].from'", f"{where}: got {speaker[:40]!r}")
    text = take_text(entry, "value", "conversations[].value", where=where).strip()
    train = take_weight(entry, role, "conversations[].weight", where=where)
    if speaker == "function_call":
        called = parse_json(text, "conversations[].value", where=where)
        calls = [
            make_call(call, "conversations[].value", where=where)
            for call in (called if isinstance(called, list) else [called])
        ]
        return Message("assistant", "", None, tuple(calls), train)
    if role == "assistant":
        text = _COPY_CHARS.sub("", _COPY_CODE.sub(r"```\1\n", _COUNTER.sub("", text))).strip()
    return Message(role, text, train=train)


# Open Assistant

_OASST_ROLES: dict[str, Role] = {"prompter": "user", "assistant": "assistant"}


@register(
    "oasst_tree",
    "multi_turn",
    summary="OpenAssistant trees: {message_tree_id, tree_state, prompt: {text, role, replies: […]}}",
    fields=(
        ("message_tree_id", "the tree; its paths stay in one split. Absent: the prompt's message_id"),
        ("tree_state", "ready_for_export, null or absent"),
        ("prompt", "the first message; messages hang below it in `replies`"),
        ("role", "of a message: prompter | assistant"),
        ("text", "of a message"),
        ("rank", "of a message, optional: 0 is the best of its siblings"),
        ("deleted, review_result", "of a message, optional: true and false mean that it is not to be used"),
        ("replies", "of a message, optional: list of messages"),
        ("lang", "of a message, optional: the prompt's is the conversation's language"),
    ),
    quirks=(
        "One conversation for each tree: at each message the reply with the lowest rank; those without a rank"
        " come last, of equals the first one is taken.",
        "A reply of the same role as the message above it is not taken: the path ends there.",
        "Replies that are deleted, failed review (review_result false) or are empty are not taken.",
        "A path that ends on a prompter's message loses it.",
        "A tree whose prompt is deleted, failed review or is empty, or that has no usable reply, is"
        " rejected.",
        "A tree_state other than ready_for_export is rejected; trees without one (synthetic export) are"
        " taken.",
        "Synthetic messages are taken: OASST1 has them in ready trees.",
        "Keys that are absent and keys that are null are the same.",
        "Rows of the message export (flat, `parent_id`) and of threads are refused: they have no `prompt`.",
        "labels, emojis, detoxify, user_id and other keys are ignored; white space around texts is removed.",
    ),
    example={
        "message_tree_id": "tree-1",
        "tree_state": "ready_for_export",
        "prompt": {
            "message_id": "tree-1",
            "role": "prompter",
            "lang": "en",
            "text": "Why is the sky blue?",
            "replies": [
                {"message_id": "m-2", "role": "assistant", "text": "It just is.", "rank": 1, "replies": []},
                {
                    "message_id": "m-3",
                    "role": "assistant",
                    "text": "Air scatters blue light more than red.",
                    "rank": 0,
                    "replies": [{"message_id": "m-4", "role": "prompter", "text": "I see!", "replies": []}],
                },
            ],
        },
    },
)
def convert_oasst_tree(row: Any, name: str) -> Converted:
    """Yield the best path of the tree."""
    tree = take_object(row)
    if "prompt" not in tree:
        raise Reject("missing field 'prompt'", f"the row has {', '.join(sorted(tree)[:6])}; expected a tree")
    state = take_optional_text(tree, "tree_state")
    if state not in ("", "ready_for_export"):
        raise Reject("tree_state is not ready_for_export", f"got {state[:40]!r}")
    prompt = take_object(tree["prompt"], "prompt")
    group = take_optional_text(tree, "message_tree_id") or take_text(prompt, "message_id", "message_tree_id")
    if _read_role(prompt, "prompt") != "user":
        raise Reject("the tree's first message is not a prompter's")
    if not _is_usable(prompt, "prompt"):
        raise Reject("prompt is deleted, failed review or is empty")
    path, best = [prompt], _best_reply(prompt)
    while best is not None:
        path.append(best)
        best = _best_reply(best)
    messages = [Message(_read_role(node, "replies[]"), node["text"].strip()) for node in path]
    if len(messages) == 1:
        raise Reject("no usable reply")
    language = take_optional_text(prompt, "lang") or None
    yield Conversation(_until_last_answer(messages), "multi_turn", language=language, group=group)


def _best_reply(node: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return the reply to go on with: the lowest rank first, those without a rank last, None without any."""
    if node.get("replies") is None:
        return None
    where = f"below message {node.get('message_id', '?')}"
    ranked = []
    for index, value in enumerate(take_list(node, "replies", where=where)):
        reply = take_object(value, "replies[]", where=where)
        rank = reply.get("rank")
        if rank is not None and (isinstance(rank, bool) or not isinstance(rank, (int, float))):
            raise wrong_type("rank", rank, "number", where=where)
        if _is_usable(reply, where) and _read_role(reply, where) != _read_role(node, where):
            ranked.append((rank is None, rank or 0, index, reply))
    return min(ranked, key=lambda entry: entry[:3])[3] if ranked else None


def _read_role(node: Mapping[str, Any], where: str) -> Role:
    role = take_text(node, "role", where=where)
    if role not in _OASST_ROLES:
        raise Reject("unknown value of field 'role'", f"{where}: got {role[:40]!r}")
    return _OASST_ROLES[role]


def _is_usable(node: Mapping[str, Any], where: str) -> bool:
    for key in ("deleted", "review_result"):
        if not isinstance(node.get(key), (bool, type(None))):
            raise wrong_type(key, node[key], "boolean", where=where)
    text = take_text(node, "text", where=where)
    return node.get("deleted") is not True and node.get("review_result") is not False and bool(text.strip())
