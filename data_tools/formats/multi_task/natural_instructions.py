"""Natural Instructions, the first version: one file for each subtask, whose instructions have several parts."""

from collections.abc import Mapping
from typing import Any

from data_tools.errors import Reject
from data_tools.formats.fields import take_list, take_object, take_optional_text
from data_tools.formats.multi_task.few_shot import FEW_SHOT, Example, FewShot, read_examples
from data_tools.formats.multi_task.super_natural_instructions import convert_instances
from data_tools.formats.multi_task.task_rows import TASK, task_of_file
from data_tools.formats.registry import Converted, register

# The parts of the instructions in the order of the authors' encoding, and what introduces each of them.
_PARTS = {
    "Definition": "",
    "Prompt": "",
    "Things to Avoid": "Things to avoid: ",
    "Emphasis & Caution": "Emphasis and caution: ",
}
_VERSION_2_KEYS = ("Positive Examples", "Negative Examples", "Categories")


def recognise(row: Any) -> bool:
    """Return whether the content of a file is a subtask of the first version."""
    return (
        isinstance(row, dict)
        and isinstance(row.get("Instances"), list)
        and isinstance(row.get("Examples"), dict)
        and any(key in row for key in _PARTS)
    )


@register(
    "natural_instructions",
    "multi_task",
    license="Apache-2.0 (its repository)",
    reader="object",
    summary="Natural Instructions v1: one JSON object for each subtask, `subtaskNNN_name.json`",
    fields=(
        ("Definition", "the task in words"),
        ("Prompt", "the task in one sentence"),
        ("Things to Avoid", "advice"),
        ("Emphasis & Caution", "advice"),
        (
            "Examples",
            "{Positive Examples: list of {input, output, reason}, …}; shown if `num_examples` says so",
        ),
        ("Instances", "list of {input, output}; output is a list of right answers"),
    ),
    quirks=(
        "An instance becomes: user = Definition, Prompt, Things to Avoid, Emphasis & Caution (the authors' order)"
        " and the input, with blank lines between; assistant = the first output.",
        "A part that is empty is the string `-`, perhaps with spaces: it is left out. A file whose Definition"
        " and Prompt are both empty is rejected.",
        "Few-shot (`num_examples: k`): k positive examples as Input, Output (and Explanation, the `reason`) stand"
        " between instructions and input. A hash of the texts draws which k, and their order, for each instance"
        " anew; a subtask with fewer examples shows all it has. An example that is the instance itself is not"
        " shown.",
        'An empty list of examples is `["-"]` and holds none. Title, Negative Examples and their suggestions are'
        " not used.",
        "All outputs are kept as references, in their order; empty ones are left out.",
        "White space around each text is removed.",
        "The task is the file's name without .json.",
        "An instance without a usable output is rejected alone.",
        "A file of Super-Natural Instructions (Positive Examples beside Definition) is another format and is"
        " refused.",
    ),
    example={
        "Title": "Opposites",
        "Prompt": "Name the opposite of the word.",
        "Definition": "You get an adjective and write down another one that means the opposite.",
        "Things to Avoid": "Do not write a sentence.",
        "Emphasis & Caution": "-",
        "Examples": {
            "Positive Examples": [
                {"input": "Word: wet", "output": "dry", "reason": "What is dry is not wet."}
            ],
            "Negative Examples": ["-"],
        },
        "Instances": [{"input": "Word: large", "output": ["small", "little"]}],
    },
    example_name="subtask007_opposites.json",
    options=(*FEW_SHOT, TASK),
    recognise=recognise,
)
def convert_natural_instructions(
    row: Any, name: str, *, num_examples: int = 0, explanations: bool = False, task: str | None = None
) -> Converted:
    """Yield one conversation, or its Reject, for each instance of a subtask file."""
    content = take_object(row)
    for key in _VERSION_2_KEYS:
        if key in content:
            raise Reject("a file of Super-Natural Instructions", f"it has the field {key!r}")
    instructions = _read_instructions(content)
    examples = _read_positive(content) if num_examples else ()
    task = task or task_of_file(name)
    prompts = FewShot(instructions, examples, num_examples, explanations)
    yield from convert_instances(content, prompts, task=task)


def _read_instructions(content: Mapping[str, Any]) -> str:
    texts = {key: take_optional_text(content, key).strip() for key in _PARTS}
    filled = {key: text for key, text in texts.items() if text not in ("", "-")}
    if not ("Definition" in filled or "Prompt" in filled):
        raise Reject("empty fields 'Definition' and 'Prompt'")
    return "\n\n".join(_PARTS[key] + text for key, text in filled.items())


def _read_positive(content: Mapping[str, Any]) -> tuple[Example, ...]:
    groups = take_object(content.get("Examples", {}), "Examples")
    if groups.get("Positive Examples") is None:
        return ()
    values = take_list(groups, "Positive Examples", "Examples.Positive Examples")
    return read_examples(values, "Examples.Positive Examples", "reason")
