"""Dialogues that are one string with markers: OpenAssistant-Guanaco, Baize, Guanaco."""

import re
from collections.abc import Mapping
from typing import Any

from data_tools.conversation import Conversation, Message, Role
from data_tools.errors import Reject
from data_tools.formats.fields import take_object, take_optional_text, take_text
from data_tools.formats.registry import Converted, get_format, register, resolve_options
from data_tools.formats.turns import (
    check_alternation,
    name_group,
    split_transcript,
    until_blank_turn,
    until_last_answer,
)

_ROLES: dict[str, Role] = {
    "Human": "user",
    "User": "user",
    "AI": "assistant",
    "Assistant": "assistant",
}

# OpenAssistant-Guanaco

# Not behind another #: a heading of four in a reply may have these words too.
_HASH_MARKER = re.compile(r"(?<!#)###[ \t]*(Human|Assistant):")


def _is_openassistant_guanaco(row: Any) -> bool:
    text = row.get("text") if isinstance(row, dict) else None
    return isinstance(text, str) and _HASH_MARKER.match(text.lstrip()) is not None


@register(
    "openassistant_guanaco",
    "multi_turn",
    license="Apache-2.0",
    summary="OpenAssistant-Guanaco: {text: '### Human: …### Assistant: …'}, the best path of each OASST1 tree",
    fields=(
        ("text", "the whole dialogue, or, beside `output`, all of it but the last reply"),
        ("output", "optional, in rows made for evaluation: the last reply"),
        ("lang", "optional: language"),
    ),
    quirks=(
        "Turns begin at `### Human:` and `### Assistant:` wherever they stand: there is neither a line break"
        " nor a space before the next one. Other `###` are headings in replies.",
        "A row that ends on a turn of the human's loses it.",
        "With an `output` the dialogue ends on an empty `### Assistant:`, and the output is that reply, taken"
        " as one whatever marks are in it. Rows with the same first question stay in one split: they are"
        " stages of one dialogue. `prompt`, the same text behind a preamble, and `input` are not used.",
        "Text before the first marker, turns that do not alternate, and an empty first exchange reject the"
        " row; a later empty turn ends the dialogue.",
        "White space around each turn is removed.",
    ),
    example={
        "text": "### Human: How do I boil an egg?### Assistant: ### Soft\nSix minutes.\n### Hard\nTen minutes."
        "### Human: Thank you!"
    },
    recognise=_is_openassistant_guanaco,
)
def convert_openassistant_guanaco(row: Any, name: str) -> Converted:
    """Yield the row's conversation."""
    row = take_object(row)
    preamble, parts = split_transcript(take_text(row, "text"), _HASH_MARKER)
    output = take_optional_text(row, "output").strip()
    if output:
        if not parts or parts[-1] != ("Assistant", ""):
            raise Reject("text does not end on '### Assistant:'", "the row has an output")
        parts[-1] = ("Assistant", output)
    turns = _read_turns(preamble, parts)
    yield Conversation(
        tuple(turns),
        "multi_turn",
        language=take_optional_text(row, "lang") or None,
        group=name_group(turns[0].content) if output else None,
    )


def _read_turns(preamble: str, parts: list[tuple[str, str]]) -> list[Message]:
    """Return the dialogue of a split transcript."""
    if not parts:
        raise Reject("no marker of a turn")
    if preamble:
        raise Reject("text before the first turn", f"{len(preamble)} characters")
    turns = [Message(_ROLES[speaker], text) for speaker, text in parts]
    turns = list(until_last_answer(until_blank_turn(turns)))
    check_alternation(turns)
    return turns


# Baize

_BAIZE_MARKER = re.compile(r"\[\|(Human|AI)\|\]")
_BAIZE_PREAMBLE = re.compile(
    r"The conversation between (?:a )?human and (?:an )?AI assistant\.?", re.IGNORECASE
)


def _is_baize(row: Any) -> bool:
    text = row.get("input") if isinstance(row, dict) else None
    return isinstance(text, str) and {"Human", "AI"} <= set(_BAIZE_MARKER.findall(text))


@register(
    "baize",
    "multi_turn",
    license="research use only",
    summary="Baize: {topic, input: 'The conversation between …[|Human|] …[|AI|] …[|Human|] '}",
    fields=(
        ("input", "the whole dialogue"),
        ("topic", "optional, not used: the question that the dialogue was seeded with"),
    ),
    quirks=(
        "The first line (`The conversation between human and AI assistant.`) is dropped; any other text"
        " before the first marker rejects the row.",
        "Turns begin at `[|Human|]` and `[|AI|]`, not at line breaks: replies have several lines.",
        "The empty `[|Human|]` at the end of every row is dropped, and so is a last question without a reply.",
        "A round without a reply, or with an empty one, is skipped, as Baize's own loaders do.",
        "Two replies in a row, a reply before the first question, and an empty first question reject the row;"
        " a later empty question ends the dialogue.",
        "White space around each turn is removed.",
    ),
    example={
        "topic": "boiling eggs",
        "input": "The conversation between human and AI assistant.\n[|Human|] How do I boil an egg?\n"
        "[|AI|] Put it into boiling water.\nWait six minutes.\n[|Human|] ",
    },
    recognise=_is_baize,
)
def convert_baize(row: Any, name: str) -> Converted:
    """Yield the row's conversation."""
    preamble, parts = split_transcript(take_text(take_object(row), "input"), _BAIZE_MARKER)
    parts = [part for part in parts if part != ("AI", "")]
    followers = [speaker for speaker, _ in parts[1:]] + [""]
    kept = [
        part for part, next_ in zip(parts, followers, strict=False) if (part[0], next_) != ("Human", "Human")
    ]
    if _BAIZE_PREAMBLE.fullmatch(preamble):
        preamble = ""
    yield Conversation(tuple(_read_turns(preamble, kept)), "multi_turn")


