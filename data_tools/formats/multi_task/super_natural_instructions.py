"""Super-Natural Instructions: one file for each task, with its definition, examples and instances."""

from collections.abc import Mapping
from typing import Any

from data_tools.errors import Reject
from data_tools.formats.fields import take, take_list, take_object, take_text, take_texts, wrong_type
from data_tools.formats.multi_task.few_shot import FEW_SHOT, Example, FewShot, read_examples
from data_tools.formats.multi_task.task_rows import TASK, one_exchange, task_of_file
from data_tools.formats.registry import Converted, register

_VERSION_1_KEYS = ("Prompt", "Things to Avoid", "Emphasis & Caution", "Examples")


def recognise(row: Any) -> bool:
    """Return whether the content of a file is a task of this collection, not of its first version."""
    return (
        isinstance(row, dict)
        and "Definition" in row
        and isinstance(row.get("Instances"), list)
        and not any(key in row for key in _VERSION_1_KEYS)
    )


@register(
    "super_natural_instructions",
    "multi_task",
    license="Apache-2.0 (its repository); each task names its own as `Instance License`",
    reader="object",
    summary="Super-Natural Instructions: one JSON object for each task, `taskNNN_name.json`",
    fields=(
        ("Definition", "the task in words: a list of strings, or one string (older revisions)"),
        ("Instances", "list of {id, input, output}; output is a list of right answers, or one string"),
        (
            "Positive Examples",
            "optional list of {input, output, explanation}; shown if `num_examples` says so",
        ),
        ("Categories", "optional list; the first one is the task's category"),
        ("Input_language", "optional list of language names"),
        ("Output_language", "optional list of language names; the conversation's language"),
    ),
    quirks=(
        "An instance becomes: user = definition, blank line, input; assistant = the first output. That is"
        " zero-shot, the default.",
        "Few-shot (`num_examples: k`): user = definition, k positive examples as Input, Output (and Explanation),"
        " then the input. A hash of the texts draws which k, and their order, for each instance anew; a"
        " task with fewer examples shows all it has. An example that is the instance itself is not shown.",
        "Negative Examples are not used.",
        "All outputs are kept as references, in their order; empty ones are left out.",
        "White space around definition, examples, input and outputs is removed.",
        "An instance with an empty input asks with the definition alone.",
        "The task is the file's name without .json; for files named like a split (train.json,"
        " test.json, …) it is the folder's name.",
        "The language is that of the output; where the input's differs, as in translation, both are named:"
        " Bengali -> English.",
        "Missing URL, language, license, id and other keys of older revisions are no mistake.",
        "An instance without a usable output is rejected alone; without a Definition or Instances the"
        " file is; so is, if examples are asked for, a file with an example that has no input or output.",
        "A file of Natural Instructions v1 (Prompt, Things to Avoid, …) is another format and is refused.",
        "No task is left out: mmmlu tasks, which overlap with a benchmark, are for the settings to choose.",
    ),
    example={
        "Definition": ["Answer with the sum of the two numbers."],
        "Categories": ["Mathematics"],
        "Input_language": ["English"],
        "Output_language": ["English"],
        "Positive Examples": [{"input": "1 and 1", "output": "2", "explanation": "1 + 1 = 2"}],
        "Negative Examples": [],
        "Instances": [{"id": "task042-0001", "input": "2 and 3", "output": ["5", "five"]}],
    },
    example_name="task042_example.json",
    options=(*FEW_SHOT, TASK),
    recognise=recognise,
)
def convert_super_natural_instructions(
    row: Any, name: str, *, num_examples: int = 0, explanations: bool = False, task: str | None = None
) -> Converted:
    """Yield one conversation, or its Reject, for each instance of a task file."""
    content = take_object(row)
    for key in _VERSION_1_KEYS:
        if key in content:
            raise Reject("a file of Natural Instructions v1", f"it has the field {key!r}")
    take(content, "Definition")
    definition = "\n".join(text.strip() for text in take_texts(content, "Definition")).strip()
    if not definition:
        raise Reject("empty field 'Definition'")
    categories = [text.strip() for text in take_texts(content, "Categories")]
    category = categories[0] if categories and categories[0] else None
    language = _language(content)
    examples = _read_positive(content) if num_examples else ()
    task = task or task_of_file(name)
    prompts = FewShot(definition, examples, num_examples, explanations)
    yield from convert_instances(content, prompts, task=task, category=category, language=language)


def convert_instances(
    content: Mapping[str, Any],
    prompts: FewShot,
    *,
    task: str,
    category: str | None = None,
    language: str | None = None,
) -> Converted:
    """Yield the conversation of each instance of a task file, or why there is none."""
    for instance in take_instances(content):
        try:
            question, answers = read_instance(instance)
            yield one_exchange(
                prompts.render(question), answers, task=task, category=category, language=language
            )
        except Reject as reject:
            yield reject


def take_instances(content: Mapping[str, Any]) -> list[Any]:
    """Return the instances of a task file, of which there must be one."""
    instances = take_list(content, "Instances")
    if not instances:
        raise Reject("empty field 'Instances'")
    return instances


def read_instance(value: Any) -> tuple[str, list[str]]:
    """Return an instance's input and its outputs, stripped; an output may be one string."""
    instance = take_object(value, "Instances[]")
    question = take_text(instance, "input", "Instances[].input").strip()
    output = take(instance, "output", "Instances[].output")
    outputs = output if isinstance(output, list) else [output]
    for text in outputs:
        if not isinstance(text, str):
            raise wrong_type("Instances[].output", text, "string or list of strings")
    return question, [text.strip() for text in outputs]


def _read_positive(content: Mapping[str, Any]) -> tuple[Example, ...]:
    if content.get("Positive Examples") is None:
        return ()
    return read_examples(take_list(content, "Positive Examples"), "Positive Examples", "explanation")


def _language(content: Mapping[str, Any]) -> str | None:
    asked = ", ".join(take_texts(content, "Input_language"))
    answered = ", ".join(take_texts(content, "Output_language"))
    if asked and answered and asked != answered:
        return f"{asked} -> {answered}"
    return answered or asked or None
