"""LIMA: a thousand chosen questions and long answers, a few of them dialogues."""

from typing import Any

from data_tools.conversation import Conversation, Message
from data_tools.errors import Reject
from data_tools.formats.fields import (
    MEDIA_FIELDS,
    refuse_filled,
    take_list,
    take_object,
    take_optional_text,
    wrong_type,
)
from data_tools.formats.registry import Converted, register
from data_tools.formats.single_turn.alpaca_fields import make_alpaca


def is_lima(row: Any) -> bool:
    """Tell whether a row is a list of strings in turn and the name of their source."""
    if not isinstance(row, dict) or not isinstance(row.get("source"), str):
        return False
    turns = row.get("conversations")
    return isinstance(turns, list) and bool(turns) and all(isinstance(turn, str) for turn in turns)


@register(
    "lima",
    "single_turn",
    license="CC BY-NC-SA or a stricter one of the source (unconfirmed)",
    summary="LIMA: {conversations: [question, answer, …], source}; LLaMA-Factory's form with history too",
    fields=(
        ("conversations", "list of strings: the user's and the assistant's turns by position"),
        ("source", "optional: where the row comes from, such as stackexchange or wikihow"),
        (
            "instruction, input, output, history",
            "LLaMA-Factory's form: the last exchange and the earlier ones",
        ),
    ),
    quirks=(
        "The first turn is the user's, then they take turns.",
        "An odd number of turns loses the last one, which nobody answers.",
        "A row of one turn (the test file) is rejected: it has no answer.",
        "The source becomes the category.",
        "White space around each turn is removed; an empty turn rejects the row.",
        "In LLaMA-Factory's form history stands before instruction and output, as in `alpaca`.",
    ),
    example={
        "conversations": [
            "How do I keep basil fresh?",
            "Put the stems in a glass of water and keep it at room temperature.\n",
        ],
        "source": "paper_authors",
    },
    recognise=is_lima,
)
def convert_lima(row: Any, name: str) -> Converted:
    """Yield the row's conversation."""
    row = take_object(row)
    refuse_filled(row, MEDIA_FIELDS)
    category = take_optional_text(row, "source").strip() or None
    if "conversations" not in row and "instruction" in row:
        yield make_alpaca(row, category=category)
        return
    turns = take_list(row, "conversations")
    for index, text in enumerate(turns):
        if not isinstance(text, str):
            raise wrong_type("conversations[]", text, "string", where=f"conversations[{index}]")
    answered = turns[: len(turns) // 2 * 2]
    if not answered:
        raise Reject(
            "no output", "a question without an answer, as in the test file" if turns else "no turns"
        )
    for index, text in enumerate(answered):
        if not text.strip():
            raise Reject("empty turn", f"conversations[{index}]")
    messages = tuple(
        Message("assistant" if index % 2 else "user", text.strip()) for index, text in enumerate(answered)
    )
    yield Conversation(messages, "single_turn", category=category)