# Guanaco

# With or without a space behind, also directly behind a full stop; but not in the middle of a word.
_USER_MARKER = re.compile(r"(?<![A-Za-z0-9_'\"`])(User|Assistant)[:：]")
_FIRST_MARKER = re.compile(r"\s*(?:System|User|Assistant)[:：]")
_KNOWLEDGE = re.compile(r"\s*System[:：](.*?)(?=(?<![A-Za-z0-9_'\"`])(?:User|Assistant)[:：]|\Z)", re.DOTALL)


def _is_guanaco(row: Any) -> bool:
    if not (isinstance(row, dict) and isinstance(row.get("output"), str)):
        return False
    earlier, last = row.get("instruction"), row.get("input")
    if not (isinstance(earlier, str) and isinstance(last, str)):
        return False
    return bool(_FIRST_MARKER.match(last)) and (not earlier or bool(_FIRST_MARKER.match(earlier)))


@register(
    "guanaco",
    "multi_turn",
    license="GPL-3.0 (unconfirmed)",
    summary="Guanaco (JosephusCheung): Alpaca's fields with an earlier dialogue in `instruction`",
    fields=(
        (
            "instruction",
            "of a chat row: the earlier dialogue, `User: … Assistant: …` in one string, or empty",
        ),
        ("input", "of a chat row: optional `System: <knowledge>`, then `User: <the last question>`"),
        ("output", "the reply, without a marker"),
    ),
    quirks=(
        "A row is a chat if its instruction, or its input, begins with `User:`, `Assistant:` or `System:`;"
        " any other row is converted as `alpaca` and is a single turn.",
        "Markers count with or without a space or line break around them (`…end.Assistant:Yes`), with an"
        " ASCII or a full-width colon, but not behind a letter, digit or quote (`SuperUser:`).",
        "The knowledge behind `System:` becomes the system turn, though it stands before the last question.",
        "The instruction may end on the assistant's turn or on a question; a question that the input repeats"
        " is taken once, two that differ are joined by a line break.",
        "Turns that do not alternate, an empty turn, and text before the first marker reject the row.",
        "White space around each turn is removed.",
    ),
    example={
        "instruction": "User: I am going to Oslo. Assistant:Lovely! When?",
        "input": "System: Oslo lies at 60 degrees north.\nUser: In June. Are the nights dark?",
        "output": "Hardly: so far north the June nights stay light.",
    },
    recognise=_is_guanaco,
)
def convert_guanaco(row: Any, name: str) -> Converted:
    """Yield the row's conversation: a dialogue, or a single turn as Alpaca's."""
    row = take_object(row)
    earlier, last = take_text(row, "instruction"), take_optional_text(row, "input")
    if not (_FIRST_MARKER.match(earlier) or _FIRST_MARKER.match(last)):
        alpaca = get_format("alpaca")
        yield from alpaca.convert(row, name, **resolve_options(alpaca, {}, where="alpaca"))
        return
    yield _read_chat(row, earlier, last)


def _read_chat(row: Mapping[str, Any], earlier: str, last: str) -> Conversation:
    knowledge: list[str] = []
    parts: list[tuple[str, str]] = []
    for text in (earlier, last):
        if found := _KNOWLEDGE.match(text):
            knowledge.append(found[1].strip())
            text = text[found.end() :]
        preamble, turns = split_transcript(text, _USER_MARKER)
        if preamble:
            raise Reject("text before the first turn", f"{len(preamble)} characters")
        if parts and turns and parts[-1][0] == turns[0][0] == "User":
            asked, again = parts.pop()[1], turns.pop(0)[1]
            turns.insert(0, ("User", again if asked in ("", again) else f"{asked}\n{again}"))
        parts += turns
    dialogue = [Message(_ROLES[speaker], text) for speaker, text in parts]
    dialogue.append(Message("assistant", take_text(row, "output").strip()))
    check_alternation(dialogue)
    for index, turn in enumerate(dialogue):
        if not turn.content:
            raise Reject("empty turn", f"turn {index} of the dialogue")
    system = "\n".join(filter(None, knowledge))
    return Conversation(((Message("system", system),) if system else ()) + tuple(dialogue), "multi_turn")
