"""Unnatural Instructions: generated instructions, in the full set with other wordings of each."""

from collections.abc import Mapping
from typing import Any

from data_tools.conversation import Conversation, Message
from data_tools.errors import Reject
from data_tools.formats.fields import take, take_list, take_object, take_optional_text, take_text
from data_tools.formats.registry import Converted, register
from data_tools.formats.single_turn.alpaca_fields import ask, take_answer
from data_tools.formats.turns import name_group

_PLACEHOLDER = "{INPUT}"
_MOST_PLACEHOLDERS = 4  # more would multiply a long input, and are no wording of an instruction
_OWN_FIELDS = ("instruction_with_input", "constraints")


def is_unnatural_instructions(row: Any) -> bool:
    """Tell whether a row's instances are those of Unnatural Instructions."""
    if not isinstance(row, dict) or not isinstance(row.get("instruction"), str):
        return False
    instances = row.get("instances")
    return (
        isinstance(instances, list)
        and bool(instances)
        and all(isinstance(item, dict) and any(key in item for key in _OWN_FIELDS) for item in instances)
    )


@register(
    "unnatural_instructions",
    "single_turn",
    license="MIT",
    summary="Unnatural Instructions, core and full: {instruction, instances, reformulations}",
    fields=(
        ("instruction", "what is asked"),
        ("instances", "list of {input, constraints, output}"),
        ("instances[].constraints", "optional: how the answer must look, or None"),
        ("reformulations", "optional, of the full set: list of {instruction, input, output}"),
    ),
    quirks=(
        "One conversation for each instance and each reformulation; one that cannot be used is rejected alone.",
        "user = instruction, blank line, input; without an input the instruction alone. An input that only says"
        " that there is none (`None`, `N/A`, `<noinput>`, …) is no input.",
        "constraints, unless they are `None`, `None.`, empty or absent, follow the instruction on a line of"
        " their own.",
        "Where an instruction has the placeholder `{INPUT}`, the input stands in its place; more than"
        " four of them are rejected.",
        "instruction_with_input says instruction and input once more and is not used.",
        "All conversations of a row are one group, since they share their answers: they stay in one split.",
        "Reformulations that are missing, null or empty are no mistake (the core set has none).",
        "White space around each text is removed. An empty instruction or output is rejected.",
    ),
    example={
        "instruction": "Say whether the animal can fly.",
        "instances": [
            {
                "input": "Penguin",
                "instruction_with_input": "Say whether the animal can fly.\nPenguin",
                "constraints": "The output should be 'yes' or 'no'.",
                "output": "no",
            }
        ],
        "reformulations": [
            {
                "instruction": "Is {INPUT} able to fly?",
                "instruction_with_input": "Is a penguin able to fly?",
                "input": "a penguin",
                "output": "no",
            }
        ],
    },
    recognise=is_unnatural_instructions,
)
def convert_unnatural_instructions(row: Any, name: str) -> Converted:
    """Yield one conversation, or its Reject, for each instance and each reformulation."""
    row = take_object(row)
    instruction = take_text(row, "instruction")
    instances = take_list(row, "instances")
    others = [] if row.get("reformulations") is None else take_list(row, "reformulations")
    if not instances and not others:
        raise Reject("empty field 'instances'")
    group = name_group(instruction) if len(instances) + len(others) > 1 else None
    yield from _convert_all(instances, instruction, group)
    yield from _convert_all(others, None, group)


def _convert_all(values: list[Any], instruction: str | None, group: str | None) -> Converted:
    """Yield what becomes of each value; without an instruction each has its own (reformulations)."""
    field = "reformulations" if instruction is None else "instances"
    for index, value in enumerate(values):
        where = f"{field}[{index}]"
        try:
            item = take_object(value, f"{field}[]", where=where)
            wording = instruction
            if wording is None:
                wording = take_text(item, "instruction", f"{field}[].instruction", where=where)
            answer = take_answer(item, "output", f"{field}[].output", where=where)
            messages = (Message("user", _question(item, wording, field, where)), Message("assistant", answer))
            yield Conversation(messages, "single_turn", group=group)
        except Reject as reject:
            yield reject


def _question(item: Mapping[str, Any], instruction: str, field: str, where: str) -> str:
    instruction = instruction.strip()
    take(item, "input", f"{field}[].input", where=where)
    given = take_optional_text(item, "input", f"{field}[].input", where=where).strip()
    if count := instruction.count(_PLACEHOLDER):
        if count > _MOST_PLACEHOLDERS:
            raise Reject("too many placeholders {INPUT}", f"{where}: got {count}")
        instruction, given = instruction.replace(_PLACEHOLDER, given), ""
    constraints = take_optional_text(item, "constraints", f"{field}[].constraints", where=where).strip()
    if instruction.strip() and constraints.rstrip(".").casefold() not in ("", "none"):
        instruction = f"{instruction}\n{constraints}"
    return ask(instruction, given)
