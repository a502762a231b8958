"""UltraChat: lists of strings, and the 200k selection of it as messages."""

from typing import Any

from data_tools.conversation import Conversation, Message
from data_tools.errors import Reject
from data_tools.formats.fields import take_list, take_object, take_optional_text, wrong_type
from data_tools.formats.multi_turn.messages import is_list_of_messages, read_messages
from data_tools.formats.registry import Converted, register
from data_tools.formats.turns import until_blank_turn, until_last_answer


def _is_ultrachat(row: Any) -> bool:
    turns = row.get("data") if isinstance(row, dict) and "id" in row else None
    return isinstance(turns, list) and len(turns) > 1 and all(isinstance(turn, str) for turn in turns)


@register(
    "ultrachat",
    "multi_turn",
    license="MIT",
    summary="UltraChat: {id, data: [question, answer, question, …]}",
    fields=(
        ("data", "list of strings: user and assistant in turn, the user first"),
        ("id", "optional, not used"),
    ),
    quirks=(
        "Who speaks is told by the place: even places are the user's, odd ones the assistant's.",
        "A last question without an answer is dropped.",
        "An empty turn ends the dialogue before it; an empty first exchange rejects the row.",
        "White space around each turn is removed.",
    ),
    example={"id": "0", "data": ["What floats?", "Wood does.", "And iron?", "Only as a hollow hull."]},
    recognise=_is_ultrachat,
)
def convert_ultrachat(row: Any, name: str) -> Converted:
    """Yield the row's conversation."""
    turns = []
    for index, text in enumerate(take_list(take_object(row), "data")):
        if not isinstance(text, str):
            raise wrong_type("data[]", text, "string", where=f"data[{index}]")
        turns.append(Message("assistant" if index % 2 else "user", text.strip()))
    yield Conversation(until_last_answer(until_blank_turn(turns)), "multi_turn")


# UltraChat-200k


def _is_ultrachat_200k(row: Any) -> bool:
    if not (isinstance(row, dict) and isinstance(row.get("prompt_id"), str)):
        return False
    return isinstance(row.get("prompt"), str) and is_list_of_messages(row.get("messages"))


@register(
    "ultrachat_200k",
    "multi_turn",
    license="MIT",
    summary="UltraChat-200k and what has its columns (Deita, No Robots): {prompt, prompt_id, messages}",
    fields=(
        ("messages", "list of messages {role, content}; as of the format `messages`"),
        ("prompt", "the first message of the user's again"),
        ("prompt_id", "hash of the prompt"),
    ),
    quirks=(
        "The dialogue is `messages`; `prompt` is only compared with its first message of the user's, and a"
        " row where they differ (beyond white space) is rejected.",
        "Rows of the same `prompt_id` stay in one split: the splits for generation repeat the prompts of the"
        " splits for training.",
        "Rows that end on the user's turn lose it; a row of one message is rejected.",
        "Contents are taken as they are, white space included.",
    ),
    example={
        "prompt": "Name a sea.",
        "prompt_id": "5a1f",
        "messages": [
            {"content": "Name a sea.", "role": "user"},
            {"content": "The Baltic Sea.", "role": "assistant"},
            {"content": "Another one?", "role": "user"},
        ],
    },
    recognise=_is_ultrachat_200k,
)
def convert_ultrachat_200k(row: Any, name: str) -> Converted:
    """Yield the row's conversation."""
    row = take_object(row)
    prompt = take_optional_text(row, "prompt")
    messages = read_messages(row)
    asked = next((message.content for message in messages if message.role == "user"), "")
    if prompt.strip() and prompt.split() != asked.split():
        raise Reject("prompt is not the first message of the user's", f"{len(prompt)} characters")
    group = take_optional_text(row, "prompt_id") or None
    yield Conversation(messages, "multi_turn", group=group)
