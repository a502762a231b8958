"""GPT-4-LLM: Alpaca's instructions answered by GPT-4, and comparisons of several answers."""

import re
from collections.abc import Mapping
from typing import Any

from data_tools.conversation import Conversation
from data_tools.errors import Reject
from data_tools.formats.fields import (
    MEDIA_FIELDS,
    refuse_filled,
    take_list,
    take_object,
    take_text,
    wrong_type,
)
from data_tools.formats.registry import Converted, register
from data_tools.formats.single_turn.alpaca_fields import (
    INPUT_QUIRKS,
    OUTPUT_QUIRKS,
    ask,
    clean_output,
    file_language,
    make_alpaca,
    make_exchange,
    take_answer,
)

# The headings of Alpaca's prompt, which `user_input` may have around an instruction and perhaps an input.
_HEADING = re.compile(r"^#{2,3} (Instruction|Input|Response):[ \t\r]*$", re.MULTILINE)
_PREAMBLE = "Below is an instruction"


def is_comparison(row: Any) -> bool:
    """Tell whether a row compares answers; the other rows look like alpaca's."""
    if not isinstance(row, dict) or not isinstance(row.get("user_input"), str):
        return False
    return "responses_and_scores" in row or {"completion_a", "completion_b"} <= row.keys()


@register(
    "gpt4_llm",
    "single_turn",
    license="CC BY-NC 4.0",
    summary="GPT-4-LLM: Alpaca rows answered by GPT-4 (en, zh), and comparison data: the best answer",
    fields=(
        ("instruction, input, output", "a row of the instruction data; the input is optional"),
        ("user_input", "of the comparison data: what is asked"),
        ("completion_a, completion_b", "of the comparison data: the better answer and the worse one"),
        (
            "responses_and_scores",
            "of the comparison data with scores: list of {response, score, source}, more is better",
        ),
    ),
    quirks=(
        *INPUT_QUIRKS,
        *OUTPUT_QUIRKS,
        "Of a comparison the better answer is taken: completion_a, or the response with the highest score; of"
        " equals the first one, and the others with that score are references. The rest is not used.",
        "A response that is empty or has no score is not taken. An empty completion_a rejects the row.",
        "A list of outputs, as in LLaMA-Factory's copy of the comparisons, has the better answer first.",
        "A user_input that is Alpaca's rendered prompt (`### Instruction:` … `### Response:`) is taken apart:"
        " what is asked is the same as in a row of the instruction data.",
        "The language is zh where the file's name ends with `_zh`, en where with `_en`; elsewhere it is left open.",
        "White space around each text is removed. An empty instruction or output is rejected.",
        "`format: auto` takes the rows without a comparison for `alpaca`, which they look like.",
    ),
    example={
        "user_input": "Name a river in Peru.",
        "completion_a": "The Ucayali, which flows into the Amazon.",
        "completion_b": "Peru.",
    },
    recognise=is_comparison,
)
def convert_gpt4_llm(row: Any, name: str) -> Converted:
    """Yield the row's conversation."""
    row = take_object(row)
    language = file_language(name)
    if "user_input" in row:
        yield _convert_comparison(row, language)
    elif isinstance(row.get("output"), list):
        yield make_alpaca({**row, "output": _first_output(row["output"])}, language=language)
    else:
        yield make_alpaca(row, language=language)


def _convert_comparison(row: Mapping[str, Any], language: str | None) -> Conversation:
    refuse_filled(row, MEDIA_FIELDS)
    question = ask(*_take_apart(take_text(row, "user_input")))
    if "responses_and_scores" in row:
        best = _best_responses(row)
    else:
        best = (take_answer(row, "completion_a"),)
    references = best if len(best) > 1 else ()
    return make_exchange(question, best[0], row, language=language, references=references)


def _take_apart(prompt: str) -> tuple[str, str]:
    """Return instruction and input of a rendered prompt; any other text is the instruction."""
    before, *pieces = _HEADING.split(prompt)
    headings, texts = pieces[::2], pieces[1::2]
    is_whole = not before.strip() or before.lstrip().startswith(_PREAMBLE)
    if is_whole and texts and not texts[-1].strip():
        if headings == ["Instruction", "Response"]:
            return texts[0], ""
        if headings == ["Instruction", "Input", "Response"]:
            return texts[0], texts[1]
    return prompt, ""


def _best_responses(row: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the answers that share the highest score, in their order, each once."""
    scored = []
    for index, value in enumerate(take_list(row, "responses_and_scores")):
        where = f"responses_and_scores[{index}]"
        entry = take_object(value, "responses_and_scores[]", where=where)
        text = clean_output(take_text(entry, "response", "responses_and_scores[].response", where=where))
        score = entry.get("score")
        if score is None:
            continue
        if isinstance(score, bool) or not isinstance(score, int | float) or score != score:  # NaN
            raise wrong_type("responses_and_scores[].score", score, "number", where=where)
        if text:
            scored.append((score, text))
    if not scored:
        raise Reject("no scored response")
    highest = max(score for score, _ in scored)
    return tuple(dict.fromkeys(text for score, text in scored if score == highest))


def _first_output(outputs: list[Any]) -> Any:
    if not outputs:
        raise Reject("empty output")
    return outputs[0]
