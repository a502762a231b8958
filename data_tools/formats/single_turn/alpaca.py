"""Alpaca and its many descendants: the general shape of instruction, input, output."""

import re
from collections.abc import Mapping
from typing import Any

from data_tools.formats.fields import take_object
from data_tools.formats.registry import Converted, register
from data_tools.formats.single_turn.alpaca_fields import INPUT_QUIRKS, OUTPUT_QUIRKS, make_alpaca
from data_tools.formats.single_turn.dolly import CATEGORIES

# Fields of formats that have an instruction and an output too, and more.
_OTHERS = frozenset(
    {
        *("instances", "reformulations", "conversations", "messages", "prompt", "completion", "context"),
        *("response", "responses_and_scores", "instruction_type", "special_tag"),
    }
)
# A dialogue packed into the fields, as the Guanaco dataset has it.
_DIALOGUE = re.compile(r"\s*(?:System|User|Assistant)[:：]|\Z")
# The path of a file of xP3, in whose name alone the language stands.
_XP3_FILE = re.compile(r"/merged_(\w+)\.jsonl\Z")


def is_alpaca(row: Any) -> bool:
    """Tell whether a row has Alpaca's fields and no mark of a more special format."""
    if not (isinstance(row, dict) and isinstance(row.get("output"), str)) or _OTHERS & row.keys():
        return False
    if row.get("category") in CATEGORIES:
        return False
    instruction, given = row.get("instruction"), row.get("input") or ""
    if not (isinstance(instruction, str) and isinstance(given, str)):
        return False
    return not (given and _DIALOGUE.match(given) and _DIALOGUE.match(instruction))


@register(
    "alpaca",
    "single_turn",
    license="CC BY-NC 4.0",
    version=2,
    summary="Alpaca and its many descendants: rows of instruction, input, output",
    fields=(
        ("instruction", "what is asked"),
        ("input", "optional: what it is asked about; absent, null or empty where there is nothing"),
        ("output", "the answer"),
        ("system", "optional: system prompt (LLaMA-Factory)"),
        ("history", "optional: earlier turns, a list of [question, answer] (LLaMA-Factory)"),
        ("meta", "optional, of the Alpaca-CoT collection: {Dataset, Lang, origin_path, …}"),
    ),
    quirks=(
        *INPUT_QUIRKS,
        *OUTPUT_QUIRKS,
        "White space around each field is removed.",
        "An empty output is rejected (28 rows of the original), an empty instruction too.",
        "A row with images, videos or audio is refused: it is another kind of data.",
        "Of the Alpaca-CoT collection, meta.Dataset becomes the task and meta.Lang, as it stands, the"
        " language; for xP3's rows the language is that of the file they come from (`xP3/zh/merged_zh.jsonl`:"
        " zh).",
        "`text`, the rendered prompt that Hugging Face's copy adds, is not used; other keys are ignored.",
    ),
    example={"instruction": "Name the opposite.", "input": "cold", "output": "The opposite of cold is hot."},
    recognise=is_alpaca,
)
def convert_alpaca(row: Any, name: str) -> Converted:
    """Yield the row's conversation."""
    row = take_object(row)
    task, language = _collection_of(row)
    yield make_alpaca(row, task=task, language=language)


def _collection_of(row: Mapping[str, Any]) -> tuple[str | None, str | None]:
    """Return the dataset and the language that a row of the Alpaca-CoT collection names."""
    meta = row.get("meta")
    if not isinstance(meta, dict):
        return None, None
    dataset, language, path = (
        value.strip() if isinstance(value := meta.get(key), str) else ""
        for key in ("Dataset", "Lang", "origin_path")
    )
    if found := _XP3_FILE.search(path.replace("\\/", "/")):
        language = found[1]
    return dataset or None, language or None
