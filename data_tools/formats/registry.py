"""The formats that are known by name, and the text that tells a user what each of them does.

An adapter is a function row -> conversations. It refuses what it does not understand by a `Reject` that names
the field, and whatever it leaves out by rule stands in its `quirks`.
"""

import difflib
import json
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from data_tools.conversation import Conversation, Family
from data_tools.errors import Reject, SettingsError
from data_tools.sources import Reader

Converted = Iterator[Conversation | Reject]
Convert = Callable[[Any, str], Converted]


@dataclass(frozen=True, slots=True)
class Format:
    """A dataset format.

    `convert(value, name)` takes a parsed row and the name of its file, in which some datasets keep the task.
    Each item that it yields is one conversation made, a `Reject` one that cannot be used; a `Reject` that is
    raised stands for the whole row. For the reader `object` the row is the file, and item k its instance k.
    `version` goes up when rows become other conversations than before.
    """

    name: str
    family: Family
    reader: Reader
    version: int
    summary: str
    fields: tuple[tuple[str, str], ...]
    quirks: tuple[str, ...]
    example: Any
    convert: Convert


_FORMATS: dict[str, Format] = {}


def register(
    name: str,
    family: Family,
    *,
    summary: str,
    fields: tuple[tuple[str, str], ...],
    quirks: tuple[str, ...],
    example: Any,
    reader: Reader = "rows",
    version: int = 1,
) -> Callable[[Convert], Convert]:
    """Make an adapter known under a name; used as a decorator."""
    assert name not in _FORMATS, name

    def add(convert: Convert) -> Convert:
        _FORMATS[name] = Format(name, family, reader, version, summary, fields, quirks, example, convert)
        return convert

    return add


def get_format(name: str) -> Format:
    """Return the format of that name. Raises SettingsError, with what was probably meant."""
    if name in _FORMATS:
        return _FORMATS[name]
    close = difflib.get_close_matches(name, _FORMATS, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]!r}?" if close else "run `shardtune formats` for what each of them reads"
    raise SettingsError(
        f"format: unknown format: got {name!r}; expected one of {', '.join(sorted(_FORMATS))}; {hint}"
    )


def all_formats() -> tuple[Format, ...]:
    """Return every format, by family and name."""
    return tuple(sorted(_FORMATS.values(), key=lambda entry: (entry.family, entry.name)))


def format_list() -> str:
    """Return one line for each format: name, family, what it reads."""
    width = max(map(len, _FORMATS))
    return "\n".join(f"{entry.name:{width}}  {entry.family:11}  {entry.summary}" for entry in all_formats())


def format_help(name: str) -> str:
    """Return a format's fields, quirks, and an example row beside what becomes of it."""
    entry = get_format(name)
    width = max(len(field) for field, _ in entry.fields)
    lines = [
        f"{entry.name} ({entry.family}, version {entry.version})",
        _wrap(entry.summary, "  "),
        "",
        "fields",
    ]
    lines += [
        _wrap(f"{field:{width}}  {meaning}", "  ", " " * (width + 4)) for field, meaning in entry.fields
    ]
    lines += ["", "what is done"]
    lines += [_wrap(f"- {quirk}", "  ", "    ") for quirk in entry.quirks]
    lines += ["", "a row", textwrap.indent(json.dumps(entry.example, ensure_ascii=False, indent=2), "  ")]
    file_name = f"{entry.name}.json" if entry.reader != "object" else "task042_example.json"
    for item in entry.convert(entry.example, file_name):
        assert isinstance(item, Conversation), item
        lines += ["", "becomes", *_describe(item)]
    return "\n".join(lines)


def _describe(conversation: Conversation) -> Iterator[str]:
    for key in ("task", "category", "language", "group", "references"):
        if value := getattr(conversation, key):
            yield f"  {key}: {value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)}"
    for tool in conversation.tools:
        yield f"  tool: {json.dumps(tool, ensure_ascii=False)}"
    for message in conversation.messages:
        name = f" {message.name}" if message.name else ""
        trained = {None: "", True: " (trained)", False: " (not trained)"}[message.train]
        yield f"  [{message.role}{name}]{trained}"
        if message.content:
            yield textwrap.indent(message.content, "    ")
        for call in message.tool_calls:
            yield f"    call: {json.dumps(call, ensure_ascii=False)}"


def _wrap(text: str, first: str, rest: str | None = None) -> str:
    return textwrap.fill(text, 100, initial_indent=first, subsequent_indent=first if rest is None else rest)
