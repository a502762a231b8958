"""What is said about settings that cannot be accepted: a line for each mistake, its place and a hint."""

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

Location = tuple[str | int, ...]

# What pydantic expects, in the words of a settings file.
EXPECTED = {
    "a integer": "an integer",
    "a tuple": "a list",
    "String should match pattern": "text that matches",
    "Tuple should have": "a list of",
    "Value should have": "a list of",
    "a dictionary or instance of": "keys and values of",
    "a dictionary or object to extract fields from": "keys and values",
    "Keys should be strings": "names as keys",
    "Input is not a path for <class 'pathlib.Path'>": "a path",
}


def did_you_mean(word: str, candidates: Iterable[str]) -> str:
    """Return `; did you mean 'x'?` for the likeliest candidate, or nothing if none comes near."""
    close = difflib.get_close_matches(word, list(candidates), n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else ""


@dataclass(slots=True)
class Origin:
    """Where each value was written, for reports and for anchoring paths."""

    path: Path
    root: yaml.Node | None
    overridden: tuple[Location, ...] = ()

    def from_command_line(self, location: Location) -> bool:
        return any(location[: len(key)] == key for key in self.overridden)

    def describe(self, location: Location) -> str:
        """Return `file:line: key`, with the line of the closest key that is in the file."""
        key = ".".join(str(part) for part in location)
        if self.from_command_line(location):
            return f"command line: {key}"
        node, line = self.root, None
        for part in location:
            child = _child(node, part)
            if child is None:
                break
            node, line = child
        at = f"{self.path}:{line + 1}" if line is not None else str(self.path)
        return f"{at}: {key}" if key else at


def _child(node: yaml.Node | None, part: str | int) -> tuple[yaml.Node, int] | None:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if key.value == str(part):
                return value, key.start_mark.line
    if isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
        return node.value[part], node.value[part].start_mark.line
    return None


def describe_mistakes(error: ValidationError, model: type[BaseModel], data: Any, origin: Origin) -> list[str]:
    """Return one line for each mistake; the branches of a union that all failed are one mistake."""
    grouped: dict[Location, list[str]] = {}
    for line in error.errors(include_url=False):
        location = _in_data(line["loc"], data)
        grouped.setdefault(location, []).append(_problem(line, location, model, data))
    report = []
    for location, problems in grouped.items():
        distinct = list(dict.fromkeys(problems))
        branches = [text.partition("; expected ") for text in distinct if text.startswith("got ")]
        if len(branches) > 1:
            expected = " or ".join(expected for _, _, expected in branches)
            distinct = [f"{branches[0][0]}; expected {expected}"]
        report += [f"{origin.describe(location)}: {text}" for text in distinct]
    return report


def _in_data(location: Location, data: Any) -> Location:
    """Return the part of a pydantic location that names a place in the file (unions add names of types)."""
    found: Location = ()
    for part in location:
        if isinstance(data, list | tuple) and not isinstance(part, int):
            return found  # the name of a union's branch
        children = dict(enumerate(data)) if isinstance(data, list | tuple) else data
        if isinstance(children, Mapping) and part not in children and part in children.values():
            continue  # the tag that chose the model, such as the `method` of a tuning method
        if not isinstance(children, Mapping) or (part not in children and part != location[-1]):
            return found
        data = children.get(part)  # None for a missing key, which is itself the end of the location
        found += (part,)
    return found


def _problem(line: Mapping[str, Any], location: Location, model: type[BaseModel], data: Any) -> str:
    kind, message, got = line["type"], str(line["msg"]), line["input"]
    if kind == "extra_forbidden":
        return f"unknown key{_suggest_key(location, model, data)}"
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        return _tag_problem(_field_at(model, location), got)
    if kind == "missing":
        return "missing; expected a value"
    if kind == "between_keys":
        return message
    shown = "null" if got is None else repr(got)
    expected = message.removeprefix("Input should be ").removeprefix("Input should ").replace("valid ", "")
    for theirs, ours in EXPECTED.items():
        expected = expected.replace(theirs, ours)
    expected = re.sub(r" after validation, not \d+", "", expected)
    hint = "; write it in quotes" if "string" in expected and isinstance(got, bool | int | float) else ""
    return f"got {shown[:80]}; expected {expected}{hint}"


def _tag_problem(field: FieldInfo, got: Any) -> str:
    """Return what is wrong with the key that chooses between the models of a union."""
    key = str(field.discriminator)
    tags = [tag for model in _models_in(field.annotation) for tag in _tags(model, key)]
    expected = f"expected {key} to be one of {', '.join(tags)}"
    if not isinstance(got, Mapping) or key not in got:
        return f"{key} is missing; {expected}"
    return f"got {key} {got[key]!r}; {expected}{did_you_mean(str(got[key]), tags)}"


def _tags(model: type[BaseModel], key: str) -> tuple[str, ...]:
    return get_args(model.model_fields[key].annotation)


def _suggest_key(location: Location, model: type[BaseModel], data: Any) -> str:
    key = str(location[-1])
    siblings = _model_at(model, location[:-1], data)
    close = did_you_mean(key, siblings.model_fields if siblings else ())
    if close:
        return close
    here = ".".join(map(str, location))  # a key of another model of a union may have the very path
    elsewhere = [path for path in _all_keys(model) if path.rpartition(".")[2] == key and path != here]
    if elsewhere:
        return f"; did you mean {elsewhere[0]!r}?"
    return f"; expected one of {', '.join(siblings.model_fields)}" if siblings else ""


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    """Return the models inside an annotation such as `tuple[Model, ...] | None`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if get_origin(annotation) in (Union, UnionType, list, tuple, Annotated):
        return [model for part in get_args(annotation) for model in _models_in(part)]
    return []


def _field_at(model: type[BaseModel], location: Location) -> FieldInfo:
    parent = _model_at(model, location[:-1], None)
    assert parent is not None
    return parent.model_fields[str(location[-1])]


def _model_at(model: type[BaseModel], location: Location, data: Any) -> type[BaseModel] | None:
    """Return the model of the settings at a location; where `data` chooses between several, the chosen one."""
    for part in location:
        data = data[part] if data is not None else None
        if isinstance(part, int):
            continue
        field = model.model_fields.get(part)
        inner = _models_in(field.annotation) if field else []
        if not inner:
            return None
        model = inner[0]
        if field is not None and isinstance(tag := field.discriminator, str) and isinstance(data, Mapping):
            model = next((one for one in inner if data.get(tag) in _tags(one, tag)), model)
    return model


def _all_keys(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        yield prefix + name
        for inner in _models_in(field.annotation):
            many = get_origin(field.annotation) in (list, tuple)
            yield from _all_keys(inner, f"{prefix}{name}.{'0.' if many else ''}")
