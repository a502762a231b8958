"""docs/formats.md, written from the registry: `python -m data_tools.format_docs`; with `--check` only compared."""

import argparse
import json
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from data_tools.conversation import FAMILIES
from data_tools.formats import all_formats
from data_tools.formats.registry import Format, Option, describe_example
from data_tools.formats.template import EXAMPLE_FILE

PATH = Path(__file__).resolve().parent.parent / "docs" / "formats.md"

_HEAD = """\
# Dataset formats

<!-- Written by `python -m data_tools.format_docs`; a test holds it current. Change the formats, not this file. -->

A source in `data.yaml` names one of these by `format:`. `shardtune formats` prints the table, `shardtune formats NAME`
what stands here about one of them. Whatever a format does not understand is rejected with the field's name and counted.

`format: auto` looks at the first rows of each file and takes the format whose marks all of them bear; it says which
one, and refuses where two fit or none does. The formats that it can recognise are marked `✓`.

Where the files name a field otherwise, the source says so: `fields: {instruction: question}`; a dotted name leads into
nested objects. A format's own options stand under `options:`.

The readers: `rows` takes JSON arrays, JSON lines, CSV and TSV with a header, Parquet, Arrow and `datasets` folders;
`chats` the same, but a lone list of messages is one row; `object` one JSON object a file; `table` tab-separated lines
without header and quoting; `text` plain text. All of them look into .gz, .zst, .bz2, .xz, .zip and .tar.
"""

_TEMPLATE_SOURCE = """\
- path: raw/msr_paraphrase_train.tsv
  format: template
  name: mrpc
  fields: {sentence1: "#1 String", sentence2: "#2 String", label: Quality}
  options: {templates: templates/glue/mrpc/templates.yaml, names: [equivalent, same thing], num: 2}
"""


def render_docs() -> str:
    """Return the whole page as Markdown."""
    entries = sorted(all_formats(), key=lambda entry: FAMILIES.index(entry.family))
    blocks = [_HEAD, "\n".join(_table(entries)), *("\n".join(_section(entry)) for entry in entries)]
    return "\n\n".join(block.strip("\n") for block in blocks) + "\n"


def _table(entries: Sequence[Format]) -> Iterator[str]:
    yield "| family | format | reads | reader | auto |"
    yield "|---|---|---|---|---|"
    for entry in entries:
        mark = "✓" if entry.recognise else ""
        link = f"[`{entry.name}`](#{entry.name})"
        yield f"| {entry.family} | {link} | {_cell(entry.summary)} | `{entry.reader}` | {mark} |"


def _section(entry: Format) -> Iterator[str]:
    yield f"## {entry.name}\n"
    yield f"{_prose(entry.summary)}.\n"
    if entry.license:
        yield f"Licence of the published dataset: {_prose(entry.license)}.\n"
    yield "| field | meaning |"
    yield "|---|---|"
    for field, meaning in entry.fields:
        yield f"| `{field}` | {_cell(meaning)} |"
    yield ""
    yield from (f"- {_prose(quirk)}" for quirk in entry.quirks)
    if entry.options:
        yield "\n| option | meaning | default |"
        yield "|---|---|---|"
        yield from (_option_row(option) for option in entry.options)
    if entry.name == "template":
        yield f"\nA source in `data.yaml`:\n\n{_block('yaml', _TEMPLATE_SOURCE)}"
        yield f"\nA file of your own templates:\n\n{_block('yaml', EXAMPLE_FILE.read_text(encoding='utf-8'))}"
    place = f"A row of `{entry.example_name}`" if entry.example_name else "A row"
    yield f"\n{place}\n"
    yield _block("json", json.dumps(entry.example, ensure_ascii=False, indent=2))
    yield "\nbecomes"
    yield from (f"\n{_block('text', described)}" for described in describe_example(entry))


def _option_row(option: Option) -> str:
    choices = f" One of {', '.join(f'`{choice}`' for choice in option.choices)}." if option.choices else ""
    default = json.dumps(option.default, ensure_ascii=False)
    return f"| `{option.name}` | {_cell(option.meaning + choices)} | `{default}` |"


def _cell(text: str) -> str:
    return _prose(text).replace("|", "\\|")


def _prose(text: str) -> str:
    """Return a line of help as Markdown: outside of code `<`, `*` and a `_` at a word's edge would not be shown."""
    pieces = text.split("`")
    for position in range(0, len(pieces), 2):
        pieces[position] = re.sub(r"[\\<*]|\b_|_\b", r"\\\g<0>", pieces[position])
    return "`".join(pieces)


def _block(language: str, text: str) -> str:
    fence = "````" if "```" in text else "```"
    return f"{fence}{language}\n{text.strip()}\n{fence}"


def main(arguments: list[str] | None = None) -> int:
    """Write the page, or compare it: exit code 1 when it is stale."""
    parser = argparse.ArgumentParser(description="Write docs/formats.md from the registered formats.")
    parser.add_argument(
        "--check", action="store_true", help="write nothing; exit 1 if the file is not current"
    )
    parser.add_argument("--output", type=Path, default=PATH, help="the file (docs/formats.md)")
    options = parser.parse_args(arguments)
    page = render_docs()
    if not options.check:
        options.output.write_text(page, encoding="utf-8")
        return 0
    if options.output.is_file() and options.output.read_text(encoding="utf-8") == page:
        return 0
    sys.stderr.write(f"{options.output}: is not current; do run `python -m data_tools.format_docs`\n")
    return 1


if __name__ == "__main__":
    sys.exit(main())
