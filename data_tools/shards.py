"""The shard format: packed tokens as Arrow IPC files, the writer of one file and the reader of a folder.

This module is the contract between the data half and the trainer. The index that seals a folder is
shard_index.py, the format in prose docs/shard_format.md, the complete check of a folder verify.py; what goes
into which pack is decided in plan.py.
"""

import os
from bisect import bisect_right
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from data_tools.arrow_values import bits, values
from data_tools.errors import ShardError
from data_tools.fingerprints import ContentHash, hash_file
from data_tools.shard_index import TOKENIZER_FOLDER, FileInfo, Index, SourceInfo, TaskInfo, read_index

# Sizes by content alone, so that files and batches are cut alike everywhere:
# about 256 MiB a file (32-bit ids) and 4 MiB a record batch.
TOKENS_PER_FILE = 2**26
TOKENS_PER_BATCH = 2**20


ROWS_NUMBERS = (
    "copies",
    "documents",
    "tokens",
    "repeated_tokens",
    "cut_tokens",
    "target_tokens",
    "cut_target_tokens",
)
# rows.parquet: tokens, repeated, cut and target tokens are of one copy; unknown texts are empty.
ROWS_SCHEMA = pa.schema(
    [
        ("row_id", pa.uint64()),
        ("source", pa.string()),
        ("origin", pa.string()),
        ("task", pa.string()),
        ("language", pa.string()),
        ("references", pa.list_(pa.string())),
        ("fate", pa.string()),
        ("split", pa.string()),
        *((name, pa.uint32()) for name in ROWS_NUMBERS),
    ]
)


@dataclass(frozen=True, slots=True)
class Pack:
    """One row of up to seq_len tokens: whole documents one after the other.

    input_ids uint16|uint32 [tokens], targets bool [tokens] (true = carries loss), seq_lengths int32,
    source_ids uint16, task_ids uint32 and row_ids uint64 [documents]. All but `targets` are views.
    """

    input_ids: NDArray[np.unsignedinteger[Any]]
    targets: NDArray[np.bool_]
    seq_lengths: NDArray[np.int32]
    source_ids: NDArray[np.uint16]
    task_ids: NDArray[np.uint32]
    row_ids: NDArray[np.uint64]


@dataclass(frozen=True, slots=True)
class PackBatch:
    """Some packs as flat columns: what a writer is given and a verifier reads.

    tokens int32 and documents int32 [packs] say how many values of the flat columns belong to each pack.
    """

    tokens: NDArray[np.int32]
    documents: NDArray[np.int32]
    input_ids: NDArray[np.unsignedinteger[Any]]
    targets: NDArray[np.bool_]
    seq_lengths: NDArray[np.int32]
    source_ids: NDArray[np.uint16]
    task_ids: NDArray[np.uint32]
    row_ids: NDArray[np.uint64]


def id_type(vocab_size: int) -> np.dtype[np.unsignedinteger[Any]]:
    """Return the narrowest stored type for ids below `vocab_size`."""
    return np.dtype(np.uint16 if vocab_size <= 2**16 else np.uint32)


def shard_schema(vocab_size: int) -> pa.Schema:
    """Return the columns of a shard file; no metadata, so that no byte depends on who wrote it."""
    ids = pa.from_numpy_dtype(id_type(vocab_size))
    return pa.schema(
        [
            ("input_ids", pa.list_(ids)),
            ("assistant_masks", pa.list_(pa.bool_())),
            ("seq_lengths", pa.list_(pa.int32())),
            ("source_ids", pa.list_(pa.uint16())),
            ("task_ids", pa.list_(pa.uint32())),
            ("row_ids", pa.list_(pa.uint64())),
        ]
    )


