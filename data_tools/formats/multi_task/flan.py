"""Flan 2021 and the Flan collection of 2022, in the exports that others made of it."""

import re
from typing import Any

from data_tools.formats.fields import take_object, take_optional_text, take_text
from data_tools.formats.multi_task.task_rows import TASK, file_stem, has_texts, one_exchange, task_of_file
from data_tools.formats.registry import Converted, register

# File names such as niv2_fs_noopt_train or cot_zsopt: the mixture, its prompts, with or without options.
_MIXTURE = re.compile(r"(flan|t0|niv2|cot|dialog)_(?:zs|fs)(?:_?(?:no)?opt)?(?:_.*)?", re.IGNORECASE)


def recognise(row: Any) -> bool:
    """Return whether a row has prompt, answer and the name of its task."""
    if not has_texts(row, "inputs", "targets"):
        return False
    return has_texts(row, "task") or has_texts(row, "_task_name")


@register(
    "flan",
    "multi_task",
    license="Apache-2.0 (its code)",
    summary="Flan 2021 and the Flan collection: rows of inputs, targets and the task",
    fields=(
        ("inputs", "the prompt, in few-shot files with solved examples before it"),
        ("targets", "the answer"),
        ("task", "optional: the task"),
        ("_task_name", "optional: the task in Open-Orca's export"),
        ("_task_source", "optional: the collection that the task is of in Open-Orca's export"),
    ),
    quirks=(
        "White space around both texts is removed: a template ends the prompt, not a line break.",
        "The task is `task`, else `_task_name`, else the file's name.",
        "The category is `_task_source`, else the mixture (flan, t0, niv2, cot, dialog) that a file name such as"
        " `niv2_fs_noopt_train` begins with.",
        "`_template_type` and `_template_idx` are not used. Solved examples of few-shot rows are part of `inputs`"
        " and stay there.",
        "Rows with inputs and targets alone are read too; `format: auto` takes these for xp3.",
    ),
    example={
        "inputs": "Does the second sentence follow?\nTom sleeps in the garden.\nTom is outside.",
        "targets": "yes",
        "_task_name": "invented_entailment",
        "_task_source": "Flan2021",
        "_template_type": "zs_opt",
        "_template_idx": 4,
    },
    options=(TASK,),
    recognise=recognise,
)
def convert_flan(row: Any, name: str, *, task: str | None = None) -> Converted:
    """Yield the row's conversation."""
    row = take_object(row)
    question, answer = take_text(row, "inputs").strip(), take_text(row, "targets").strip()
    told = [take_optional_text(row, key).strip() for key in ("task", "_task_name")]
    mixture = _MIXTURE.fullmatch(file_stem(name))
    category = take_optional_text(row, "_task_source").strip() or (mixture[1].lower() if mixture else None)
    task = task or next(filter(None, told), "") or task_of_file(name)
    yield one_exchange(question, [answer], task=task, category=category)
