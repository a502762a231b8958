"""Parquet, Arrow and saved `datasets` folders as rows of plain values, in parts, whole or damaged."""

import datetime
import decimal
import json
import math
import shutil
import uuid
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from data_tools.errors import SourceError
from data_tools.sources import BadRow, Row, cut_parts, hash_part, list_files, read_part
from tests.data_tools.sources.reading import Write, check_parts, good, read, reasons, values

ROWS = [
    {"n": number, "text": f"row {number}", "turns": [{"role": "user", "content": "é" * (number % 7)}]}
    for number in range(2000)
]
TABLE = pa.Table.from_pylist(ROWS)


def write_parquet(path: Path, table: pa.Table = TABLE, **options: Any) -> Path:
    pq.write_table(table, path, **{"row_group_size": 300, **options})
    return path


def write_arrow(path: Path, table: pa.Table = TABLE, *, stream: bool = True) -> Path:
    make = pa.ipc.new_stream if stream else pa.ipc.new_file
    with pa.OSFile(str(path), "wb") as sink, make(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=300)
    return path


KINDS = ["parquet", "stream", "file"]


def write_kind(path: Path, kind: str, table: pa.Table = TABLE) -> Path:
    return (
        write_parquet(path, table) if kind == "parquet" else write_arrow(path, table, stream=kind == "stream")
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("reader", ["rows", "chats", "table", "text"])
def test_columns_become_rows_however_they_are_cut(tmp_path: Path, kind: str, reader: Any) -> None:
    path = write_kind(tmp_path / "rows.json", kind)
    items = check_parts(path, reader, 9000)
    assert values(items) == ROWS
    assert [item.origin for item in items][:2] == ["rows.json#0", "rows.json#1"]
    assert items[1234].origin == "rows.json#1234"
    parts = list(cut_parts([path], reader, 9000))
    assert len(parts) > 2
    hashes = [hash_part(part) for part in parts]
    assert len(set(hashes)) == len(parts)
    (tmp_path / "copy").mkdir()
    copy = Path(shutil.copy(path, tmp_path / "copy" / "other"))
    assert hashes == [hash_part(part) for part in cut_parts([copy], reader, 9000)]


@pytest.mark.parametrize("kind", KINDS)
def test_files_without_rows_give_none(tmp_path: Path, kind: str) -> None:
    assert check_parts(write_kind(tmp_path / "x", kind, TABLE.slice(0, 0)), "rows", 10) == []


def test_compressed_and_categorical_columns_are_read(tmp_path: Path) -> None:
    table = pa.table({"a": pa.array(["x", "y", "x", None] * 500).dictionary_encode()})
    rows = [{"a": value} for value in ["x", "y", "x", None] * 500]
    for stream in (True, False):
        assert values(check_parts(write_arrow(tmp_path / "x", table, stream=stream), "rows", 500)) == rows
    import pyarrow.feather

    pyarrow.feather.write_feather(TABLE, tmp_path / "y", compression="lz4", chunksize=300)
    assert values(check_parts(tmp_path / "y", "rows", 9000)) == ROWS


def test_values_are_those_of_json(tmp_path: Path) -> None:
    utc = datetime.UTC
    table = pa.table(
        {
            "float": [1.5, math.nan, math.inf, None],
            "time": pa.array(
                [datetime.datetime(2024, 1, 2, 3, 4, 5, 6, tzinfo=utc)] * 4, pa.timestamp("us", "UTC")
            ),
            "date": [datetime.date(2024, 1, 2)] * 4,
            "bytes": [b"text", b"\xff", b"", None],
            "decimal": [decimal.Decimal("1.50")] * 4,
            "uuid": pa.array([uuid.UUID(int=1).bytes] * 4, pa.uuid()),
            "map": pa.array([[("a", 1.5)]] * 4, pa.map_(pa.string(), pa.float64())),
            "nested": [[{"when": datetime.time(1, 2), "score": math.nan}]] * 4,
            "flag": [True, False, None, True],
        }
    )
    for kind in KINDS:
        rows = values(read(write_kind(tmp_path / "x", kind, table)))
        assert orjson.loads(orjson.dumps(rows)) == rows
        assert [row["float"] for row in rows] == [1.5, None, None, None]
        assert [row["bytes"] for row in rows] == ["text", None, "", None]
        assert rows[0] | {"float": 0, "bytes": 0, "uuid": 0} == {
            "float": 0,
            "time": "2024-01-02T03:04:05.000006+00:00",
            "date": "2024-01-02",
            "bytes": 0,
            "decimal": "1.50",
            "uuid": 0,
            "map": [["a", 1.5]],
            "nested": [{"when": "01:02:00", "score": None}],
            "flag": True,
        }


def test_a_value_that_cannot_be_read_costs_its_row(tmp_path: Path) -> None:
    text = pa.array([b"a", b"\xff\xfe", b"c"]).cast(pa.binary())
    text = pa.Array.from_buffers(pa.string(), 3, text.buffers())
    # Year 30,000, which Python's dates do not have.
    time = pa.array([0, 0, 884_541_600_000], pa.int64()).cast(pa.timestamp("s"))
    path = write_arrow(tmp_path / "x", pa.table({"text": text, "time": time}))
    assert reasons(read(path)) == [("x#1", "not UTF-8"), ("x#2", "value has no plain form")]
    assert good(read(path)) == [{"text": "a", "time": "1970-01-01T00:00:00"}]


def test_two_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    table = pa.table([[1], [2]], names=["a", "a"])
    for kind in KINDS:
        with pytest.raises(SourceError, match="two columns have one name: got 'a'"):
            read(write_kind(tmp_path / "x", kind, table))


def test_columns_of_the_settings_are_for_tables_only(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="`columns` is for tables without a header: got a Parquet file"):
        read(write_parquet(tmp_path / "x"), columns=("a",))


# Damage


@pytest.mark.parametrize(("kind", "name"), [("parquet", "Parquet"), ("file", "Arrow")])
def test_a_file_whose_end_is_missing_is_a_source_error(tmp_path: Path, kind: str, name: str) -> None:
    content = write_kind(tmp_path / "x", kind).read_bytes()
    (tmp_path / "x").write_bytes(content[:-20])
    with pytest.raises(SourceError, match=f"x: a damaged {name} file: .*; do: fetch it again"):
        read(tmp_path / "x")


def test_a_footer_that_counts_other_rows_than_its_groups_have_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"n": list(range(150))}), path, row_group_size=100)
    # Thrift's field 3, the number of rows, as a zigzag varint, before the list of groups: 150, then 151.
    content = path.read_bytes()
    assert content.count(b"\x16\xac\x02\x19") == 1
    path.write_bytes(content.replace(b"\x16\xac\x02\x19", b"\x16\xae\x02\x19"))
    with pytest.raises(SourceError, match="its row groups have 150 of its 151 rows"):
        read(path)