def packs_per_file(seq_len: int) -> int:
    """Return how many packs one shard file holds (the last file of a split may hold fewer)."""
    return max(1, TOKENS_PER_FILE // seq_len)


def packs_per_batch(seq_len: int) -> int:
    """Return how many packs one record batch of a shard file holds."""
    return max(1, TOKENS_PER_BATCH // seq_len)


def write_shard(path: Path, batches: Iterable[PackBatch], *, vocab_size: int) -> FileInfo:
    """Write one shard file whole (`.partial`, fsync, rename) and return what the index says about it."""
    schema = shard_schema(vocab_size)
    content = ContentHash()
    partial = path.with_name(path.name + ".partial")
    options = pa.ipc.IpcWriteOptions(metadata_version=pa.ipc.MetadataVersion.V5, compression=None)
    with partial.open("wb") as file:
        with pa.ipc.new_file(file, schema, options=options) as writer:
            for batch in batches:
                record = _to_record(batch, schema)
                content.add(record)
                writer.write_batch(record)
        file.flush()
        os.fsync(file.fileno())
    info = FileInfo(partial.stat().st_size, hash_file(partial), content.hexdigest())
    partial.replace(path)
    return info


def _to_record(batch: PackBatch, schema: pa.Schema) -> pa.RecordBatch:
    token_ends = _list_offsets(batch.tokens)
    document_ends = _list_offsets(batch.documents)
    # Bits are packed here and not by Arrow: the unused ones of the last byte are zero by our own rule.
    bits = pa.py_buffer(np.packbits(batch.targets, bitorder="little").tobytes())
    masks = pa.Array.from_buffers(pa.bool_(), len(batch.targets), [None, bits])
    columns = [
        pa.ListArray.from_arrays(
            token_ends, pa.array(batch.input_ids, schema.field("input_ids").type.value_type)
        ),
        pa.ListArray.from_arrays(token_ends, masks),
        pa.ListArray.from_arrays(document_ends, pa.array(batch.seq_lengths, pa.int32())),
        pa.ListArray.from_arrays(document_ends, pa.array(batch.source_ids, pa.uint16())),
        pa.ListArray.from_arrays(document_ends, pa.array(batch.task_ids, pa.uint32())),
        pa.ListArray.from_arrays(document_ends, pa.array(batch.row_ids, pa.uint64())),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def _list_offsets(lengths: NDArray[np.int32]) -> pa.Array:
    return pa.array(np.concatenate(([0], np.cumsum(lengths, dtype=np.int64))).astype(np.int32))


@dataclass(frozen=True, slots=True)
class _Columns:
    """The buffers of one record batch, as views: list offsets of tokens and of documents, and flat values."""

    token_offsets: NDArray[np.int32]
    document_offsets: NDArray[np.int32]
    input_ids: NDArray[np.unsignedinteger[Any]]
    targets: pa.BooleanArray
    seq_lengths: NDArray[np.int32]
    source_ids: NDArray[np.uint16]
    task_ids: NDArray[np.uint32]
    row_ids: NDArray[np.uint64]


def _view(record: pa.RecordBatch) -> _Columns:
    ids, masks, lengths, sources, tasks, rows = record.columns
    return _Columns(
        token_offsets=values(ids.offsets),
        document_offsets=values(lengths.offsets),
        input_ids=values(ids.values),
        targets=masks.values,
        seq_lengths=values(lengths.values),
        source_ids=values(sources.values),
        task_ids=values(tasks.values),
        row_ids=values(rows.values),
    )


class ShardFile:
    """One shard file, mapped into memory; nothing is read before it is asked for."""

    def __init__(self, path: Path, *, vocab_size: int) -> None:
        try:
            reader = pa.ipc.open_file(pa.memory_map(str(path)))
            self._batches = [reader.get_batch(i) for i in range(reader.num_record_batches)]
        except (pa.ArrowException, OSError) as error:
            raise ShardError(
                f"{path}: not readable as an Arrow file: {_one_line(error)}; do: pack again"
            ) from error
        if not reader.schema.equals(shard_schema(vocab_size)):
            raise ShardError(f"{path}: wrong columns: got {_one_line(reader.schema)}; do: pack again")
        self._starts = [0]
        for batch in self._batches:
            self._starts.append(self._starts[-1] + batch.num_rows)
        self._views: dict[int, _Columns] = {}

    @property
    def num_packs(self) -> int:
        """Return the number of packs in the file."""
        return self._starts[-1]

    @property
    def records(self) -> list[pa.RecordBatch]:
        """Return the record batches as they lie in the file."""
        return self._batches

    def pack(self, row: int) -> Pack:
        """Return the pack in this row of the file."""
        batch = bisect_right(self._starts, row) - 1
        if batch not in self._views:
            self._views[batch] = _view(self._batches[batch])
        view, local = self._views[batch], row - self._starts[batch]
        tokens = slice(int(view.token_offsets[local]), int(view.token_offsets[local + 1]))
        documents = slice(int(view.document_offsets[local]), int(view.document_offsets[local + 1]))
        return Pack(
            input_ids=view.input_ids[tokens],
            targets=bits(view.targets.slice(tokens.start, tokens.stop - tokens.start)),
            seq_lengths=view.seq_lengths[documents],
            source_ids=view.source_ids[documents],
            task_ids=view.task_ids[documents],
            row_ids=view.row_ids[documents],
        )


def _one_line(value: object) -> str:
    return " ".join(str(value).split())


@dataclass(frozen=True, slots=True)
class Split:
    """The packs of one split. tokens and target_tokens are int64 [num_packs]."""

    name: str
    num_documents: int
    tokens: NDArray[np.int64]
    target_tokens: NDArray[np.int64]
    _folder: Path
    _vocab_size: int
    _names: tuple[str, ...]
    _starts: tuple[int, ...]
    _open: dict[int, ShardFile] = field(default_factory=dict)

    @property
    def num_packs(self) -> int:
        """Return the number of packs of the split."""
        return self._starts[-1]

    def pack(self, number: int) -> Pack:
        """Return pack `number` (from 0). Raises IndexError beyond the end, ShardError for a damaged file."""
        if not 0 <= number < self.num_packs:
            raise IndexError(f"split {self.name}: pack {number} of {self.num_packs}")
        file = bisect_right(self._starts, number) - 1
        if file not in self._open:
            self._open[file] = ShardFile(self._folder / self._names[file], vocab_size=self._vocab_size)
        return self._open[file].pack(number - self._starts[file])


@dataclass(frozen=True, slots=True)
class Shards:
    """A sealed folder, open for reading."""

    folder: Path
    index: Index
    splits: Mapping[str, Split]

    @property
    def fingerprint(self) -> str:
        """Return the fingerprint of what the folder holds."""
        return self.index.fingerprint

    @property
    def seq_len(self) -> int:
        """Return the largest number of tokens in a pack."""
        return self.index.seq_len

    @property
    def vocab_size(self) -> int:
        """Return the tokenizer's largest id plus one."""
        return self.index.tokenizer.vocab_size

    @property
    def sources(self) -> tuple[SourceInfo, ...]:
        """Return the sources; `source_ids` count from 0 in this order."""
        return tuple(self.index.sources)

    @property
    def tasks(self) -> tuple[TaskInfo, ...]:
        """Return the tasks; `task_ids` count from 0 in this order."""
        return tuple(self.index.tasks)

    @property
    def tokenizer_folder(self) -> Path:
        """Return the Hugging Face folder with the tokenizer and the chat template."""
        return self.folder / TOKENIZER_FOLDER


def open_shards(folder: Path) -> Shards:
    """Open a sealed shard folder: reads the index and compares file sizes (`verify` does the rest).

    Raises ShardError for a folder that is missing, not sealed, of another version, or of changed file sizes.
    """
    index = read_index(folder)
    for name, info in index.files.items():
        path = folder / name
        size = path.stat().st_size if path.is_file() else None
        if size != info.bytes:
            found = "no such file" if size is None else f"{size} bytes"
            raise ShardError(f"{path}: damaged: got {found}; expected {info.bytes} bytes; do: pack again")
    return Shards(folder, index, {name: _open_split(folder, index, name) for name in index.splits})


def _open_split(folder: Path, index: Index, name: str) -> Split:
    info = index.splits[name]
    starts = [0]
    for num_packs in info.files.values():
        starts.append(starts[-1] + num_packs)
    return Split(
        name=name,
        num_documents=info.documents,
        tokens=np.array(info.tokens, np.int64),
        target_tokens=np.array(info.target_tokens, np.int64),
        _folder=folder,
        _vocab_size=index.tokenizer.vocab_size,
        _names=tuple(info.files),
        _starts=tuple(starts),
    )
