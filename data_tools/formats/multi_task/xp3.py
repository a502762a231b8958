"""xP3: prompts and answers in 46 languages and code, of which only the path tells the language."""

import re
from pathlib import PurePosixPath
from typing import Any

from data_tools.formats.fields import take_object, take_text
from data_tools.formats.multi_task.task_rows import TASK, file_stem, has_texts, one_exchange, task_of_file
from data_tools.formats.registry import Converted, register

_LANGUAGE = re.compile(
    r"ak|ar|as|bm|bn|ca|code|en|es|eu|fon|fr|gu|hi|id|ig|ki|kn|lg|ln|ml|mr|ne|nso|ny|or|pa|pt|rn|rw|sn|st|sw"
    r"|ta|te|tn|ts|tum|tw|ur|vi|wo|xh|yo|zh|zu"
)
_MERGED = re.compile(r"merged_([a-z]{2,4})(?:_.*)?")


def recognise(row: Any) -> bool:
    """Return whether a row has the two texts and nothing else."""
    return has_texts(row, "inputs", "targets") and len(row) == 2


@register(
    "xp3",
    "multi_task",
    license="Apache-2.0",
    summary="xP3: rows of inputs, targets; files `<language>/merged_<language>.jsonl`",
    fields=(
        ("inputs", "the prompt, in English also where the text is not (translated in xP3mt)"),
        ("targets", "the answer"),
    ),
    quirks=(
        "The language is told by the path alone: the nearest folder that is named by one of the 46 codes (or"
        " `code`), else the file's name `merged_<language>`. Where neither is, set `language` of the source.",
        "The task is the file's name: rows do not tell theirs.",
        "White space around both texts is removed; in the folder `code` the first line keeps its indentation.",
        "The Alpaca-CoT collection's copy (instruction, input, output, meta) is not of this form: `alpaca`"
        " reads it.",
    ),
    example={"inputs": "¿De qué color es la nieve?", "targets": "Blanca."},
    example_name="es/merged_es.jsonl",
    options=(TASK,),
    recognise=recognise,
)
def convert_xp3(row: Any, name: str, *, task: str | None = None) -> Converted:
    """Yield the row's conversation."""
    row = take_object(row)
    language = _language_of(name)
    texts = take_text(row, "inputs"), take_text(row, "targets")
    question, answer = (
        text.rstrip().lstrip("\r\n") if language == "code" else text.strip() for text in texts
    )
    yield one_exchange(question, [answer], task=task or task_of_file(name), language=language)


def _language_of(name: str) -> str | None:
    for part in reversed(PurePosixPath(name).parts[:-1]):
        if _LANGUAGE.fullmatch(part):
            return part
    merged = _MERGED.fullmatch(file_stem(name))
    return merged[1] if merged else None
