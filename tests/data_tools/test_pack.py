"""From settings to sealed shards: the same bytes anywhere, every choice of the plan, replacing, refusing."""

import filecmp
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from data_tools.errors import SettingsError, SourceError
from data_tools.pack import Packed, pack
from data_tools.settings import load_data_settings
from data_tools.shard_index import Index, read_index
from data_tools.shards import open_shards
from data_tools.verify import verify
from tests.data_tools.small_data import alpaca_rows, dialogue_rows, write_corpus, write_settings


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    write_corpus(tmp_path)
    return tmp_path


def run(corpus: Path, *overrides: str, workers: int = 1, dry_run: bool = False) -> Packed:
    return pack(load_data_settings(corpus / "data.yaml", overrides), workers=workers, dry_run=dry_run)


def rows_of(folder: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(folder / "rows.parquet").to_pylist()
    return rows


def files_of(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_the_same_bytes_with_two_workers_and_in_another_folder(
    corpus: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    other = tmp_path_factory.mktemp("elsewhere") / "deep"
    write_corpus(other)
    run(corpus)
    run(other, workers=2)
    names = files_of(corpus / "shards")
    assert names == files_of(other / "shards")
    assert filecmp.cmpfiles(corpus / "shards", other / "shards", names, shallow=False) == (names, [], [])


def test_a_split_of_several_files(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = run(corpus).index
    monkeypatch.setattr("data_tools.shards.TOKENS_PER_FILE", 2_000)
    monkeypatch.setattr("data_tools.shards.TOKENS_PER_BATCH", 500)
    several = run(corpus, f"output={corpus / 'several'}").index
    assert several.splits["train"].tokens == one.splits["train"].tokens
    assert len(several.splits["train"].files) > 3
    assert verify(corpus / "several").ok
    whole, cut = (open_shards(corpus / name).splits["train"] for name in ("shards", "several"))
    for number in range(whole.num_packs):
        assert np.array_equal(whole.pack(number).input_ids, cut.pack(number).input_ids)


def test_every_token_of_a_conversation_lies_in_its_pack(corpus: Path) -> None:
    """Decode every document of every pack and find it among the texts that were put in."""
    run(corpus, "seq_len=512")
    shards = open_shards(corpus / "shards")
    rows = rows_of(corpus / "shards")
    seen: Counter[int] = Counter()
    for split in shards.splits.values():
        for number in range(split.num_packs):
            packed = split.pack(number)
            ends = np.cumsum(packed.seq_lengths)
            for i, row_id in enumerate(packed.row_ids.tolist()):
                begin, end = int(ends[i] - packed.seq_lengths[i]), int(ends[i])
                row = rows[row_id]
                assert row["split"] == split.name
                assert shards.sources[packed.source_ids[i]].name == row["source"]
                assert shards.tasks[packed.task_ids[i]].name == row["task"]
                assert end - begin == row["tokens"]
                assert packed.targets[begin:end].sum() == row["target_tokens"]
                seen[row_id] += 1
    assert seen == {row["row_id"]: row["copies"] for row in rows if row["copies"]}


def test_the_account_of_a_source(corpus: Path) -> None:
    index = run(corpus).index
    tasks, alpaca, chats = index.sources
    assert (alpaca.rows, alpaca.conversations, alpaca.kept, alpaca.duplicates) == (62, 62, 60, 1)
    assert sum(alpaca.rejected.values()) == 1
    assert (tasks.rows, tasks.conversations, tasks.kept) == (3, 60, 60)
    assert (chats.family, tasks.family) == ("multi_turn", "multi_task")
    rejects = [json.loads(line) for line in (corpus / "shards" / "rejects.jsonl").read_text().splitlines()]
    assert [(line["source"], line["origin"]) for line in rejects] == [("alpaca", "alpaca.json#61")]
    assert {"reason", "detail"} < rejects[0].keys()
    duplicates = [row["origin"] for row in rows_of(corpus / "shards") if row["fate"] == "duplicate"]
    assert duplicates == ["alpaca.json#60"]  # the first one is kept


def test_nothing_in_the_index_tells_of_paths(corpus: Path) -> None:
    run(corpus)
    text = (corpus / "shards" / "index.json").read_text()
    assert str(corpus) not in text
    assert read_index(corpus / "shards").settings["sources"][1]["path"] == ["alpaca.json"]


# The plan's choices.


def test_without_dedup_duplicates_are_kept(corpus: Path) -> None:
    assert run(corpus, "dedup=none").index.sources[1].kept == 61


def test_unseen_tasks_are_held_out_whole(corpus: Path) -> None:
    index = run(corpus, "splits.unseen_tasks=[task002*]").index
    assert index.splits["unseen_tasks"].documents == 20
    splits = {row["split"] for row in rows_of(corpus / "shards") if row["task"] == "task002_person"}
    assert splits == {"unseen_tasks"}
    assert verify(corpus / "shards").ok


def test_an_unseen_task_that_is_not_there(corpus: Path) -> None:
    with pytest.raises(SettingsError, match="did you mean 'task002_person'"):
        run(corpus, "splits.unseen_tasks=[task02_person]")
    assert not (corpus / "shards" / "index.json").exists()


def test_max_per_task_and_weights(corpus: Path) -> None:
    index = run(
        corpus, "sources.0.max_per_task=5", "sources.1.weight=2.5", "sources.2.weight=0.5", "splits.test=0"
    ).index
    tasks, alpaca, chats = index.sources
    assert tasks.kept == 15
    assert tasks.left_out == {"more than max_per_task": 45}
    copies = Counter(row["copies"] for row in rows_of(corpus / "shards") if row["source"] == "alpaca")
    assert set(copies) <= {0, 1, 2, 3}
    num_train = copies[2] + copies[3]
    assert alpaca.documents == copies[1] + round(2.5 * num_train)
    assert chats.left_out["weight below 1"] == 60 - chats.kept
    report = verify(corpus / "shards")
    assert report.ok


@pytest.mark.parametrize("how", ["split", "truncate", "drop"])
def test_over_long_documents(corpus: Path, how: str) -> None:
    rows = dialogue_rows(30, num_exchanges=12)
    (corpus / "raw" / "chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    index = run(corpus, "seq_len=128", f"overlong={how}").index
    chats = index.sources[2]
    assert verify(corpus / "shards").ok
    if how == "split":
        assert chats.kept == 30
        assert chats.documents > chats.kept
        assert chats.repeated_tokens > 0
        assert chats.cut_target_tokens == 0
    elif how == "truncate":
        assert chats.documents == chats.kept
        assert chats.cut_tokens > 0
        assert chats.repeated_tokens == 0
    else:
        assert chats.left_out["over-long"] > 0
        assert chats.cut_tokens == 0


def test_the_pieces_of_a_dialogue_begin_with_its_system_turn(corpus: Path) -> None:
    rows = dialogue_rows(4, num_exchanges=12)
    (corpus / "raw" / "chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run(corpus, "seq_len=128", "splits.validation=0", "splits.test=0")
    shards = open_shards(corpus / "shards")
    split = shards.splits["train"]
    beginnings: dict[int, set[bytes]] = {}
    for number in range(split.num_packs):
        packed = split.pack(number)
        starts = np.cumsum(packed.seq_lengths) - packed.seq_lengths
        for start, row, source in zip(starts, packed.row_ids, packed.source_ids, strict=True):
            if source == 2:
                beginnings.setdefault(int(row), set()).add(packed.input_ids[start : start + 12].tobytes())
    assert len(beginnings) == 4
    assert all(len(of_row) == 1 for of_row in beginnings.values())


def test_a_group_stays_in_one_split(corpus: Path) -> None:
    rows = dialogue_rows(200)
    for i, row in enumerate(rows):
        row["id"] = f"tree{i // 4:03}_{i % 4}"  # pieces of one long dialogue
    (corpus / "raw" / "chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    sources = [{"path": "raw/chats.jsonl", "format": "sharegpt"}]
    write_settings(corpus, sources=sources, splits={"validation": 0.3, "test": 0.2})
    run(corpus)
    splits = [row["split"] for row in rows_of(corpus / "shards")]
    assert set(splits) == {"train", "validation", "test"}
    for first in range(0, 200, 4):
        assert len(set(splits[first : first + 4])) == 1


# Replacing and refusing.


def test_packing_again_does_nothing(corpus: Path) -> None:
    first = run(corpus)
    times = {name: (corpus / "shards" / name).stat().st_mtime_ns for name in files_of(corpus / "shards")}
    second = run(corpus)
    assert second.plan is None
    assert second.index == first.index
    assert times == {
        name: (corpus / "shards" / name).stat().st_mtime_ns for name in files_of(corpus / "shards")
    }


def test_packing_with_other_settings_replaces_the_folder(corpus: Path) -> None:
    first = run(corpus, "splits.unseen_tasks=[task001*]").index
    second = run(corpus, "seq_len=128").index
    assert first.fingerprint != second.fingerprint
    assert not list((corpus / "shards").glob("unseen_tasks-*"))
    assert not list((corpus / "shards").glob("*.partial"))
    assert verify(corpus / "shards").ok


def test_a_damaged_folder_is_made_again(corpus: Path) -> None:
    run(corpus)
    (corpus / "shards" / "train-00000.arrow").write_bytes(b"")
    assert run(corpus).plan is not None
    assert verify(corpus / "shards").ok


def test_other_files_in_the_folder_are_left_alone(corpus: Path) -> None:
    (corpus / "shards").mkdir()
    (corpus / "shards" / "notes.txt").write_text("mine")
    run(corpus)
    assert (corpus / "shards" / "notes.txt").read_text() == "mine"


def test_a_dry_run_plans_the_same_and_writes_no_shards(corpus: Path) -> None:
    planned = run(corpus, dry_run=True).index
    assert files_of(corpus / "shards") == [
        name for name in files_of(corpus / "shards") if name.startswith("parts/")
    ]
    packed = run(corpus).index
    assert planned.splits == packed.splits
    assert planned.sources == packed.sources


def spoil(corpus: Path, *, count: int) -> None:
    rows: list[dict[str, Any]] = list(alpaca_rows(20))
    rows[:count] = [{"instruction": "no output"}] * count
    (corpus / "raw" / "alpaca.json").write_text(json.dumps(rows))


def test_too_many_rejects_end_with_the_report_kept(corpus: Path) -> None:
    run(corpus)
    spoil(corpus, count=5)
    with pytest.raises(SourceError, match=r"source alpaca: .* got 5 of 20 \(25\.0%\), .* at most 5\.0%"):
        run(corpus)
    lines = (corpus / "shards" / "rejects.jsonl").read_text().splitlines()
    assert len(lines) == 5
    # The old shards are not what data.yaml asks for any more, so nothing vouches for them.
    assert not (corpus / "shards" / "index.json").exists()
    assert run(corpus, "max_reject_rate=0.25").index.sources[1].kept == 15


def test_a_dry_run_with_too_many_rejects_leaves_the_folder(corpus: Path) -> None:
    run(corpus)
    spoil(corpus, count=5)
    with pytest.raises(SourceError, match="too many conversations were rejected"):
        run(corpus, dry_run=True)
    assert (corpus / "shards" / "index.json").exists()


def test_a_source_without_rows(corpus: Path) -> None:
    (corpus / "raw" / "alpaca.json").write_text("[]")
    with pytest.raises(SourceError, match="source alpaca: no rows"):
        run(corpus)


def test_nothing_left_to_train_on(corpus: Path) -> None:
    with pytest.raises(SourceError, match="nothing is left to train on: got 182 conversations"):
        run(corpus, "seq_len=8", "overlong=drop")


# Real rows.


def real_settings(folder: Path, data: Path, tokenizer: str, **changes: Any) -> Path:
    samples = data / "samples"
    sources = [
        {"path": str(samples / "super_natural_instructions/*.json"), "format": "super_natural_instructions"},
        {"path": str(samples / "alpaca_data.json"), "format": "alpaca"},
        {"path": str(samples / "oasst1_trees.jsonl"), "format": "oasst_tree"},
        {"path": str(samples / "vicuna_sharegpt_dummy.json"), "format": "sharegpt"},
        {"path": str(samples / "openai_messages/chat_train_gsm8k.jsonl"), "format": "messages"},
    ]
    return write_settings(
        folder,
        tokenizer=str(data / "tokenizers" / tokenizer),
        sources=sources,
        **{"seq_len": 1024, **changes},
    )


def fill(index: Index) -> float:
    tokens = sum(sum(split.tokens) for split in index.splits.values())
    return tokens / (index.seq_len * sum(len(split.tokens) for split in index.splits.values()))


@pytest.mark.parametrize(
    ("tokenizer", "changes"),
    [
        ("llama2", {"chat_template": "llama2"}),
        ("mpt-chat", {}),
        ("olmo-dolma2", {"chat_template": "chatml", "eos_token": "<|im_end|>"}),
    ],
)
def test_real_rows_fill_their_packs(
    shared_data: Path, tmp_path: Path, tokenizer: str, changes: dict[str, Any]
) -> None:
    splits = {"validation": 0.01, "test": 0.0}
    path = real_settings(tmp_path, shared_data, tokenizer, splits=splits, **changes)
    index = pack(load_data_settings(path)).index
    assert fill(index) >= 0.97
    assert sum(sum(source.rejected.values()) for source in index.sources) == 0
    report = verify(tmp_path / "shards")
    assert report.problems == ()


def test_a_damaged_file_is_refused_whatever_few_rejects_it_makes(corpus: Path) -> None:
    path = corpus / "raw" / "alpaca.json"
    path.write_text(path.read_text().rstrip().rstrip("]"))
    with pytest.raises(SourceError, match="source alpaca: a file is damaged: array is not closed"):
        run(corpus, "max_reject_rate=0.9")
    assert run(corpus, "max_reject_rate=1").index.sources[1].kept > 0


@pytest.mark.parametrize("place", ["inside", "itself", "foreign", "file"])
def test_an_output_that_is_not_ours_is_left_as_it_is(corpus: Path, place: str) -> None:
    tokenizer = load_data_settings(corpus / "data.yaml").tokenizer
    foreign = corpus / "foreign"
    if place == "file":
        foreign.write_text("mine")
    else:
        (foreign / "tokenizer").mkdir(parents=True)
        (foreign / "tokenizer" / "mine.txt").write_text("mine")
    output = {"inside": tokenizer.parent, "itself": tokenizer}.get(place, foreign)
    before = files_of(output)
    with pytest.raises(SettingsError, match="output: "):
        run(corpus, f"output={output}")
    assert files_of(output) == before


def test_a_licence_is_noted_without_packing_again_and_changes_no_fingerprint(corpus: Path) -> None:
    before = run(corpus).index
    index_path = corpus / "shards" / "index.json"
    older = json.loads(index_path.read_text())
    for source in older["sources"]:
        assert source.pop("license") is None
    index_path.write_text(json.dumps(older))
    assert read_index(corpus / "shards") == before  # an index from before there were licences

    stamps = {path: path.stat().st_mtime_ns for path in (corpus / "shards").rglob("*.*")}
    noted = run(corpus, "sources.0.license=Apache-2.0")
    assert noted.plan is None
    assert read_index(corpus / "shards") == noted.index
    assert [source.license for source in noted.index.sources][:2] == ["Apache-2.0", None]
    assert (noted.index.fingerprint, noted.index.recipe) == (before.fingerprint, before.recipe)
    changed = {path for path, stamp in stamps.items() if path.stat().st_mtime_ns != stamp}
    assert {path.name for path in changed if path.is_file()} == {"index.json"}
    assert verify(corpus / "shards").ok

    anew = run(corpus, "sources.0.license=Apache-2.0", f"output={corpus / 'anew'}").index
    assert anew == noted.index
    assert "license" not in json.dumps(anew.settings)
    with pytest.raises(SettingsError, match=r"sources\.0\.license: .*expected"):
        run(corpus, "sources.0.license=''")
