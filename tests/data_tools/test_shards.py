"""The shard format: what is written is read back, and every damage is told by name."""

import json
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_tools.errors import ShardError
from data_tools.fingerprints import ContentHash
from data_tools.shard_index import (
    read_index,
    unseal,
)
from data_tools.shards import PackBatch, ShardFile, id_type, open_shards, write_shard
from data_tools.verify import verify

documents = st.lists(
    st.lists(
        st.lists(st.tuples(st.integers(0, 99), st.booleans()), min_size=1, max_size=6), min_size=1, max_size=4
    ),
    min_size=1,
    max_size=8,
)


def to_batch(packs: list[list[list[tuple[int, bool]]]]) -> PackBatch:
    flat = [token for packed in packs for document in packed for token in document]
    num_documents = sum(map(len, packs))
    return PackBatch(
        tokens=np.array([sum(map(len, packed)) for packed in packs], np.int32),
        documents=np.array([len(packed) for packed in packs], np.int32),
        input_ids=np.array([token for token, _ in flat], np.uint16),
        targets=np.array([target for _, target in flat], bool),
        seq_lengths=np.array([len(document) for packed in packs for document in packed], np.int32),
        source_ids=np.arange(num_documents, dtype=np.uint16),
        task_ids=np.arange(num_documents, dtype=np.uint32) + np.uint32(1),
        row_ids=np.arange(num_documents, dtype=np.uint64) + np.uint64(2),
    )


@given(st.lists(documents, min_size=1, max_size=3))
def test_packs_are_read_as_they_were_written(
    tmp_path_factory: pytest.TempPathFactory, batches: list[list[list[list[tuple[int, bool]]]]]
) -> None:
    path = tmp_path_factory.mktemp("file") / "train-00000.arrow"
    info = write_shard(path, map(to_batch, batches), vocab_size=100)
    file = ShardFile(path, vocab_size=100)
    assert info.bytes == path.stat().st_size
    packs = [packed for batch in batches for packed in batch]
    assert file.num_packs == len(packs)
    for number, packed in enumerate(packs):
        found = file.pack(number)
        flat = [token for document in packed for token in document]
        assert list(zip(found.input_ids.tolist(), found.targets.tolist(), strict=True)) == flat
        assert found.seq_lengths.tolist() == [len(document) for document in packed]
        assert len(found.source_ids) == len(found.task_ids) == len(found.row_ids) == len(packed)
        assert not found.input_ids.flags.writeable  # a view of the file


def test_ids_take_two_bytes_up_to_a_vocabulary_of_65536() -> None:
    assert (id_type(2**16), id_type(2**16 + 1)) == (np.dtype(np.uint16), np.dtype(np.uint32))


def test_content_hash_does_not_depend_on_batches() -> None:
    table = pa.table({"text": ["a", "", "ab"], "list": [[1, 2], [], [3]], "flag": [True, False, True]})
    whole, single = ContentHash(), ContentHash()
    for batch in table.to_batches():
        whole.add(batch)
    for batch in table.to_batches(max_chunksize=1):
        single.add(batch)
    assert whole.hexdigest() == single.hexdigest()
    moved = ContentHash()
    other = pa.table({"text": ["a", "a", "b"], "list": [[1], [2], [3]], "flag": [True, False, True]})
    moved.add(other.to_batches()[0])
    assert moved.hexdigest() != whole.hexdigest()


def test_the_reader_agrees_with_the_index(sealed: Path) -> None:
    shards = open_shards(sealed)
    assert set(shards.splits) == {"train", "validation", "test"}
    assert [source.name for source in shards.sources] == ["tasks", "alpaca", "chats"]
    assert {task.name for task in shards.tasks} == {"task001_place", "task002_person", "task003_hour", ""}
    assert shards.vocab_size <= 400
    assert (shards.tokenizer_folder / "tokenizer.json").is_file()
    for split in shards.splits.values():
        packs = [split.pack(number) for number in range(split.num_packs)]
        assert [len(p.input_ids) for p in packs] == split.tokens.tolist()
        assert [int(p.targets.sum()) for p in packs] == split.target_tokens.tolist()
        assert sum(len(p.seq_lengths) for p in packs) == split.num_documents
        assert max(len(p.input_ids) for p in packs) <= shards.seq_len
        with pytest.raises(IndexError):
            split.pack(split.num_packs)


def test_the_datasets_library_reads_a_shard(sealed: Path, tmp_path: Path) -> None:
    files = {"train": str(sealed / "train-*.arrow")}
    loaded = datasets.load_dataset("arrow", data_files=files, split="train", cache_dir=str(tmp_path))
    split = open_shards(sealed).splits["train"]
    assert len(loaded) == split.num_packs
    first, expected = loaded[0], split.pack(0)
    assert first["input_ids"] == expected.input_ids.tolist()
    assert first["assistant_masks"] == expected.targets.tolist()
    assert first["seq_lengths"] == expected.seq_lengths.tolist()


# What is wrong with a folder as such.


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ShardError, match="no such shard folder"):
        open_shards(tmp_path / "none")


def test_a_folder_that_is_not_sealed(copy: Path) -> None:
    unseal(copy)
    with pytest.raises(ShardError, match="the folder is not sealed"):
        open_shards(copy)
    with pytest.raises(ShardError, match="the folder is not sealed"):
        verify(copy)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not readable as JSON"),
        ("[]", "wrong format or version"),
        ('{"format": "shardtune-shards", "version": 99}', "wrong format or version"),
        ('{"format": "shardtune-shards", "version": 1}', "damaged: kind: Field required"),
    ],
)
def test_an_index_that_cannot_be_read(copy: Path, text: str, message: str) -> None:
    (copy / "index.json").write_text(text)
    with pytest.raises(ShardError, match=message):
        open_shards(copy)
    assert [problem.file for problem in verify(copy).problems] == ["index.json"]


def test_an_unknown_key_in_the_index(copy: Path) -> None:
    value = json.loads((copy / "index.json").read_text())
    (copy / "index.json").write_text(json.dumps({**value, "extra": 1}))
    with pytest.raises(ShardError, match="extra"):
        read_index(copy)


def test_a_file_of_another_size_is_found_on_opening(copy: Path) -> None:
    with (copy / "rows.parquet").open("ab") as file:
        file.write(b"x")
    with pytest.raises(ShardError, match=r"rows\.parquet: damaged: got \d+ bytes; expected \d+ bytes"):
        open_shards(copy)


def test_a_file_that_is_missing_is_found_on_opening(copy: Path) -> None:
    (copy / "train-00000.arrow").unlink()
    with pytest.raises(ShardError, match=r"train-00000\.arrow: damaged: got no such file"):
        open_shards(copy)
    assert {problem.file for problem in verify(copy).problems} == {"train-00000.arrow"}