def test_a_stream_that_is_cut_off_keeps_what_stands_before(tmp_path: Path) -> None:
    content = write_arrow(tmp_path / "x").read_bytes()
    digest = [hash_part(part) for part in cut_parts([tmp_path / "x"], "rows", 1 << 20)]
    for cut, rows in ((len(content) - 8, 2000), (len(content) - 100, 1800), (len(content) // 2, 900)):
        (tmp_path / "x").write_bytes(content[:cut])
        items = check_parts(tmp_path / "x", "rows", 9000)
        assert reasons(items) == [(f"x#{rows}", "damaged Arrow data")]
        assert good(items) == ROWS[:rows]
        assert digest != [hash_part(part) for part in cut_parts([tmp_path / "x"], "rows", 1 << 20)]
    (tmp_path / "x").write_bytes(content + b"more")
    assert reasons(read(tmp_path / "x")) == [("x#2000", "damaged Arrow data")]
    (tmp_path / "x").write_bytes(content[:40])
    with pytest.raises(SourceError, match="a damaged Arrow file"):
        read(tmp_path / "x")


def test_a_damaged_row_group_costs_no_other(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "x", compression="zstd")
    column = pq.ParquetFile(path).metadata.row_group(2).column(1)
    content = bytearray(path.read_bytes())
    start = column.dictionary_page_offset or column.data_page_offset
    content[start + 4 : start + column.total_compressed_size] = bytes(column.total_compressed_size - 4)
    path.write_bytes(content)
    items = check_parts(path, "rows", 9000)
    assert reasons(items) == [("x#600", "damaged Parquet data")]
    assert good(items) == ROWS[:600] + ROWS[900:]


@example(
    "parquet", 1007, b"\x00\x01"
)  # a column that says it has no values: Arrow gives no rows, and no error
@settings(deadline=None, max_examples=150)
@given(st.sampled_from(KINDS), st.integers(0, 1 << 30), st.binary(min_size=1, max_size=8))
def test_changed_bytes_never_crash(
    tmp_path_factory: pytest.TempPathFactory, kind: str, place: int, put: bytes
) -> None:
    """Where the change lies in the data of a value without a checksum, it is another value; rows stay or are told."""
    path = write_kind(tmp_path_factory.mktemp("changed") / "x", kind, TABLE.slice(0, 40))
    content = bytearray(path.read_bytes())
    place %= len(content)
    content[place : place + len(put)] = put
    path.write_bytes(content)
    try:
        items = check_parts(path, "rows", 1000)
    except SourceError:
        return
    assert len(items) == 40 or any(isinstance(item, BadRow) for item in items) or kind == "file"


# Folders saved by `datasets`


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from datasets import Dataset, DatasetDict

    folder = tmp_path_factory.mktemp("saved")
    whole = Dataset.from_list(ROWS)
    whole.save_to_disk(folder / "one", num_shards=3)
    DatasetDict({"train": whole.select(range(5)), "test": whole.select(range(5, 9))}).save_to_disk(
        folder / "two"
    )
    DatasetDict({"a": whole.select(range(5)), "b": whole.select(range(5))}).save_to_disk(folder / "neither")
    return folder


def rows_of(paths: list[Path], split: str | None = None) -> list[Any]:
    parts = cut_parts(list_files(paths, split), "rows")
    return [row.value for part in parts for row in read_part(part) if isinstance(row, Row)]


def test_a_saved_dataset_is_read(saved: Path) -> None:
    assert rows_of([saved / "one"]) == ROWS
    assert rows_of([saved / "on*"]) == ROWS
    (part, *_) = cut_parts(list_files([saved / "one"]), "rows")
    assert part.name == "data-00000-of-00003.arrow"


def test_a_split_of_a_saved_dict_is_picked(saved: Path) -> None:
    assert rows_of([saved / "two"]) == ROWS[:5]
    assert rows_of([saved / "two"], "test") == ROWS[5:9]


@pytest.mark.parametrize(
    ("name", "split", "message"),
    [
        ("two", "dev", r"two: split: got 'dev'; expected one of train, test; do: name it in `split`"),
        ("neither", None, r"neither: split: none is named; expected one of a, b"),
        ("one", "train", r"one: split: got 'train'; the folder holds one dataset; do: leave"),
        ("one/data-00000-of-00003.arrow", "train", r"split: got 'train', but no path is a folder saved by"),
    ],
)
def test_splits_that_are_not_there_are_explained(
    saved: Path, name: str, split: str | None, message: str
) -> None:
    with pytest.raises(SourceError, match=message):
        list_files([saved / name], split)


def test_a_saved_folder_that_is_incomplete_is_refused(saved: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(saved / "one", tmp_path / "one"))
    (folder / "data-00001-of-00003.arrow").unlink()
    with pytest.raises(SourceError, match=r"one: is incomplete: data-00001-of-00003\.arrow is missing"):
        list_files([folder])
    (folder / "state.json").write_text(json.dumps({"_data_files": "none"}))
    with pytest.raises(
        SourceError, match=r"state\.json: cannot be read: expected a list under '_data_files'"
    ):
        list_files([folder])
    both = Path(shutil.copytree(saved / "two", tmp_path / "two"))
    (both / "train" / "state.json").unlink()
    with pytest.raises(SourceError, match=r"train: is incomplete: state\.json is missing"):
        list_files([both])


def test_real_parquet_files_are_read(shared_data: Path, write: Write) -> None:
    chats = values(check_parts(shared_data / "samples/ultrachat_200k_schema_deita.parquet", "rows", 10))
    assert [list(row) for row in chats] == [["prompt", "prompt_id", "messages"]] * 3
    assert chats[0]["messages"][0]["role"] == "user"
    assert len(values(read(shared_data / "samples/wildchat_flattened.parquet"))) == 90
