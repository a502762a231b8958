"""WizardLM and Evol-Instruct: instructions made harder step by step."""

from collections.abc import Mapping
from typing import Any

from data_tools.conversation import Conversation, Message, Role
from data_tools.errors import Reject
from data_tools.formats.fields import (
    MEDIA_FIELDS,
    refuse_filled,
    take_list,
    take_object,
    take_text,
    take_weight,
)
from data_tools.formats.registry import Converted, register
from data_tools.formats.single_turn.alpaca_fields import (
    INPUT_QUIRKS,
    OUTPUT_QUIRKS,
    clean_output,
    make_alpaca,
)

_ROLES: dict[str, Role] = {"human": "user", "gpt": "assistant"}


def is_wizardlm(row: Any) -> bool:
    """Tell whether a row is of V2 or of the test set; those of the 70k look like alpaca's."""
    if not isinstance(row, dict):
        return False
    turns = row.get("conversations")
    if isinstance(turns, list) and turns and "idx" in row:
        return all(isinstance(turn, dict) and {"from", "value"} <= turn.keys() for turn in turns)
    return {"Skill", "Difficulty", "Instruction"} <= row.keys()


@register(
    "wizardlm",
    "single_turn",
    license="CC BY-NC 4.0",
    summary="WizardLM: rows of instruction, output (70k); {idx, conversations: [{from, value}]} (V2, 196k)",
    fields=(
        ("instruction", "what is asked (70k)"),
        ("output", "the answer (70k)"),
        ("conversations", "list of turns (V2)"),
        ("conversations[].from", "human | gpt"),
        ("conversations[].value", "the turn's text"),
        ("conversations[].weight, train", "optional, of gpt: 0 or false = no target, 1 or true = target"),
    ),
    quirks=(
        "A dialogue of V2 must begin with human, alternate, and end with gpt: as its loaders do, a row that begins"
        " with gpt or has an odd number of turns is rejected, and so is one with an empty turn.",
        "Refusals are kept: which answers are wanted is for the filters of the settings.",
        "Rows of the test set (idx, Skill, Difficulty, Instruction) have no output and are rejected.",
        *INPUT_QUIRKS,
        *OUTPUT_QUIRKS,
        "White space around each text is removed. An empty instruction or output is rejected.",
        "`format: auto` takes rows of the 70k for `alpaca`, which they look like.",
    ),
    example={
        "idx": "kJ3tQ2r",
        "conversations": [
            {"from": "human", "value": "Name two primes whose sum is a square, and say why there are more."},
            {"from": "gpt", "value": "2 and 7: their sum is 9. 2 + 23 = 25 is another such pair."},
        ],
    },
    recognise=is_wizardlm,
)
def convert_wizardlm(row: Any, name: str) -> Converted:
    """Yield the row's conversation."""
    row = take_object(row)
    if "conversations" in row:
        yield _convert_dialogue(row)
        return
    if "Instruction" in row and row.get("output") is None:
        raise Reject("no output", "a row of the test set")
    yield make_alpaca(row)


def _convert_dialogue(row: Mapping[str, Any]) -> Conversation:
    refuse_filled(row, (*MEDIA_FIELDS, "system", "tools", "history"))
    messages = []
    for index, value in enumerate(take_list(row, "conversations")):
        where = f"conversations[{index}]"
        turn = take_object(value, "conversations[]", where=where)
        speaker = take_text(turn, "from", "conversations[].from", where=where)
        role = _ROLES.get(speaker)
        if role is None:
            raise Reject("unknown value of field 'conversations[].from'", f"{where}: got {speaker[:40]!r}")
        if role != ("assistant" if index % 2 else "user"):
            expected = "gpt" if index % 2 else "human"
            raise Reject("turns do not alternate", f"{where}: got {speaker}; expected {expected}")
        text = take_text(turn, "value", "conversations[].value", where=where)
        text = clean_output(text) if role == "assistant" else text.strip()
        if not text:
            raise Reject("empty turn", where)
        train = take_weight(turn, role, "conversations[].weight", where=where)
        messages.append(Message(role, text, train=train))
    if len(messages) % 2:
        raise Reject("odd number of turns", f"got {len(messages)}")
    return Conversation(tuple(messages), "single_turn")
