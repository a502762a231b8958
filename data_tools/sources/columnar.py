"""Parquet and Arrow files as rows of plain values: dict, list, str, int, float, bool, None.

Dates and times become ISO 8601 text, decimals and UUIDs text, NaN and infinities None (JSON has neither), bytes
text where they are UTF-8 and else None. One row group's pages or one record batch is in memory at a time.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import date, datetime, time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from data_tools.errors import SourceError
from data_tools.sources.model import BadRow, Part, Row, damaged

_SLICE_ROWS = 512
_PAGE_BYTES = 1 << 20
_END_OF_STREAM = b"\xff\xff\xff\xff\x00\x00\x00\x00"
_ARROW_FILE = b"ARROW1"
# UnicodeDecodeError is a ValueError; dates that Python does not have raise ValueError or OverflowError.
_ARROW_ERRORS = (pa.ArrowException, OSError, ValueError, OverflowError)


# Parquet


def cut_parquet(whole: Part, target_bytes: int) -> Iterator[Part]:
    """Yield parts of whole row groups, of about `target_bytes` unpacked. Raises SourceError for a damaged file."""
    with open_parquet(whole.path) as file:
        _refuse_twins(whole.path, file.schema_arrow)
        start = first = rows = size = 0
        for group in range(file.metadata.num_row_groups):
            metadata = file.metadata.row_group(group)
            rows, size = rows + metadata.num_rows, size + metadata.total_byte_size
            if size >= target_bytes and group + 1 < file.metadata.num_row_groups:
                yield replace(whole, start=start, stop=group + 1, first=first)
                start, first, size = group + 1, rows, 0
        yield replace(whole, start=start, stop=file.metadata.num_row_groups, first=first)


def read_parquet(part: Part) -> Iterator[Row | BadRow]:
    """Yield the rows of a part's row groups; a damaged group is told of, and the others are read."""
    index = part.first
    with open_parquet(part.path) as file:
        for group in range(part.start, part.stop):
            behind = index + file.metadata.row_group(group).num_rows
            try:
                for batch in file.iter_batches(_SLICE_ROWS, row_groups=[group]):
                    yield from _rows_of(batch, part.name, index)
                    index += batch.num_rows
                problem = "the group ends before"  # Arrow believes a column that says that it has fewer
            except _ARROW_ERRORS as error:
                problem = _first_line(error)
            if index < behind:
                detail = f"rows {index} to {behind - 1} are lost: {problem}"
                yield BadRow(f"{part.name}#{index}", damaged("Parquet"), detail)
            index = behind


@contextmanager
def open_parquet(path: Path) -> Iterator[pq.ParquetFile]:
    """Open a Parquet file. Raises SourceError for a damaged or encrypted one."""
    try:
        file = pq.ParquetFile(path, buffer_size=_PAGE_BYTES, page_checksum_verification=True)
        groups = sum(file.metadata.row_group(i).num_rows for i in range(file.metadata.num_row_groups))
        if groups != file.metadata.num_rows:
            raise ValueError(f"its row groups have {groups} of its {file.metadata.num_rows} rows")
    except _ARROW_ERRORS as error:
        raise SourceError(
            f"{path}: a damaged Parquet file: {_first_line(error)}; expected a whole one; do: fetch it again"
        ) from error
    with file:
        yield file


def parquet_ranges(part: Part) -> list[tuple[int, int]]:
    """Return the byte ranges that decide a part's rows: its column chunks, and the file's footer."""
    ranges = []
    with open_parquet(part.path) as file:
        for group in range(part.start, part.stop):
            metadata = file.metadata.row_group(group)
            for column in map(metadata.column, range(metadata.num_columns)):
                start = column.dictionary_page_offset or column.data_page_offset
                ranges.append((start, start + column.total_compressed_size))
    size = part.path.stat().st_size
    with part.path.open("rb") as stored:
        stored.seek(size - 8)  # the footer's length and the closing mark
        footer = int.from_bytes(stored.read(4), "little")
    return [*ranges, (size - 8 - footer, size)]


