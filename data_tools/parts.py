"""The file of one tokenized part: a cache inside the output folder, not part of the shard format.

One row for each conversation made of the part's rows, rejected ones included (with their reason and without
ids), in the order of the input. Read by mmap, a column at a time: the plan touches none of the token ids.
"""

import os
from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from data_tools.conversation import Conversation
from data_tools.errors import Reject, ShardError
from data_tools.shards import id_type

if TYPE_CHECKING:
    from data_tools.chat import Document

SUFFIX = ".part"
ROWS_PER_BATCH = 4096


@dataclass(frozen=True, slots=True)
class TokenizedRow:
    """One conversation with its tokens.

    first_of_row marks the first conversation of its row, by which rows are counted;
    content is 16 bytes, the hash of the normalised content; group a hash of the explicit group, or 0.
    """

    origin: str
    first_of_row: bool
    conversation: Conversation
    language: str
    content: bytes
    group: int
    document: "Document"


@dataclass(frozen=True, slots=True)
class RejectedRow:
    """One conversation, or a row of which none could be made, that was set aside."""

    origin: str
    first_of_row: bool
    reject: Reject


def part_schema(vocab_size: int) -> pa.Schema:
    """Return the columns of a part file; `reason` is empty where the conversation was tokenized."""
    return pa.schema(
        [
            ("origin", pa.string()),
            ("reason", pa.string()),
            ("detail", pa.string()),
            ("task", pa.string()),
            ("category", pa.string()),
            ("family", pa.string()),
            ("language", pa.string()),
            ("references", pa.list_(pa.string())),
            ("content", pa.binary(16)),
            ("group", pa.uint64()),
            ("first_of_row", pa.uint8()),
            ("num_tokens", pa.uint32()),
            ("num_targets", pa.uint32()),
            ("num_system_tokens", pa.uint32()),
            ("num_escaped", pa.uint32()),
            ("turn_ends", pa.list_(pa.int32())),
            ("input_ids", pa.list_(pa.from_numpy_dtype(id_type(vocab_size)))),
            ("targets", pa.list_(pa.uint8())),  # not bits: read piece by piece
        ]
    )


def write_part(path: Path, rows: Iterable[TokenizedRow | RejectedRow], *, vocab_size: int) -> None:
    """Write a part whole: to a name of this process, fsync, then renamed, so that two tasks cannot mix."""
    schema = part_schema(vocab_size)
    partial = path.with_name(f"{path.name}.{os.uname().nodename}-{os.getpid()}.partial")
    iterator = iter(rows)
    try:
        with partial.open("wb") as file:
            with pa.ipc.new_file(file, schema) as writer:
                while chunk := list(islice(iterator, ROWS_PER_BATCH)):
                    writer.write_batch(_to_record(chunk, schema))
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _to_record(rows: list[TokenizedRow | RejectedRow], schema: pa.Schema) -> pa.RecordBatch:
    values = [_rejected(row) if isinstance(row, RejectedRow) else _tokenized(row) for row in rows]
    columns = []
    for position, field in enumerate(schema):
        cells = [value[position] for value in values]
        if field.name in ("turn_ends", "input_ids", "targets"):
            offsets = np.cumsum([0, *map(len, cells)]).astype(np.int32)
            inner = pa.array(np.concatenate(cells), field.type.value_type)
            columns.append(pa.ListArray.from_arrays(pa.array(offsets), inner))
        else:
            columns.append(pa.array(cells, field.type))
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def _rejected(row: RejectedRow) -> tuple[Any, ...]:
    none = np.empty(0, np.uint8)
    texts = (row.origin, row.reject.reason, row.reject.detail, "", "", "", "")
    return (*texts, (), bytes(16), 0, int(row.first_of_row), 0, 0, 0, 0, none, none, none)


def _tokenized(row: TokenizedRow) -> tuple[Any, ...]:
    made, document = row.conversation, row.document
    num_targets = int(document.targets.sum())
    return (
        *(row.origin, "", "", made.task or "", made.category or "", made.family, row.language),
        *(made.references, row.content, row.group, int(row.first_of_row)),
        *(len(document.ids), num_targets, document.num_system_tokens, document.num_escaped),
        *(document.turn_ends, document.ids, document.targets.astype(np.uint8)),
    )


class PartFile:
    """A part file, mapped into memory."""

    def __init__(self, path: Path, *, vocab_size: int) -> None:
        problem = None
        try:
            reader = pa.ipc.open_file(pa.memory_map(str(path)))
            self.batches = [reader.get_batch(i) for i in range(reader.num_record_batches)]
            if not reader.schema.equals(part_schema(vocab_size)):
                problem = "other columns than this version writes"
        except (pa.ArrowException, OSError) as error:
            problem = " ".join(str(error).split())
        if problem:
            raise ShardError(f"{path}: damaged part: {problem}; do: remove this file and run again")
        self._starts = [0]
        for batch in self.batches:
            self._starts.append(self._starts[-1] + batch.num_rows)
        self._lists: dict[tuple[int, str], tuple[NDArray[np.int32], NDArray[Any]]] = {}

    @property
    def num_rows(self) -> int:
        """Return the number of conversations, rejected ones included."""
        return self._starts[-1]

    def column(self, name: str) -> NDArray[Any]:
        """Return a column of numbers as one array."""
        arrays = [batch.column(name).to_numpy(zero_copy_only=False) for batch in self.batches]
        dtype = part_schema(0).field(name).type.to_pandas_dtype()
        return np.concatenate([np.empty(0, dtype), *arrays])

    def content(self) -> NDArray[np.uint64]:
        """Return the content hashes, uint64 [n, 2]."""
        views = [
            np.frombuffer(batch.column("content").buffers()[1], "<u8", 2 * batch.num_rows)
            for batch in self.batches
        ]
        return np.concatenate([np.empty(0, np.uint64), *views]).reshape(-1, 2)

    def column_value(self, name: str, row: int) -> int:
        """Return one row's value in a column of numbers."""
        batch = bisect_right(self._starts, row) - 1
        value: int = self.batches[batch].column(name)[row - self._starts[batch]].as_py()
        return value

    def texts(self, name: str) -> pa.ChunkedArray:
        """Return a column of texts, or of lists of texts."""
        return pa.chunked_array([b.column(name) for b in self.batches], part_schema(0).field(name).type)

    def values(self, name: str, row: int) -> NDArray[Any]:
        """Return one row's `input_ids`, `targets` (0 or 1) or `turn_ends`, as a view of the file."""
        batch = bisect_right(self._starts, row) - 1
        key = (batch, name)
        if key not in self._lists:
            column = self.batches[batch].column(name)
            self._lists[key] = column.offsets.to_numpy(), column.values.to_numpy()
        offsets, values = self._lists[key]
        local = row - self._starts[batch]
        return values[offsets[local] : offsets[local + 1]]
