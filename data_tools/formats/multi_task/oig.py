"""OIG, the Open Instruction Generalist dataset: texts with the marks of human and bot."""

import re
from typing import Any

from data_tools.conversation import Conversation, Message, Role
from data_tools.errors import Reject
from data_tools.formats.fields import parse_json, take_object, take_text, wrong_type
from data_tools.formats.multi_task.task_rows import TASK, file_stem, has_texts, one_exchange
from data_tools.formats.registry import Converted, register

_MARK = re.compile(r"^<(human|bot)>:", re.MULTILINE)
_TRAINING_TEXT = re.compile(r"^(?:User|Joi):", re.MULTILINE)


def recognise(row: Any) -> bool:
    """Return whether a row has a text in which both marks begin a line."""
    return has_texts(row, "text") and {"human", "bot"} <= set(_MARK.findall(row["text"]))


@register(
    "oig",
    "multi_task",
    license="Apache-2.0, and those of its sources",
    summary="OIG: rows with a text of `<human>: …` and `<bot>: …`; files `unified_<subset>.jsonl`",
    fields=(
        ("text", "one or more of `<human>: instruction` and `<bot>: response`, each at the start of a line"),
        ("metadata", "optional object, or the JSON text of one; its `source` is the category"),
    ),
    quirks=(
        "Texts are split at marks that begin a line; `<bot>:` within a line is text.",
        "Background text before the first mark goes to the first question, with a blank line between; before a"
        " bot's first turn it is the question. A bot's first turn without background is dropped.",
        "Questions behind the last reply are dropped, and so is an empty reply at the end.",
        "Turns of one side that follow each other are joined by a line break.",
        "A row with an empty turn elsewhere, or without a question and a reply, is rejected.",
        "The task is the subset: `chip2` of unified_chip2.jsonl.",
        "The repository's training text, `User: …` and `Joi: …` with <|endoftext|>, is another form and is"
        " refused by that name.",
        "White space around each turn is removed.",
    ),
    example={
        "text": "A visit to the market.\n<human>: What are these?\n<bot>: Plums.\nThey are ripe.\n<human>: Thanks!",
        "metadata": {"source": "invented-dialogues"},
    },
    example_name="unified_market_dialog.jsonl",
    options=(TASK,),
    recognise=recognise,
)
def convert_oig(row: Any, name: str, *, task: str | None = None) -> Converted:
    """Yield the row's conversation."""
    row = take_object(row)
    text = take_text(row, "text").replace("\r\n", "\n")
    category = _read_source(row.get("metadata"))
    task = task or file_stem(name).removeprefix("unified_")
    messages = _read_turns(text)
    if len(messages) == 2:
        yield one_exchange(messages[0].content, [messages[1].content], task=task, category=category)
    else:
        yield Conversation(tuple(messages), "multi_task", task, category)


def _read_turns(text: str) -> list[Message]:
    """Return turns that alternate, from a question to a reply. Raises Reject where there are none."""
    marks = list(_MARK.finditer(text))
    if not marks:
        if _TRAINING_TEXT.search(text):
            raise Reject("training text of the form User: / Joi:", "expected <human>: and <bot>:")
        raise Reject("no <human>: or <bot>: begins a line")
    turns = [("human", text[: marks[0].start()].strip())]  # the background
    ends = [mark.start() for mark in marks[1:]] + [len(text)]
    for mark, end in zip(marks, ends, strict=True):
        turns.append((mark[1], text[mark.end() : end].strip()))
    if not turns[0][1]:
        turns.pop(0)
    elif turns[1][0] == "human":
        turns[:2] = [("human", f"{turns[0][1]}\n\n{turns[1][1]}")]
    if turns[0][0] == "bot":
        turns.pop(0)
    while turns and (turns[-1][0] == "human" or not turns[-1][1]):
        turns.pop()
    if not turns:
        raise Reject("no question with a reply")
    messages: list[Message] = []
    for index, (speaker, content) in enumerate(turns):
        if not content:
            raise Reject("empty turn", f"turn {index} of the dialogue")
        role: Role = "user" if speaker == "human" else "assistant"
        if messages and messages[-1].role == role:
            messages[-1] = Message(role, f"{messages[-1].content}\n{content}")
        else:
            messages.append(Message(role, content))
    return messages


def _read_source(metadata: Any) -> str | None:
    if isinstance(metadata, str):
        metadata = parse_json(metadata, "metadata") if metadata.strip() else None
    if metadata is None:
        return None
    if not isinstance(metadata, dict):
        raise wrong_type("metadata", metadata, "object")
    source = metadata.get("source")
    return source.strip() or None if isinstance(source, str) else None