# Arrow


def cut_arrow(whole: Part, target_bytes: int) -> Iterator[Part]:
    """Yield parts of whole record batches, of about `target_bytes`. Raises SourceError for a damaged file."""
    start = first = rows = size = number = 0
    for number, batch in enumerate(_ArrowFile(whole.path).batches(0)):
        if isinstance(batch, str):
            break  # the last part reads on, and tells of it
        if number == 0:
            _refuse_twins(whole.path, batch.schema)
        if size >= target_bytes:
            yield replace(whole, start=start, stop=number, first=first)
            start, first, size = number, rows, 0
        # Not `nbytes`: it believes the offsets of a damaged batch, and crashes on them.
        rows, size = rows + batch.num_rows, size + batch.get_total_buffer_size()
    yield replace(whole, start=start, stop=-1, first=first)


def read_arrow(part: Part) -> Iterator[Row | BadRow]:
    """Yield the rows of a part's record batches, and a BadRow where the file is damaged."""
    index = part.first
    for number, batch in enumerate(_ArrowFile(part.path).batches(part.start), part.start):
        if number == part.stop:
            return
        if isinstance(batch, str):
            yield BadRow(f"{part.name}#{index}", damaged("Arrow"), f"{batch}; rows behind this are lost")
            return
        yield from _rows_of(batch, part.name, index)
        index += batch.num_rows


def arrow_messages(part: Part) -> Iterator[pa.Buffer]:
    """Yield the stored bytes that decide a part's rows: schema, dictionaries and its record batches.

    What is wrong with the file counts too: its rows end with a bad row.
    """
    with pa.memory_map(str(part.path)) as source:
        is_file = source.read(len(_ARROW_FILE)) == _ARROW_FILE
        source.seek(8 if is_file else 0)  # behind its mark an Arrow file is laid out as a stream
        number = -1
        try:
            for message in pa.ipc.MessageReader.open_stream(source):
                number += message.type == "record batch"
                if number == part.stop >= 0:
                    return
                if message.type != "record batch" or number >= part.start:
                    yield message.metadata
                    if message.body is not None:
                        yield message.body
            problem = "" if is_file else _problem_of_end(part.path, source.tell())
        except _ARROW_ERRORS:
            problem = "damaged"
        yield pa.py_buffer(problem.encode())


