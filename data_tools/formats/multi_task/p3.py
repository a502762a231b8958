"""P3, the Public Pool of Prompts: datasets rendered with PromptSource templates, in the three forms it comes in."""

from collections.abc import Mapping
from typing import Any

from data_tools.errors import Reject
from data_tools.formats.fields import take_object, take_text, wrong_type
from data_tools.formats.multi_task.task_rows import TASK, has_texts, one_exchange, prompt_group, task_of_file
from data_tools.formats.registry import Converted, register

_END = "<|endoftext|>"


def recognise(row: Any) -> bool:
    """Return whether a row is of the Hugging Face or the Megatron form; the third form looks like others'."""
    if has_texts(row, "inputs_pretokenized", "targets_pretokenized"):
        return True
    return has_texts(row, "text", "inputs", "targets") and _END in row["text"]


@register(
    "p3",
    "multi_task",
    license="Apache-2.0",
    summary="P3: prompts and answers in the Hugging Face form, as prompt/completion, or in Megatron's text form",
    fields=(
        ("inputs_pretokenized", "Hugging Face form: the prompt"),
        ("targets_pretokenized", "Hugging Face form: the answer"),
        ("is_correct", "optional, of *_score_eval configurations: whether the answer is the right one"),
        ("prompt", "prompt/completion export: the prompt"),
        ("completion", "prompt/completion export: the answer, ending in <|endoftext|>"),
        ("inputs", "Megatron form: the prompt"),
        ("targets", "Megatron form: the answer"),
        ("text", "Megatron form: inputs<|endoftext|>targets, read where inputs and targets are absent"),
    ),
    quirks=(
        "A literal <|endoftext|> at the end of an answer is removed, and white space around both texts"
        " (targets_pretokenized begins with a line break).",
        "In the Hugging Face form `inputs` and `targets` are token ids of another model: not used. A row that has"
        " nothing but these is rejected.",
        "A *_score_eval configuration has one row for each candidate answer: a row with is_correct false is"
        " rejected as a wrong answer (most of such a file: set max_reject_rate for it).",
        "A Megatron `text` without exactly one <|endoftext|> between prompt and answer is rejected.",
        "The task is the file's name, `<dataset>_<template>`; of `<configuration>/train-00000-of-00001.parquet`"
        " it is the folder's.",
        "Rows that repeat a prompt with another answer stay rows; rows of one prompt stay in one split.",
        "Artefacts of the source, such as `\\band` for `and`, are left as they are.",
    ),
    example={
        "inputs_pretokenized": "Is the sky green? Yes or no?\n",
        "targets_pretokenized": "\nno",
        "inputs": [27, 8, 5796],
        "targets": [150, 1],
        "idx": [0, 1],
        "is_correct": True,
        "weight": 1.0,
    },
    example_name="sky_questions_yes_or_no_score_eval.jsonl",
    options=(TASK,),
    recognise=recognise,
)
def convert_p3(row: Any, name: str, *, task: str | None = None) -> Converted:
    """Yield the row's conversation."""
    row = take_object(row)
    question, answer = (text.strip() for text in _take_pair(row))
    is_correct = row.get("is_correct")
    if is_correct not in (None, True, False):
        raise wrong_type("is_correct", is_correct, "boolean")
    if is_correct is not None and not is_correct:
        raise Reject("filter: a wrong answer", "field 'is_correct' is false")
    answer = answer.removesuffix(_END).strip()
    yield one_exchange(question, [answer], task=task or task_of_file(name), group=prompt_group(question))


def _take_pair(row: Mapping[str, Any]) -> tuple[str, str]:
    """Return prompt and answer of a row of any of the three forms."""
    if "inputs_pretokenized" in row or "targets_pretokenized" in row:
        return take_text(row, "inputs_pretokenized"), take_text(row, "targets_pretokenized")
    if "prompt" in row or "completion" in row:
        return take_text(row, "prompt"), take_text(row, "completion")
    if isinstance(row.get("inputs"), list):
        raise Reject("token ids without their text", "missing field 'inputs_pretokenized'")
    if "text" in row and not ("inputs" in row and "targets" in row):
        pieces = take_text(row, "text").strip().removesuffix(_END).split(_END)
        if len(pieces) != 2:
            raise Reject(f"field 'text' is not prompt{_END}answer", f"got {len(pieces) - 1} between texts")
        return pieces[0], pieces[1]
    return take_text(row, "inputs"), take_text(row, "targets")
