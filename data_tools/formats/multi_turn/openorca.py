"""OpenOrca: answers to FLAN questions under a system prompt."""

from typing import Any

from data_tools.conversation import Conversation, Message
from data_tools.errors import Reject
from data_tools.formats.fields import take_object, take_optional_text, take_text
from data_tools.formats.registry import Converted, register

# The prefix of `id`: which part of the FLAN collection the question is from.
_MIXTURES = {
    "niv": "Super-Natural Instructions",
    "flan": "Flan 2021",
    "t0": "T0 (P3)",
    "cot": "chain of thought",
}


def _is_openorca(row: Any) -> bool:
    return isinstance(row, dict) and {"system_prompt", "question", "response"} <= row.keys()


@register(
    "openorca",
    "multi_turn",
    license="MIT",
    summary="OpenOrca: {id: 'flan.12', system_prompt, question, response}; SlimOrca is `sharegpt`",
    fields=(
        ("question", "what is asked, an input of the FLAN collection"),
        ("response", "the answer"),
        ("system_prompt", "optional, often empty"),
        ("id", "optional: `niv.`, `flan.`, `t0.` or `cot.` before a number"),
    ),
    quirks=(
        "An empty system prompt makes no system turn.",
        "The prefix of `id` is the task (`niv`), and the collection that it stands for the category; another"
        " prefix, or none, makes no task.",
        "Questions are taken with their boilerplate (`Output:`, `Answer:` at the end).",
        "An empty question or response rejects the row.",
        "White space around each field is removed.",
    ),
    example={
        "id": "cot.17",
        "system_prompt": "Explain each step.",
        "question": "A pen costs 2 coins. What do 3 pens cost?\nAnswer:",
        "response": "Each costs 2, so 3 cost 3 × 2 = 6 coins.",
    },
    recognise=_is_openorca,
)
def convert_openorca(row: Any, name: str) -> Converted:
    """Yield the row's conversation."""
    row = take_object(row)
    system = take_optional_text(row, "system_prompt").strip()
    question, response = take_text(row, "question").strip(), take_text(row, "response").strip()
    if not question:
        raise Reject("empty question")
    if not response:
        raise Reject("empty response")
    messages = [Message("system", system)] if system else []
    messages += [Message("user", question), Message("assistant", response)]
    prefix = str(row.get("id")).partition(".")[0]
    task = prefix if prefix in _MIXTURES else None
    yield Conversation(tuple(messages), "multi_turn", task=task, category=_MIXTURES.get(prefix))
