"""README.zh-CN.md against README.md: what is the same in every language is the same in both.

Both are read as blocks: headings, paragraphs, list items, rows of tables, fenced blocks. Block by block they must agree
on headings, commands, settings, outputs, words set as code, links and numbers. The sentences are not compared.
A heading in Chinese carries the anchor of the English one: `## 局限 <a id="limits"></a>`.
"""

import re
from collections.abc import Iterator
from itertools import zip_longest
from typing import NamedTuple

import pytest

from tests.conftest import ROOT

ENGLISH = (ROOT / "README.md").read_text(encoding="utf-8")
CHINESE = (ROOT / "README.zh-CN.md").read_text(encoding="utf-8")
BLOCK = re.compile(
    r"""^```(?P<language>\w*)\n (?P<code>[\s\S]*?) ^```$
    | ^(?P<start>\#+\ |\||-\ |\d+\.\ ) .* (?:\n\ +\S.*)*   # a heading, a row, an item with its other lines
    | ^\S.* (?:\n\S.*)*                                    # a paragraph
    """,
    re.MULTILINE | re.VERBOSE,
)
INLINE_CODE = r"`[^`\n]+`"
LINK = r"\]\(([^)\s]+)\)"


class Block(NamedTuple):
    """A part of a document: where and with what it begins, and what of it is not translated."""

    line: int
    kind: str
    facts: list[str]


def facts_of_prose(text: str) -> list[str]:
    """Return what a translation keeps: code, links, choices such as `| near`, names such as train/loss, numbers."""
    rest = re.sub(rf"{INLINE_CODE}|{LINK}", " ", text)
    choices = re.findall(r"(?<=\| )[\w-]+", rest, re.ASCII)
    words = [word.strip("./-") for word in re.findall(r"[\w./-]+", rest, re.ASCII)]
    names = [word for word in words if re.search(r"[\d_./]", word)]
    return sorted({*re.findall(INLINE_CODE, text), *re.findall(LINK, text), *choices, *names})


def facts_of_code(text: str) -> list[str]:
    """Return the lines of commands or settings, each with the facts of its comment, which may go on below it."""
    lines: list[tuple[str, str]] = []
    for line in text.splitlines():
        code, _, comment = f" {line}".partition(" # ")
        if code.strip():
            lines.append((code[1:].rstrip(), comment))
        elif lines:
            lines[-1] = (lines[-1][0], f"{lines[-1][1]} {comment}")
    return [" # ".join([code, *facts_of_prose(comment)]) for code, comment in lines]


def facts_of_output(text: str) -> list[str]:
    """Return what a program prints as it is; of a folder, the names; of the project, those at the top and in docs/."""
    if text.startswith("shardtune/\n"):
        _, _, docs = text.partition("\n  docs/")
        documents = docs.split("\n  tests/")[0]
        return re.findall(r"^ {,2}\S+", text, re.MULTILINE) + re.findall(r"^ {4}\S+", documents, re.MULTILINE)
    if text.partition("\n")[0].endswith("/"):
        lines = [re.findall(r"^ *\S+|.+", line) for line in text.splitlines()]
        return [" # ".join([name, *facts_of_prose(" ".join(comment))]) for name, *comment in lines]
    return text.splitlines()


def heading(text: str) -> str:
    """Return the level and the anchor of a heading: the one it carries, else the one that GitHub makes of its words."""
    level, _, words = text.partition(" ")
    carried = re.search(r'<a id="([\w-]+)"></a>', words)
    made = re.sub(r"[^\w -]", "", words.lower()).replace(" ", "-")
    return f"{level} {carried[1] if carried else made}"


def sections(document: str) -> Iterator[tuple[str, list[Block]]]:
    """Yield the headings of a document, each with the blocks below it."""
    name, blocks = "", list[Block]()
    for match in BLOCK.finditer(document):
        line = document.count("\n", 0, match.start()) + 1
        start = (match["start"] or "paragraph").strip()
        if start.startswith("#"):
            yield name, blocks
            name, blocks = heading(match[0]), []
        elif "](README" in match[0]:
            continue  # a paragraph about the other README
        elif match["code"] is None:
            cells = match[0].strip("| ").split(" | ") if start == "|" else [match[0]]
            blocks.append(Block(line, start, [", ".join(facts_of_prose(cell)) for cell in cells]))
        else:
            read = facts_of_code if match["language"] else facts_of_output
            blocks.append(Block(line, f"```{match['language']}", read(match["code"])))
    yield name, blocks


