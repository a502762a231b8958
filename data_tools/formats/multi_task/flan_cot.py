"""The chain-of-thought files of the Flan collection: question, answer and rationale in tab-separated lines."""

from typing import Any

from data_tools.errors import Reject
from data_tools.formats.multi_task.task_rows import TASK, one_exchange, take_columns, task_of_file
from data_tools.formats.registry import Converted, Option, register

_COLUMNS = ("question", "answer", "rationale")
_RATIONALE = Option(
    "rationale",
    str,
    "before",
    "where the rationale stands in the reply: before the answer, after it, or nowhere (none).",
    choices=("before", "after", "none"),
)


def recognise(row: Any) -> bool:
    """Return whether a row is a line of three columns with sentences in the first and the last.

    The header that other tables begin with has a word in each of its columns.
    """
    if not (isinstance(row, list) and len(row) == len(_COLUMNS)):
        return False
    if not all(isinstance(value, str) and value.strip() for value in row):
        return False
    # Triplets of sentences are other data: among them are second ones that are longer than the third.
    return all(" " in row[column].strip() for column in (0, 2)) and len(row[1]) < len(row[2])


@register(
    "flan_cot",
    "multi_task",
    license="Apache-2.0 (its code)",
    reader="table",
    summary="Flan's chain-of-thought files: tab-separated lines without header: question, answer, rationale",
    fields=(
        ("question", "column 1, with the options in it, if there are any"),
        ("answer", "column 2: a letter such as (C), the text of an option, or a number"),
        ("rationale", "column 3: the chain of thought"),
    ),
    quirks=(
        "The reply is the rationale, a blank line, and `The answer is …`; `rationale: after` puts the answer"
        " first, `rationale: none` leaves the answer alone. The question is the same in all three.",
        "A line without a rationale is rejected, unless `rationale: none`.",
        "Lines are split at tabs and nowhere else: a quotation mark is an ordinary character.",
        "The two characters `\\n` in a column become a line break.",
        "Options in the question and letters as answers are left as they are, in whatever style.",
        "White space around each column is removed; typing errors of the rationales stay.",
        "The task is the file's name without _train: `gsm8k` of gsm8k_train.tsv.",
        "JSON or Parquet rows with the fields question, answer and rationale are read alike.",
    ),
    example=[
        "Ann has 3 pens and buys 2. How many has she?\\nOptions:\\n(A) 5\\n(B) 6",
        "(A)",
        "She has 3 pens at first.\\n3 + 2 = 5.",
    ],
    example_name="invented_sums_train.tsv",
    options=(_RATIONALE, TASK),
    recognise=recognise,
)
def convert_flan_cot(row: Any, name: str, *, rationale: str = "before", task: str | None = None) -> Converted:
    """Yield the line's conversation."""
    columns = (text.replace("\\n", "\n").strip() for text in take_columns(row, _COLUMNS))
    question, answer, reasons = columns
    reply = answer
    if answer and rationale != "none":
        if not reasons:
            raise Reject("empty rationale")
        end = "" if answer.endswith((".", "!", "?")) else "."
        reply = (
            f"{reasons}\n\nThe answer is {answer}{end}" if rationale == "before" else f"{answer}\n\n{reasons}"
        )
    yield one_exchange(question, [reply], task=task or task_of_file(name, split_ending=True))
