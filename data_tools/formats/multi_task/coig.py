"""COIG, the Chinese Open Instruction Generalist dataset: five subsets, each of its own shape."""

import re
from collections.abc import Mapping
from typing import Any

from data_tools.conversation import Conversation, Message
from data_tools.errors import Reject
from data_tools.formats.fields import parse_json, take, take_object, take_optional_text, take_text, wrong_type
from data_tools.formats.multi_task.task_rows import TASK, file_stem, has_texts, one_exchange
from data_tools.formats.registry import Converted, Option, register

_ROUND = re.compile(r"round_(\d+)")
_ANALYSIS = Option(
    "analysis",
    str,
    "before",
    "where the analysis of an exam question stands in the reply: before the answer, after it, or nowhere (none).",
    choices=("before", "after", "none"),
)


def recognise(row: Any) -> bool:
    """Return whether a row is of one of the three shapes that no other dataset has."""
    if has_texts(row, "textbox_question") or has_texts(row, "trans_instruction", "trans_output"):
        return True
    rounds = _round_keys(row) if isinstance(row, dict) else []
    return bool(rounds) and all(isinstance(row[key], dict) and "response" in row[key] for key in rounds)


@register(
    "coig",
    "multi_task",
    license="Apache-2.0, and those of its sources",
    summary="COIG: exams, translated instructions, human values, multi-round chat and LeetCode, in Chinese",
    fields=(
        ("textbox_q_instruction", "exams: what is asked for; optional"),
        ("textbox_q_context", "exams: the text that is asked about; optional"),
        ("textbox_question", "exams: the question, with its options"),
        ("textbox_answer", "exams: the answer"),
        ("textbox_answer_analysis", "exams: why it is the answer; optional"),
        ("subject", "exams: the category; optional"),
        ("trans_instruction", "translated instructions: with trans_input (may be empty) and trans_output"),
        ("instruction", "human values and LeetCode: with input (may be empty) and output"),
        ("round_0", "multi-round chat: {response: JSON text of {Q, A}}; then round_1, round_2, …"),
    ),
    quirks=(
        "A row's keys tell its subset, so all of its files can be one source.",
        "Exams: user = instruction, context and question with blank lines between; options stay in the question."
        " The reply is the analysis, a blank line and `答案：` with the answer; `analysis: after` puts the answer"
        " first, `analysis: none` leaves it alone.",
        "Exams: context and analysis may be absent, null, empty or a list of lines, which are joined.",
        "Translated instructions, human values, LeetCode: user = instruction, blank line, input. The English"
        " originals (instruction, input, output beside trans_…) are not used.",
        "Multi-round chat: one JSON object is one dialogue (the tar.gz is read as it is); rounds follow"
        " their numbers, the student's Q is the user, the teacher's A the assistant. A dialogue with a round that"
        " does not decode, as in versions before 0.3, is rejected.",
        "The task is the subset: exam, translated, human_value_alignment, counterfactual_correction, leetcode; the"
        " file's name decides between human values, LeetCode and exams where the keys are alike.",
        "The language is zh.",
        "White space around each text is removed.",
    ),
    example={
        "subject": "地理",
        "textbox_q_instruction": "请回答下面的选择题。",
        "textbox_q_context": "",
        "textbox_question": "一年中白天最长的是哪一天？ A.春分 B.夏至 C.冬至",
        "textbox_answer_analysis": ["夏至日太阳直射北回归线，", "北半球白天最长。"],
        "textbox_answer": "B",
    },
    example_name="exam_instructions.jsonl",
    options=(_ANALYSIS, TASK),
    recognise=recognise,
)
def convert_coig(row: Any, name: str, *, analysis: str = "before", task: str | None = None) -> Converted:
    """Yield the row's conversation."""
    row = take_object(row)
    if rounds := _round_keys(row):
        messages = [message for key in rounds for message in _read_round(row, key)]
        yield Conversation(tuple(messages), "multi_task", task or "counterfactual_correction", language="zh")
        return
    category = None
    if any(key.startswith("textbox_") for key in row):
        question, answer = _read_exam(row, analysis)
        category = take_optional_text(row, "subject").strip() or None
        subset = "exam"
    else:
        prefix = "trans_" if "trans_instruction" in row or "trans_output" in row else ""
        question, answer = _read_instruction(row, prefix)
        subset = "translated" if prefix else ""
    if subset != "translated":
        subset = _subset_of_file(name) or subset or file_stem(name)
    yield one_exchange(question, [answer], task=task or subset, category=category, language="zh")


def _subset_of_file(name: str) -> str:
    for subset in ("human_value_alignment", "leetcode"):
        if subset in file_stem(name):
            return subset
    return ""


def _read_instruction(row: Mapping[str, Any], prefix: str) -> tuple[str, str]:
    instruction = take_text(row, f"{prefix}instruction").strip()
    asked = take_optional_text(row, f"{prefix}input").strip()
    answer = take_text(row, f"{prefix}output").strip()
    return "\n\n".join(filter(None, (instruction, asked))), answer


def _read_exam(row: Mapping[str, Any], analysis: str) -> tuple[str, str]:
    for key in ("textbox_question", "textbox_answer"):
        take(row, key)
    asked = ("textbox_q_instruction", "textbox_q_context", "textbox_question")
    question = "\n\n".join(filter(None, (_take_lines(row, key) for key in asked)))
    answer = _take_lines(row, "textbox_answer")
    reasons = _take_lines(row, "textbox_answer_analysis")
    if not answer or not reasons or analysis == "none":
        return question, answer
    return question, f"{reasons}\n\n答案：{answer}" if analysis == "before" else f"{answer}\n\n{reasons}"


def _take_lines(row: Mapping[str, Any], key: str) -> str:
    """Return a text that may be absent, null or a list of lines."""
    value = row.get(key)
    if isinstance(value, list):
        for line in value:
            if not isinstance(line, str):
                raise wrong_type(f"{key}[]", line, "string")
        value = "\n".join(value)
    return take_optional_text({key: value}, key).strip()


def _round_keys(row: Mapping[str, Any]) -> list[str]:
    """Return the keys of a dialogue's rounds in the order of their numbers."""
    found = [match for match in map(_ROUND.fullmatch, row) if match]
    return [match[0] for match in sorted(found, key=lambda match: int(match[1]))]


def _read_round(row: Mapping[str, Any], key: str) -> tuple[Message, Message]:
    entry = take_object(row[key], "round_N", where=key)
    response = take(entry, "response", "round_N.response", where=key)
    if isinstance(response, str):
        response = parse_json(response, "round_N.response", where=key)
    response = take_object(response, "round_N.response", where=key)
    asked, answered = (
        take_text(response, part, f"round_N.response.{part}", where=key).strip() for part in "QA"
    )
    if not asked or not answered:
        raise Reject("empty turn", key)
    return Message("user", asked), Message("assistant", answered)
