"""UnifiedQA: questions of many kinds as tab-separated lines of input and answer."""

import re
from typing import Any

from data_tools.errors import Reject
from data_tools.formats.multi_task.task_rows import (
    TASK,
    one_exchange,
    prompt_group,
    take_columns,
    task_of_file,
)
from data_tools.formats.registry import Converted, Option, register

# The two characters `\n` between question, options and context, with the spaces that most writers put around.
_BREAK = re.compile(r"[ \t]*\\n[ \t]*")
_META_COLUMNS = 4
_LOWER_CASE = Option(
    "lower_case",
    bool,
    False,
    "lower-case both texts and take off single quotes around the whole of one, as the authors' training does.",
)


def recognise(row: Any) -> bool:
    """Return whether a row is a line of two columns, the first with the literal breaks."""
    return (
        isinstance(row, list)
        and len(row) == 2
        and all(isinstance(value, str) for value in row)
        and "\\n" in row[0]
    )


@register(
    "unifiedqa",
    "multi_task",
    license="Apache-2.0 (its repository)",
    reader="table",
    summary="UnifiedQA: tab-separated lines without header: question, options and context; answer",
    fields=(
        ("inputs", "column 1: `question \\n (A) … (B) … \\n context`, with the two characters \\n"),
        ("targets", "column 2: the answer; several right ones are joined with ///"),
    ),
    quirks=(
        "Lines are split at tabs and nowhere else: a quotation mark is an ordinary character.",
        "The two characters `\\n`, with or without spaces around, become a line break.",
        "White space around both columns is removed (some writers put spaces around the tab).",
        "`a///b` are several right answers: the first is trained on, all are references.",
        "`<No Answer>` is an answer like any other: the question has none.",
        "A row whose answer is `-` has no label (test sets) and is rejected.",
        "Upper and lower case are kept, and so are quotes; `lower_case: true` does as the authors' training code"
        " does.",
        "Rows that repeat a question with another right answer stay rows; rows of one question stay in one split.",
        "The task is the file's name without _train, _dev or _test; of `boolq/train.tsv` it is the folder's.",
        "Lines of a `_meta.tsv` file, which has four columns and no questions, are rejected by that name.",
        "JSON or Parquet rows with the fields inputs and targets are read alike.",
    ),
    example=[
        "Why did Mia close the window? \\n (A) it was cold (B) it was dark \\n Mia shivered and got up.",
        "it was cold///because it was cold",
    ],
    example_name="invented_qa_dev.tsv",
    options=(_LOWER_CASE, TASK),
    recognise=recognise,
)
def convert_unifiedqa(row: Any, name: str, *, lower_case: bool = False, task: str | None = None) -> Converted:
    """Yield the line's conversation."""
    if isinstance(row, list) and len(row) == _META_COLUMNS:
        raise Reject("a line of a _meta.tsv file", "it has four columns; expected inputs, targets")
    question, answer = take_columns(row, ("inputs", "targets"))
    if lower_case:
        question, answer = _as_trained(question), _as_trained(answer)
    if answer == "-":
        raise Reject("no label", "the answer is '-'")
    answers = list(dict.fromkeys(_unescape(gold) for gold in answer.split("///")))
    question = _unescape(question)
    yield one_exchange(
        question,
        answers,
        task=task or task_of_file(name, split_ending=True),
        group=prompt_group(question),
    )


def _unescape(text: str) -> str:
    return _BREAK.sub("\n", text).strip()


def _as_trained(text: str) -> str:
    text = text.lower()
    return text[1:-1].strip() if len(text) > 1 and text[0] == text[-1] == "'" else text
