"""Self-Instruct: tasks with instances, and the prompts and completions made of them."""

from collections.abc import Iterator, Mapping
from typing import Any

from data_tools.conversation import Conversation, Message
from data_tools.errors import Reject
from data_tools.formats.fields import (
    take,
    take_list,
    take_object,
    take_optional_text,
    take_text,
    wrong_type,
)
from data_tools.formats.registry import Converted, register
from data_tools.formats.single_turn.alpaca_fields import (
    INPUT_QUIRKS,
    OUTPUT_QUIRKS,
    ask,
    make_alpaca,
    strip_end_mark,
    take_answer,
)


def is_self_instruct(row: Any) -> bool:
    """Tell whether a row is a task with instances, in either layout."""
    if not isinstance(row, dict) or not isinstance(row.get("instruction"), str):
        return False
    instances = row.get("instances")
    if isinstance(instances, list):
        keys = [item.keys() if isinstance(item, dict) else {} for item in instances]
        return bool(keys) and all("output" in item and "instruction_with_input" not in item for item in keys)
    return isinstance(instances, dict) and {"input", "output"} <= instances.keys()


@register(
    "self_instruct",
    "single_turn",
    license="Apache-2.0",
    summary="Self-Instruct: tasks {instruction, instances}, prompt/completion rows, generated instances",
    fields=(
        ("instruction", "the task in words"),
        ("instances", "list of {input, output}, or {input: […], output: […]} (Hugging Face's copy)"),
        ("is_classification", "optional, of the seed tasks: true or false"),
        ("motivation_app", "optional, of the user-oriented tasks: the application they were thought up for"),
        ("prompt, completion", "the fine-tuning form: one encoded instance"),
        ("instruction, input, output", "the generated instances (all_instances_82K): one instance a row"),
    ),
    quirks=(
        "One conversation for each instance; an instance that cannot be used is rejected alone.",
        *INPUT_QUIRKS,
        *OUTPUT_QUIRKS,
        "The prompt of a prompt/completion row is kept as the encoding made it (`Task: …`, `… Output:`); the space"
        " before the completion and the literal `<|endoftext|>` behind it are removed.",
        "The category is `classification` or `generation` by is_classification, or else the motivation_app."
        " Ids and names are not used.",
        "White space around each text is removed. An empty instruction, prompt or output is rejected.",
        "Nothing is filtered: by their authors' count about half of the generated rows have some flaw.",
    ),
    example={
        "id": "seed_task_900",
        "name": "plural",
        "instruction": "Give the plural of the noun.",
        "instances": [{"input": "goose", "output": "geese"}, {"input": "leaf", "output": "leaves"}],
        "is_classification": False,
    },
    recognise=is_self_instruct,
)
def convert_self_instruct(row: Any, name: str) -> Converted:
    """Yield one conversation, or its Reject, for each instance."""
    row = take_object(row)
    if "instances" in row:
        yield from _convert_task(row)
    elif "prompt" in row or "completion" in row:
        yield _convert_prompt(row)
    else:
        yield make_alpaca(row, category=_category(row))


def _convert_task(row: Mapping[str, Any]) -> Converted:
    instruction, category = take_text(row, "instruction"), _category(row)
    count = 0
    for count, instance in enumerate(_take_instances(row), start=1):
        where = f"instances[{count - 1}]"
        try:
            fields = take_object(instance, "instances[]", where=where)
            given = take_optional_text(fields, "input", "instances[].input", where=where)
            answer = take_answer(fields, "output", "instances[].output", where=where)
            messages = (Message("user", ask(instruction, given)), Message("assistant", answer))
            yield Conversation(messages, "single_turn", category=category)
        except Reject as reject:
            yield reject
    if not count:
        raise Reject("empty field 'instances'")


def _take_instances(row: Mapping[str, Any]) -> Iterator[Any]:
    """Yield each instance, also from an object of two lists."""
    value = take(row, "instances")
    if isinstance(value, list):
        yield from value
        return
    if not isinstance(value, dict):
        raise wrong_type("instances", value, "list, or object of lists")
    inputs, outputs = (take_list(value, key, f"instances.{key}") for key in ("input", "output"))
    if len(inputs) != len(outputs):
        raise Reject(
            "lists of field 'instances' differ in length", f"{len(inputs)} inputs, {len(outputs)} outputs"
        )
    for given, output in zip(inputs, outputs, strict=True):
        yield {"input": given, "output": output}


def _category(row: Mapping[str, Any]) -> str | None:
    is_classification = row.get("is_classification")
    if is_classification is None:
        return take_optional_text(row, "motivation_app").strip() or None
    if not isinstance(is_classification, bool):
        raise wrong_type("is_classification", is_classification, "true or false")
    return "classification" if is_classification else "generation"


def _convert_prompt(row: Mapping[str, Any]) -> Conversation:
    prompt = take_text(row, "prompt").strip()
    completion = strip_end_mark(take_text(row, "completion")).strip()
    if not prompt:
        raise Reject("empty prompt")
    if not completion:
        raise Reject("empty completion")
    return Conversation((Message("user", prompt), Message("assistant", completion)), "single_turn")
