"""Shares and epochs by source, against a count over the packs one by one."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import yaml

from data_tools.pack import pack
from data_tools.settings import load_data_settings
from data_tools.shards import Shards, open_shards
from tests.training.harness import environment
from tests.training.small_run import make_small_run
from training.data import PackOrder
from training.monitoring.sources import SourcesSeen

SEED = 5


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Shards:
    """Return shards of two sources, one of which is taken twice, and one with a validation split alone."""
    folder = make_small_run(tmp_path_factory.mktemp("two") / "made").parent
    rows = [
        {"instruction": f"Say {n}.", "input": "", "output": f"It is {n}, and no more."} for n in range(80)
    ]
    (folder / "words.json").write_text(json.dumps(rows))
    settings = {
        "output": "two",
        "tokenizer": "model",
        "seq_len": 64,
        "splits": {"validation": 0.1, "test": 0.0},
        "sources": [
            {"path": "sums.json", "format": "alpaca", "name": "sums"},
            {"path": "words.json", "format": "alpaca", "name": "words", "weight": 2.0},
        ],
    }
    (folder / "two.yaml").write_text(yaml.safe_dump(settings))
    pack(load_data_settings(folder / "two.yaml"))
    return open_shards(folder / "two")


def counted(shards: Shards, consumed: int) -> Counter[str]:
    split = shards.splits["train"]
    order = PackOrder(fingerprint=shards.fingerprint, seed=SEED, num_packs=split.num_packs)
    tokens: Counter[str] = Counter()
    for position in range(consumed):
        read = split.pack(order[position])
        for source, length in zip(read.source_ids.tolist(), read.seq_lengths.tolist(), strict=True):
            tokens[shards.sources[source].name] += length
    return tokens


def test_shares_are_those_of_the_packs_that_were_consumed(shards: Shards) -> None:
    num_packs = shards.splits["train"].num_packs
    seen = SourcesSeen(shards, seed=SEED)
    for consumed in (1, 7, num_packs - 1, num_packs, 2 * num_packs + 5):
        tokens = counted(shards, consumed)
        found = seen.metrics(consumed)
        for name in ("sums", "words"):
            assert found[f"data_by_source/{name}_share"] == pytest.approx(tokens[name] / tokens.total())


def test_a_source_of_weight_two_is_seen_twice_in_an_epoch(shards: Shards) -> None:
    num_packs = shards.splits["train"].num_packs
    found = SourcesSeen(shards, seed=SEED).metrics(3 * num_packs)
    assert found["data_by_source/sums_epochs"] == pytest.approx(3)
    assert found["data_by_source/words_epochs"] == pytest.approx(6)


def test_after_a_resume_the_counts_are_the_same(shards: Shards) -> None:
    whole = SourcesSeen(shards, seed=SEED)
    for consumed in range(4, 200, 4):
        going_on = whole.metrics(consumed)
    assert SourcesSeen(shards, seed=SEED).metrics(consumed) == going_on


def test_before_the_first_step_there_is_nothing_to_show(shards: Shards) -> None:
    assert SourcesSeen(shards, seed=SEED).metrics(0) == {}


def test_shards_without_weights_have_the_epochs_of_the_run(tmp_path: Path) -> None:
    run = make_small_run(tmp_path / "made")
    plain = open_shards(run.parent / "shards")
    found = SourcesSeen(plain, seed=1).metrics(plain.splits["train"].num_packs)
    assert [round(value, 9) for key, value in found.items() if key.endswith("epochs")] == [1.0] * len(
        plain.sources
    )


def test_a_rank_reads_packs_and_sources_without_pandas(shards: Shards) -> None:
    reading = """
import sys
from pathlib import Path
from data_tools.shards import open_shards
from training.monitoring.sources import SourcesSeen

shards = open_shards(Path(sys.argv[1]))
assert shards.splits["train"].pack(0).targets.any() and SourcesSeen(shards, seed=1).metrics(1)
print(*(name for name in sys.modules if name == "pandas"))
"""
    command = [sys.executable, "-c", reading, str(shards.folder)]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