class _ArrowFile:
    """The record batches of an Arrow file or stream; mapped, so that those passed over are not read."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def batches(self, start: int) -> Iterator[pa.RecordBatch | str]:
        """Yield the batches from number `start` on; where one is damaged, what is wrong as the last item.

        Raises SourceError when not even the schema can be read.
        """
        try:
            source = pa.memory_map(str(self._path))
        except OSError as error:
            raise SourceError(f"{self._path}: cannot be opened: {_first_line(error)}") from error
        with source:
            is_file = source.read(len(_ARROW_FILE)) == _ARROW_FILE
            source.seek(0)
            try:
                reader = pa.ipc.open_file(source) if is_file else pa.ipc.open_stream(source)
            except _ARROW_ERRORS as error:
                raise SourceError(
                    f"{self._path}: a damaged Arrow file: {_first_line(error)}; expected a whole one; do: fetch it "
                    "again"
                ) from error
            try:
                if is_file:
                    yield from map(reader.get_batch, range(start, reader.num_record_batches))
                    return
                for number, batch in enumerate(reader):
                    if number >= start:
                        yield batch
            except _ARROW_ERRORS as error:
                yield _first_line(error)
                return
            if problem := _problem_of_end(self._path, source.tell()):
                yield problem


def _problem_of_end(path: Path, position: int) -> str:
    """Return what is wrong with the end of a stream that was read to `position`: to Arrow a cut one is whole."""
    with path.open("rb") as file:
        file.seek(max(position - len(_END_OF_STREAM), 0))
        end = file.read(len(_END_OF_STREAM) + 1)
    if end[: len(_END_OF_STREAM)] != _END_OF_STREAM:
        return "the stream has no end mark"
    return "content after the end of the stream" if len(end) > len(_END_OF_STREAM) else ""


# Values


def _rows_of(batch: pa.RecordBatch, name: str, first: int) -> Iterator[Row | BadRow]:
    if problem := _problem_of(batch):
        detail = f"{batch.num_rows} rows from here on are lost: {problem}"
        yield BadRow(f"{name}#{first}", damaged("Arrow"), detail)
        return
    for start in range(0, batch.num_rows, _SLICE_ROWS):
        yield from _slice_rows(batch.slice(start, _SLICE_ROWS), name, first + start)


def _slice_rows(batch: pa.RecordBatch, name: str, first: int) -> Iterator[Row | BadRow]:
    """Yield the rows of a sound batch; where a value is bad, one by one."""
    names = batch.schema.names
    try:
        columns = [_values(column) for column in batch.columns]
    except _ARROW_ERRORS as error:
        if batch.num_rows > 1:
            for i in range(batch.num_rows):
                yield from _slice_rows(batch.slice(i, 1), name, first + i)
            return
        reason = "not UTF-8" if isinstance(error, UnicodeDecodeError) else "value has no plain form"
        yield BadRow(f"{name}#{first}", reason, _first_line(error))
        return
    for i in range(batch.num_rows):
        cells = [column[i] for column in columns]
        yield Row(dict(zip(names, cells, strict=True)), f"{name}#{first + i}", name)


def _problem_of(batch: pa.RecordBatch) -> str:
    """Return what is wrong with the layout of a batch: Arrow believes offsets, and crashes on damaged ones."""
    try:
        batch.validate()
        # As bytes: text that is not UTF-8 costs its row, not the batch, and must not hide what else is wrong.
        schema = pa.schema([field.with_type(_as_bytes(field.type)) for field in batch.schema])
        batch.cast(schema).validate(full=True)
    except _ARROW_ERRORS as error:
        return _first_line(error)
    return ""


def _as_bytes(kind: pa.DataType) -> pa.DataType:
    """Return a type of the same layout in which text is bytes."""
    if pa.types.is_string(kind):
        return pa.binary()
    if pa.types.is_large_string(kind):
        return pa.large_binary()
    if pa.types.is_list(kind):
        return pa.list_(kind.value_field.with_type(_as_bytes(kind.value_type)))
    if pa.types.is_large_list(kind):
        return pa.large_list(kind.value_field.with_type(_as_bytes(kind.value_type)))
    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(_as_bytes(field.type)) for field in kind])
    return kind


def _values(column: pa.Array) -> list[Any]:
    values = column.to_pylist()
    return values if _is_plain(column.type) else [_plain(value) for value in values]


def _is_plain(kind: pa.DataType) -> bool:
    """Tell whether Python's values of this type are those of JSON already."""
    types = pa.types
    if types.is_struct(kind):
        return all(_is_plain(field.type) for field in kind)
    if types.is_list(kind) or types.is_large_list(kind):
        return _is_plain(kind.value_type)
    if types.is_dictionary(kind):
        return _is_plain(kind.value_type)
    text = types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)
    return bool(text or types.is_integer(kind) or types.is_boolean(kind) or types.is_null(kind))


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):  # a tuple is an entry of a map
        return [_plain(item) for item in value]
    if isinstance(value, datetime | date | time):
        return value.isoformat()
    if isinstance(value, bytes):
        try:
            return value.decode("utf-8")
        except UnicodeDecodeError:
            return None
    return str(value)


def _refuse_twins(path: Path, schema: pa.Schema) -> None:
    try:
        names = schema.names
    except UnicodeDecodeError as error:
        raise SourceError(f"{path}: a column's name is not UTF-8; do: fetch the file again") from error
    if twice := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
        raise SourceError(f"{path}: two columns have one name: got {twice[0]!r}; expected each once")


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
