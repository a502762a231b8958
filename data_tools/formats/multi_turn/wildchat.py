"""WildChat: dialogues with flags at each turn."""

from collections.abc import Mapping
from typing import Any

from data_tools.conversation import Conversation, Message, Role
from data_tools.errors import Reject
from data_tools.formats.fields import (
    take_list,
    take_object,
    take_optional_text,
    take_text,
    take_weight,
    wrong_type,
)
from data_tools.formats.multi_turn.messages import is_list_of_messages
from data_tools.formats.registry import Converted, Option, register
from data_tools.formats.turns import check_alternation, name_group, until_blank_turn, until_last_answer

_PLACEHOLDER = "<PRESIDIO_ANONYMIZED_"
_WILDCHAT_ROLES: dict[str, Role] = {"user": "user", "assistant": "assistant", "system": "system"}


def _is_wildchat(row: Any) -> bool:
    if not isinstance(row, dict):
        return False
    if is_list_of_messages(row.get("conversation")):
        return bool({"conversation_id", "conversation_hash", "toxic", "redacted"} & row.keys())
    return {"prompt", "response", "model", "timestamp", "language"} <= row.keys()


@register(
    "wildchat",
    "multi_turn",
    license="ODC-BY; older cards: AI2 ImpACT",
    summary="WildChat: {conversation: [{role, content, toxic, redacted, …}], language, toxic, redacted}",
    fields=(
        ("conversation", "list of turns"),
        ("conversation[].role", "user | assistant | system"),
        ("conversation[].content", "the turn's text"),
        ("conversation[].toxic, redacted", "optional flags of a turn"),
        ("conversation[].train, weight", "optional, of the assistant: whether it is a target"),
        ("prompt, response", "one exchange, in the flattened form, instead of `conversation`"),
        ("language", "optional: language"),
        ("toxic, redacted", "optional flags of the row"),
    ),
    quirks=(
        "A row that is toxic, or has a toxic turn, is rejected.",
        "A reply that is redacted (its flag, or a placeholder `<PRESIDIO_ANONYMIZED_…>` in it) stays in the"
        " dialogue but is no target, so that no model learns to write placeholders; without another reply"
        " the row is rejected. The option `redacted` takes or rejects such rows whole.",
        "The flag of the row alone does not say which turn is redacted: it counts only where the turns have"
        " no flags, and then for all of them.",
        "An empty turn (clicked away, or cut off) ends the dialogue before it.",
        "Addresses, headers, country, state, hashes, times, moderation scores and the model's name are not"
        " used.",
        "Dialogues that begin with the same question stay in one split: some prompt templates occur"
        " thousands of times.",
        "White space around each turn is removed.",
    ),
    example={
        "conversation_hash": "c0ffee",
        "model": "a-model",
        "language": "English",
        "toxic": False,
        "redacted": True,
        "conversation": [
            {"role": "user", "content": "Who lives there?", "toxic": False, "redacted": False},
            {
                "role": "assistant",
                "content": "<PRESIDIO_ANONYMIZED_PERSON> does.",
                "toxic": False,
                "redacted": True,
            },
            {"role": "user", "content": "And in the lighthouse?", "toxic": False, "redacted": False},
            {"role": "assistant", "content": "Only gulls.", "toxic": False, "redacted": False},
        ],
    },
    options=(
        Option(
            "redacted",
            str,
            "untrained",
            "What becomes of redacted replies: untrained = no targets, keep = taken as the others, reject ="
            " a row with a redacted turn is rejected.",
            choices=("untrained", "keep", "reject"),
        ),
    ),
    recognise=_is_wildchat,
)
def convert_wildchat(row: Any, name: str, *, redacted: str = "untrained") -> Converted:
    """Yield the row's conversation."""
    row = take_object(row)
    if "conversation" in row:
        entries = take_list(row, "conversation")
    else:
        given = [("user", take_text(row, "prompt")), ("assistant", take_text(row, "response"))]
        entries = [{"role": role, "content": content} for role, content in given]
    if _flag(row, "toxic", ""):
        raise Reject("filter: toxic")
    whole = _flag(row, "redacted", "")
    has_flags = any(isinstance(entry, dict) and entry.get("redacted") is not None for entry in entries)
    turns, num_redacted = [], 0
    for index, entry in enumerate(entries):
        turn, is_redacted = _read_wild_turn(entry, f"conversation[{index}]", whole and not has_flags)
        num_redacted += is_redacted
        if is_redacted and redacted == "untrained":
            turn = Message(turn.role, turn.content, train=False if turn.role == "assistant" else turn.train)
        turns.append(turn)
    if num_redacted and redacted == "reject":
        raise Reject("redacted", f"{num_redacted} turns")
    system = [turns.pop(0)] if turns and turns[0].role == "system" else []
    turns = list(until_last_answer(until_blank_turn(turns)))
    check_alternation(turns)
    if num_redacted and all(turn.train is False for turn in turns if turn.role == "assistant"):
        raise Reject("every reply is redacted or not trained on", f"{num_redacted} turns are redacted")
    yield Conversation(
        (*(turn for turn in system if turn.content), *turns),
        "multi_turn",
        language=take_optional_text(row, "language") or None,
        group=name_group(turns[0].content),
    )


def _read_wild_turn(value: Any, where: str, row_is_redacted: bool) -> tuple[Message, bool]:
    """Return a turn, and whether it is redacted."""
    entry = take_object(value, "conversation[]", where=where)
    given = take_text(entry, "role", "conversation[].role", where=where)
    role = _WILDCHAT_ROLES.get(given)
    if role is None:
        raise Reject("unknown value of field 'conversation[].role'", f"{where}: got {given[:40]!r}")
    if _flag(entry, "toxic", where):
        raise Reject("filter: toxic", where)
    text = take_optional_text(entry, "content", "conversation[].content", where=where).strip()
    train = take_weight(entry, role, "conversation[].weight", where=where)
    is_redacted = _flag(entry, "redacted", where) or row_is_redacted or _PLACEHOLDER in text
    return Message(role, text, train=train), is_redacted


def _flag(entry: Mapping[str, Any], key: str, where: str) -> bool:
    value = entry.get(key)
    if not isinstance(value, (bool, type(None))):
        raise wrong_type(f"conversation[].{key}" if where else key, value, "boolean", where=where)
    return value is True
