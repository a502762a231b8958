"""Databricks Dolly 15k: instructions by people, some with a passage from Wikipedia."""

import re
from typing import Any

from data_tools.conversation import Conversation, Message
from data_tools.errors import Reject
from data_tools.formats.fields import (
    MEDIA_FIELDS,
    refuse_filled,
    take_object,
    take_optional_text,
    take_text,
)
from data_tools.formats.registry import Converted, register

CATEGORIES = (
    *("brainstorming", "classification", "closed_qa", "creative_writing"),
    *("general_qa", "information_extraction", "open_qa", "summarization"),
)
# What Wikipedia's pages have between the words: [1], [1, 2], [a], [citation needed], [].
_CITATION = re.compile(r"\[(?:\d+(?:,\s*\d+)*|[a-zA-Z]|citation needed|)\]")


def is_dolly(row: Any) -> bool:
    """Tell whether a row is Dolly's, under its own names or those of the renamed edition."""
    if not isinstance(row, dict) or not isinstance(row.get("instruction"), str):
        return False
    has_fields = {"context", "response"} <= row.keys() or {"input", "output"} <= row.keys()
    return has_fields and row.get("category") in CATEGORIES


@register(
    "dolly",
    "single_turn",
    license="CC BY-SA 3.0",
    summary="Databricks Dolly 15k: rows of instruction, context, response, category",
    fields=(
        ("instruction", "what is asked"),
        ("context", "optional: the passage that it is asked about; `input` in the renamed edition"),
        ("response", "the answer; `output` in the renamed edition"),
        ("category", f"optional: the kind of instruction, one of {', '.join(CATEGORIES)}"),
    ),
    quirks=(
        "user = instruction, blank line, context; without a context the instruction alone.",
        "Citation marks of Wikipedia are removed from the context: `[1]`, `[1, 2]`, `[a]`, `[citation needed]`,"
        " `[]`. From the response only those that stand in the context too, with which they were copied.",
        "The category is kept, an unknown one as well.",
        "White space around each field is removed.",
        "An empty instruction or response is rejected.",
    ),
    example={
        "instruction": "When was the bridge opened?",
        "context": "The bridge was opened in 1894.[1] It is 240 m long.[citation needed]",
        "response": "It was opened in 1894.",
        "category": "closed_qa",
    },
    recognise=is_dolly,
)
def convert_dolly(row: Any, name: str) -> Converted:
    """Yield the row's conversation."""
    row = take_object(row)
    refuse_filled(row, (*MEDIA_FIELDS, "history", "system"))
    instruction = take_text(row, "instruction").strip()
    given = take_optional_text(row, "context" if "context" in row else "input")
    response = take_text(row, "output" if "response" not in row and "output" in row else "response")
    marks = set(_CITATION.findall(given))
    context = _CITATION.sub("", given).strip()
    answer = _CITATION.sub(lambda mark: "" if mark[0] in marks else mark[0], response).strip()
    if not instruction:
        raise Reject("empty instruction")
    if not answer:
        raise Reject("empty response")
    question = f"{instruction}\n\n{context}" if context else instruction
    category = take_optional_text(row, "category").strip() or None
    yield Conversation(
        (Message("user", question), Message("assistant", answer)), "single_turn", None, category
    )
