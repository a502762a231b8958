"""LogiCoT: chains of logical reasoning, a file for each kind."""

from typing import Any

from data_tools.formats.fields import take_object
from data_tools.formats.registry import Converted, register
from data_tools.formats.single_turn.alpaca_fields import (
    INPUT_QUIRKS,
    OUTPUT_QUIRKS,
    file_language,
    file_stem,
    make_alpaca,
)


@register(
    "logicot",
    "single_turn",
    license="non-commercial research; redistribution only with the authors' permission",
    summary="LogiCoT: rows of instruction, input, output; the file's name is the kind of reasoning",
    fields=(
        ("instruction", "what is asked"),
        ("input", "optional: premises, a text and its question"),
        ("output", "the label (`yes.`, `neutral.`, `C. …`) and the reasoning"),
    ),
    quirks=(
        "The files are JSON arrays with a comma behind the last row, though they are named .jsonl; they are read"
        " as they are.",
        "The category is the file's name without its suffix: mrc, mrc_zh, ….",
        "The language is zh where that name ends with `_zh`; elsewhere it is left open.",
        *INPUT_QUIRKS,
        *OUTPUT_QUIRKS,
        "White space around each field is removed: inputs of the mrc files begin with a line break.",
        "The label before the reasoning and logic symbols are kept. No answer is checked.",
        "An empty instruction or output is rejected.",
        "`format: auto` takes these rows for `alpaca`, which they look like: then they have no category.",
    ),
    example={
        "instruction": "Does the conclusion follow from the premises?",
        "input": "\nAll birds lay eggs. A wren is a bird. Conclusion: a wren lays eggs.",
        "output": "yes. ∀x (Bird(x) → LaysEggs(x)) and Bird(wren), so LaysEggs(wren).",
    },
    example_name="entailment.jsonl",
)
def convert_logicot(row: Any, name: str) -> Converted:
    """Yield the row's conversation."""
    yield make_alpaca(take_object(row), category=file_stem(name), language=file_language(name))
