"""The formats that are known by name, and the text that tells a user what each of them does.

An adapter is a function row -> conversations. It refuses what it does not understand by a `Reject` that names
the field, and whatever it leaves out by rule stands in its `quirks`.
"""

import difflib
import json
import textwrap
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from data_tools.conversation import FAMILIES, Conversation, Family
from data_tools.errors import Reject, SettingsError
from data_tools.sources import BadRow, Reader, Row

Converted = Iterator[Conversation | Reject]
Convert = Callable[..., Converted]
Recognise = Callable[[Any], bool]
Check = Callable[[Mapping[str, Any]], None]
GroupRows = Callable[[Iterator[Row | BadRow]], Iterator[Row | BadRow]]


@dataclass(slots=True)
class RowGroup(Row):
    """Rows that were put together: `num_rows` of the file, with the place of the first."""

    num_rows: int


@dataclass(frozen=True, slots=True)
class Option:
    """A choice that a source's `options` may make; the adapter gets it as a keyword argument of that name.

    `kind` is the type of the value; for tuple (of strings) one string serves too. `choices` (none: any),
    `least` (of a number) narrow it. `is_path`: names files, relative to the settings file.
    """

    name: str
    kind: type
    default: Any
    meaning: str
    choices: tuple[Any, ...] = ()
    least: float | None = None
    is_path: bool = False


@dataclass(frozen=True, slots=True)
class Format:
    """A dataset format.

    `convert(value, name, **options)` takes a parsed row, the name of its file, in which some datasets keep the
    task, and a value for each of `options`.
    Each item that it yields is one conversation made, a `Reject` one that cannot be used; a `Reject` that is
    raised stands for the whole row. For the reader `object` the row is the file, and item k its instance k.
    `recognise(row)` tells whether a row can only be of this format (for `format: auto`); None where rows look like
    those of another one. `version` goes up when rows become other conversations than before. `example_name` is the
    file that the example stands in, where the name of a file says something; `example_options` are the options that
    it is converted with, where the defaults do not serve. `check(options)` raises SettingsError, beginning with an
    option's name, for what is wrong with options beyond their types. `group_rows` puts rows of a file together that
    only make sense together (the messages of a tree) before `convert` sees them; its files are not cut into parts.
    `license`: what the dataset that the format is of was published under; empty where none is stated, or where the
    format is not that of one dataset.
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
    options: tuple[Option, ...] = ()
    recognise: Recognise | None = None
    example_name: str = ""
    example_options: Mapping[str, Any] = field(default_factory=dict)
    check: Check | None = None
    group_rows: GroupRows | None = None
    license: str = ""

    def field_names(self) -> list[str]:
        """Return the names of a row's own fields, as far as `fields` tells them; none where any may be named."""
        names = [name.strip() for names, _ in self.fields for name in names.split(",")]
        return [] if "(any)" in names else list(dict.fromkeys(name.partition("[")[0] for name in names))


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
    options: tuple[Option, ...] = (),
    recognise: Recognise | None = None,
    example_name: str = "",
    example_options: Mapping[str, Any] | None = None,
    check: Check | None = None,
    group_rows: GroupRows | None = None,
    license: str = "",
) -> Callable[[Convert], Convert]:
    """Make an adapter known under a name; used as a decorator."""
    assert name not in _FORMATS, name

    def add(convert: Convert) -> Convert:
        _FORMATS[name] = Format(
            name,
            family,
            reader,
            version,
            summary,
            fields,
            quirks,
            example,
            convert,
            options,
            recognise,
            example_name,
            example_options or {},
            check,
            group_rows,
            license,
        )
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