def apart(english: list[str], chinese: list[str]) -> str:
    """Return in words how two lists differ, and what to do."""
    lacks = [fact for fact in english if fact not in chinese]
    besides = [fact for fact in chinese if fact not in english]
    how = f"got {besides}; expected {lacks}" if lacks or besides else f"got another order; expected {english}"
    return f"{how}; bring README.zh-CN.md in step"


def differences(english: str, chinese: str) -> list[str]:
    """Return a line for the first difference in each section; only the headings if these differ."""
    ours, theirs = list(sections(english)), list(sections(chinese))
    names, others = [name for name, _ in ours], [name for name, _ in theirs]
    if names != others:
        return [f"README.zh-CN.md: its headings differ from README.md's: {apart(names, others)}"]
    found = []
    for (name, expected), (_, got) in zip(ours, theirs, strict=True):
        for one, other in zip_longest(expected, got):
            if one is None:
                found.append(
                    f"README.zh-CN.md:{other.line}: README.md has nothing of this below '{name}'; remove it"
                )
            elif other is None:
                found.append(f"README.zh-CN.md: below '{name}' README.md:{one.line} is missing; translate it")
            elif one != other._replace(line=one.line):
                where = f"README.zh-CN.md:{other.line}: differs from README.md:{one.line}"
                how = f"got '{other.kind}'; expected '{one.kind}' with {one.facts}; translate it, or remove what is old"
                found.append(f"{where}: {how if one.kind != other.kind else apart(one.facts, other.facts)}")
            else:
                continue
            break
    return found


def test_the_chinese_readme_is_in_step() -> None:
    found = differences(ENGLISH, CHINESE)
    assert not found, "\n".join(found)
    assert "](README.zh-CN.md)" in ENGLISH.splitlines()[2]
    assert "](README.md)" in CHINESE.splitlines()[2]


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("## Limits\n", "## Limits\n\nOne more sentence.\n", "got '-'; expected 'paragraph' with"),
        ("\nApache License 2.0", "\nSee it.\n\nApache License 2.0", "README.md:"),
        ("## Limits\n", "### Limits\n", "its headings differ"),
        (
            "## Limits\n",
            "## Limits of all kinds\n",
            "got ['## limits']; expected ['## limits-of-all-kinds']",
        ),
        ("\nmake demo\n", "\nmake demo QUICK=1\n", "got ['make demo']; expected ['make demo QUICK=1']"),
        (
            "\n| `shardtune verify SHARDS` |",
            "\n| `shardtune verify FOLDER` |",
            "expected ['`shardtune verify FOLDER`']",
        ),
        ("\n| 75 |", "\n| 76 |", "got ['75']; expected ['76']"),
        ("\nseed: 17 ", "\nseed: 18 ", "got ['seed: 17']; expected ['seed: 18']"),
        ("\n  every_steps: 200 ", "\n  every: 200 ", "expected ['  every: 200']"),
        ("# split | truncate | drop", "# split | truncate | cut | drop", "expected ['overlong: split # "),
        ("== Pack it into", "== Pack them into", "expected ['== Pack them into token shards']"),
        ("](docs/install.md)", "](docs/setup.md)", "expected ['"),
        ("\n  state  ", "\n  status  ", "got ['  state']; expected ['  status']"),
        ("\n  docs/", "\n  extra/\n  docs/", "expected ['  extra/']"),
    ],
)
def test_a_change_of_either_readme_is_found(old: str, new: str, told: str) -> None:
    assert old in ENGLISH
    changed = ENGLISH.replace(old, new, 1)
    assert differences(ENGLISH, ENGLISH) == []
    [message] = differences(changed, ENGLISH)
    assert message.startswith("README.zh-CN.md:")
    assert told in message
    assert len(differences(ENGLISH, changed)) == 1
