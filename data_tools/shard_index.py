"""The index of a shard folder: the records in `index.json`, its fingerprint, sealing and unsealing.

`index.json` is written last and seals the folder; without it the folder is not a dataset. What every field
means is in docs/shard_format.md.
"""

import json
import os
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pydantic

from data_tools.errors import ShardError
from data_tools.fingerprints import fingerprint

FORMAT = "shardtune-shards"
VERSION = 1
INDEX_NAME = "index.json"
ROWS_NAME = "rows.parquet"
REJECTS_NAME = "rejects.jsonl"
TOKENIZER_FOLDER = "tokenizer"
SPLITS = ("train", "validation", "test", "unseen_tasks")
# Names that packing gives to files and folders in its output.
OWN_NAMES = re.compile(
    rf"({'|'.join(SPLITS)})-\d{{5}}\.arrow|{ROWS_NAME}|{REJECTS_NAME}|{TOKENIZER_FOLDER}|index\.json\.partial"
)


@dataclass(frozen=True, slots=True)
class SourceInfo:
    """One source's name and its account.

    conversations = kept + rejected + duplicates + left out, and
    tokens + repeated_tokens = packed_tokens + cut_tokens (the same for target tokens, which never repeat).
    `tokens` counts the kept conversations as often as they are taken (weight); `rejected` and `left_out`
    are counts by reason; `documents` counts what lies in packs, pieces of split conversations singly. `duplicates`
    are exact and near ones. `family` is that of the format; conversations of a file of mixed ones have their task's.
    `escaped` counts texts that spelled a special token, `rewritten` answers that are no targets because the template
    rewrites them. `license` is what the settings say of the source; no part of the fingerprint.
    """

    name: str
    family: str
    format: str
    rows: int
    conversations: int
    kept: int
    rejected: dict[str, int]
    duplicates: int
    left_out: dict[str, int]
    documents: int
    tokens: int
    repeated_tokens: int
    packed_tokens: int
    cut_tokens: int
    target_tokens: int
    packed_target_tokens: int
    cut_target_tokens: int
    escaped: int
    rewritten: int = 0
    license: str | None = None


@dataclass(frozen=True, slots=True)
class TaskInfo:
    """One task of one source; conversations without a task belong to their source's task named "".

    A name stands twice where a source has conversations of it in two families.
    """

    name: str
    source: str
    category: str | None
    family: str


@dataclass(frozen=True, slots=True)
class SplitInfo:
    """One split: its files with their number of packs, and tokens and target tokens of each pack."""

    documents: int
    files: dict[str, int]
    tokens: list[int]
    target_tokens: list[int]


@dataclass(frozen=True, slots=True)
class FileInfo:
    """One file of the folder: size, SHA-256 of its bytes, and hash of its values where it is a table.

    `content` does not depend on how Arrow lays values out: fingerprints are made of it.
    """

    bytes: int
    sha256: str
    content: str | None = None


@dataclass(frozen=True, slots=True)
class TokenizerInfo:
    """What the ids mean: fingerprint of tokenizer and template together, and the largest id plus one."""

    fingerprint: str
    vocab_size: int


@dataclass(frozen=True, slots=True)
class Index:
    """Everything in `index.json`. `recipe` is the fingerprint of the inputs and settings."""

    format: str
    version: int
    kind: str
    fingerprint: str
    recipe: str
    seq_len: int
    tokenizer: TokenizerInfo
    sources: list[SourceInfo]
    tasks: list[TaskInfo]
    splits: dict[str, SplitInfo]
    files: dict[str, FileInfo]
    settings: dict[str, Any]


_INDEX_TYPE = pydantic.TypeAdapter(Index)


def compute_fingerprint(index: Index) -> str:
    """Return the fingerprint of what the folder holds: values, never bytes, paths, versions or times."""
    kept = {name: value for name, value in asdict(index).items() if name not in ("fingerprint", "files")}
    for source in kept["sources"]:
        del source["license"]  # says something of the content, and is none
    kept["content"] = {name: file.content for name, file in index.files.items() if file.content is not None}
    return fingerprint(kept)


def write_index(folder: Path, index: Index) -> None:
    """Seal a folder: write its index (`.partial`, fsync, rename, fsync of the folder)."""
    partial = folder / f"{INDEX_NAME}.partial"
    with partial.open("w", encoding="utf-8") as file:
        file.write(_format_index(asdict(index)))
        file.flush()
        os.fsync(file.fileno())
    partial.replace(folder / INDEX_NAME)
    sync_folder(folder)


def unseal(folder: Path) -> None:
    """Take the seal off a folder before anything in it changes: from here on it is no dataset."""
    (folder / INDEX_NAME).unlink(missing_ok=True)
    sync_folder(folder)


def sync_folder(folder: Path) -> None:
    """Force the folder's list of names to disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _format_index(value: Any, depth: int = 0) -> str:
    """Write JSON for people: two levels of lines, below them compact (a split has a number for each pack)."""
    if depth == 3 or not isinstance(value, dict | list) or not value:
        return json.dumps(value, ensure_ascii=False)
    inner, outer = "\n" + " " * (depth + 1), "\n" + " " * depth
    if isinstance(value, list):
        if depth == 2:
            return json.dumps(value, ensure_ascii=False)
        return "[" + ",".join(inner + _format_index(item, depth + 1) for item in value) + outer + "]"
    items = (f"{inner}{json.dumps(key)}: {_format_index(item, depth + 1)}" for key, item in value.items())
    return "{" + ",".join(items) + outer + "}" + ("\n" if depth == 0 else "")


def read_index(folder: Path) -> Index:
    """Read the index of a sealed folder.

    Raises ShardError for a folder that is missing, not sealed, damaged, or of another format version.
    """
    path = folder / INDEX_NAME
    if not folder.is_dir():
        raise ShardError(f"{folder}: no such shard folder; do: make it with `shardtune pack DATA.yaml`")
    if not path.is_file():
        raise ShardError(
            f"{folder}: the folder is not sealed: it has no {INDEX_NAME}; expected a folder that "
            "`shardtune pack` finished; do: run `shardtune pack DATA.yaml` (again)"
        )
    try:
        text = path.read_bytes()
        value = json.loads(text)
    except ValueError as error:
        raise ShardError(f"{path}: not readable as JSON: {error}; do: pack again") from error
    found = (value.get("format"), value.get("version")) if isinstance(value, dict) else None
    if found != (FORMAT, VERSION):
        raise ShardError(
            f"{path}: wrong format or version: got {found}; expected {(FORMAT, VERSION)}; do: pack again"
        )
    try:
        return _INDEX_TYPE.validate_json(text, strict=True, extra="forbid")
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ShardError(f"{path}: damaged: {where}: {first['msg']}; do: pack again") from error