def resolve_options(entry: Format, given: Mapping[str, Any], *, where: str) -> dict[str, Any]:
    """Return a value for each of the format's options. Raises SettingsError with every mistake in `given`."""
    known = {option.name: option for option in entry.options}
    mistakes = []
    for name in given.keys() - known.keys():
        close = difflib.get_close_matches(str(name), known, n=1, cutoff=0.5)
        expected = f"one of {', '.join(known)}" if known else "none: the format has no options"
        hint = f"; did you mean {close[0]!r}?" if close else ""
        mistakes.append(
            f"{where}.options: unknown option of {entry.name}: got {name!r}; expected {expected}{hint}"
        )
    values = {}
    for name, option in known.items():
        value = given.get(name, option.default)
        if option.kind is tuple and isinstance(value, str | list):
            value = (value,) if isinstance(value, str) else tuple(value)
        if name in given and (problem := _option_problem(option, value)):
            mistakes.append(f"{where}.options.{name}: {problem}")
        values[name] = value
    if mistakes:
        raise SettingsError("\n".join(sorted(mistakes)))
    return values


def _option_problem(option: Option, value: Any) -> str:
    """Return what is wrong with a value that was given for an option, or nothing."""
    if value is None and option.default is None:
        return ""
    is_number = option.kind is float and isinstance(value, int) and not isinstance(value, bool)
    if not (type(value) is option.kind or is_number):
        return f"got {value!r}; expected a value of type {option.kind.__name__}"
    if option.kind is tuple and not (value and all(isinstance(item, str) for item in value)):
        return f"got {list(value)!r}; expected strings"
    if option.choices and value not in option.choices:
        return f"got {value!r}; expected one of {', '.join(map(repr, option.choices))}"
    if option.least is not None and value < option.least:
        return f"got {value!r}; expected at least {option.least}"
    return ""


def all_formats() -> tuple[Format, ...]:
    """Return every format, by family and name."""
    return tuple(sorted(_FORMATS.values(), key=lambda entry: (entry.family, entry.name)))


def format_list() -> str:
    """Return a table of the formats by family: name, reader, and what it reads."""
    width = max(map(len, _FORMATS))
    readers = max(len(entry.reader) for entry in _FORMATS.values())
    blocks = []
    for family in FAMILIES:
        lines = [
            _wrap(
                f"{entry.name:{width}}  {entry.reader:{readers}}  {entry.summary}",
                "  ",
                " " * (width + readers + 6),
            )
            for entry in all_formats()
            if entry.family == family
        ]
        blocks.append("\n".join([family, *lines]))
    return "\n\n".join(blocks)


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
    if entry.license:
        lines += ["", "licence of the published dataset", _wrap(entry.license, "  ")]
    lines += ["", "what is done"]
    lines += [_wrap(f"- {quirk}", "  ", "    ") for quirk in entry.quirks]
    if entry.options:
        lines += ["", "options"]
        lines += [
            _wrap(f"{option.name}: {option.meaning} Default: {json.dumps(option.default)}.", "  ", "    ")
            for option in entry.options
        ]
    lines += ["", f"a row of {entry.example_name}" if entry.example_name else "a row"]
    lines.append(textwrap.indent(json.dumps(entry.example, ensure_ascii=False, indent=2), "  "))
    for described in describe_example(entry):
        lines += ["", "becomes", textwrap.indent(described, "  ")]
    return "\n".join(lines)


def describe_example(entry: Format) -> Iterator[str]:
    """Yield, as text, each conversation that the format's example becomes."""
    options = resolve_options(entry, entry.example_options, where=entry.name)
    for item in entry.convert(entry.example, entry.example_name or f"{entry.name}.json", **options):
        assert isinstance(item, Conversation), item
        yield "\n".join(_describe(item))


def _describe(conversation: Conversation) -> Iterator[str]:
    for key in ("task", "category", "language", "group", "references"):
        if value := getattr(conversation, key):
            yield f"{key}: {value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)}"
    for tool in conversation.tools:
        yield f"tool: {json.dumps(tool, ensure_ascii=False)}"
    for message in conversation.messages:
        name = f" {message.name}" if message.name else ""
        trained = {None: "", True: " (trained)", False: " (not trained)"}[message.train]
        yield f"[{message.role}{name}]{trained}"
        if message.content:
            yield textwrap.indent(message.content, "  ")
        for call in message.tool_calls:
            yield f"  call: {json.dumps(call, ensure_ascii=False)}"


def _wrap(text: str, first: str, rest: str | None = None) -> str:
    return textwrap.fill(text, 100, initial_indent=first, subsequent_indent=first if rest is None else rest)
