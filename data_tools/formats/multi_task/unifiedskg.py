"""UnifiedSKG: questions and dialogues about tables, databases and graphs, as text to text."""

import re
from pathlib import PurePosixPath
from typing import Any

from data_tools.formats.fields import take_object, take_optional_text, take_text
from data_tools.formats.multi_task.task_rows import TASK, has_texts, one_exchange, task_of_file
from data_tools.formats.registry import Converted, register

# Stands between the newest utterance of a dialogue and the earlier ones, of which there may be none.
_HISTORY = re.compile(r"(?:^|\s)\|\|(?:\s|$)")


def recognise(row: Any) -> bool:
    """Return whether a row has the three texts of the collection's own encoding."""
    return has_texts(row, "text_in", "struct_in", "seq_out")


@register(
    "unifiedskg",
    "multi_task",
    license="Apache-2.0",
    summary="UnifiedSKG: rows of text_in, struct_in, seq_out: questions about tables, databases, graphs",
    fields=(
        ("text_in", "the question, or `newest utterance || earlier | earliest` of a dialogue; may be empty"),
        ("struct_in", "the linearised table or graph; may be empty"),
        ("seq_out", "the answer"),
        ("arg_path", "optional: `META_TUNING/kvret.cfg`, whose name is the task"),
        ("id", "optional: of a dialogue's turns the dialogue"),
    ),
    quirks=(
        "user = `text_in ; structured knowledge: struct_in`, as the authors' code has it; without struct_in the"
        " text alone, without text_in `structured knowledge: struct_in`.",
        "Of a dialogue, user = `newest utterance ; structured knowledge: struct_in ; context: earlier utterances`,"
        " newest first as published. The `||` that an empty history leaves behind is removed.",
        "`prediction` is a model's output and is never used; the answer is seq_out.",
        "The task is the name in arg_path, else the file's name.",
        "Turns of a dialogue (rows with `||` and the same id, section and task) stay in one split.",
        "`section` (train, dev, test) decides nothing else: name the files that you want.",
        "The raw fields of the task (dialogue, kb, intent, …) are not used: struct_in says the same;"
        " `entities_file` is a path on the authors' machine.",
        "White space around each text is removed.",
    ),
    example={
        "id": 3,
        "text_in": "and on sunday? || it will rain. | will it rain in oslo on monday?",
        "struct_in": "col : city | monday | sunday row 1 : oslo | rain | sun",
        "seq_out": "no, the sun will shine.",
        "prediction": "maybe.",
        "section": "train",
        "arg_path": "META_TUNING/weather.cfg",
    },
    options=(TASK,),
    recognise=recognise,
)
def convert_unifiedskg(row: Any, name: str, *, task: str | None = None) -> Converted:
    """Yield the row's conversation."""
    row = take_object(row)
    answer = take_text(row, "seq_out").strip()
    text = take_optional_text(row, "text_in").strip()
    structure = take_optional_text(row, "struct_in").strip()
    task = task or PurePosixPath(take_optional_text(row, "arg_path")).stem or task_of_file(name)
    group = None
    history = ""
    if separator := _HISTORY.search(text):
        text, history = text[: separator.start()].strip(), text[separator.end() :].strip()
        if isinstance(row.get("id"), int | str):
            section = take_optional_text(row, "section")
            group = f"unifiedskg:{task}:{section}:{row['id']}"
    clauses = [
        text,
        f"structured knowledge: {structure}" if structure else "",
        f"context: {history}" if history else "",
    ]
    yield one_exchange(" ; ".join(filter(None, clauses)), [answer], task=task, group=group)
