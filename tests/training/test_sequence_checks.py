"""Rows that ranks cannot share are refused before anything starts, with the reason."""

import json
from pathlib import Path
from typing import Any

import pytest

from data_tools.errors import RunError, SettingsError
from tests.training.small_run import copy_small_run, make_small_run, write_run
from training.config import RunConfig, accumulation, check_run, load_run_config
from training.ds_config import build_ds_config, read_ds_file
from training.run_folder import changed_keys


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_small_run(tmp_path_factory.mktemp("small") / "made")


def shared_run(folder: Path, size: int, **changes: Any) -> RunConfig:
    batch = {"packs_per_step": 4, "sequence_parallel": size}
    return load_run_config(write_run(folder, **{"batch": batch} | changes))


@pytest.mark.parametrize(
    ("heads", "kv_heads", "size"), [(2, 2, 2), (8, 2, 4), (8, 2, 8), (12, 6, 3), (8, None, 4)]
)
def test_heads_that_can_be_shared_out(
    made: Path, tmp_path: Path, heads: int, kv_heads: int | None, size: int
) -> None:
    give_heads(copy_small_run(made, tmp_path / "a"), heads, kv_heads)
    check_run(shared_run(tmp_path / "a", size))


@pytest.mark.parametrize(
    ("heads", "kv_heads", "size", "expected"),
    [
        (14, 2, 4, "got 4 ranks for 14 heads and 2 of keys and values; expected one of 1, 2, 14"),
        (2, 2, 4, "got 4 ranks for 2 heads and 2 of keys and values; expected one of 1, 2"),
        (12, 6, 4, "got 4 ranks for 12 heads and 6 of keys and values; expected one of 1, 2, 3, 6, 12"),
    ],
)
def test_heads_that_cannot(
    made: Path, tmp_path: Path, heads: int, kv_heads: int, size: int, expected: str
) -> None:
    give_heads(copy_small_run(made, tmp_path / "a"), heads, kv_heads)
    with pytest.raises(RunError) as caught:
        check_run(shared_run(tmp_path / "a", size))
    assert f"batch.sequence_parallel: the model's attention heads cannot be shared out: {expected}" in str(
        caught.value
    )


def give_heads(run_yaml: Path, heads: int, kv_heads: int | None) -> None:
    path = run_yaml.parent / "model" / "config.json"
    changes = {
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "hidden_size": 4 * heads,
        "intermediate_size": 64,
    }
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tuning": {"method": "prompt"}}, "got 2 with tuning.method prompt; expected 1, or another method"),
        ({"tuning": {"method": "prefix"}}, "got 2 with tuning.method prefix; expected 1, or another method"),
        ({"loss": {"neftune": 5.0}}, "got 2 with loss.neftune; expected 1, or take loss.neftune out"),
        ({"loss": {"adversarial": {"method": "fgm"}}}, "got 2 with loss.adversarial; expected 1"),
        ({"loss": {"adversarial": {"method": "freelb"}}}, "got 2 with loss.adversarial; expected 1"),
    ],
)
def test_what_needs_whole_documents_on_one_rank(
    made: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    folder = copy_small_run(made, tmp_path / "a").parent
    with pytest.raises(RunError) as caught:
        check_run(shared_run(folder, 2, **changes))
    assert "batch.sequence_parallel: " in str(caught.value)
    assert message in str(caught.value)


def test_ranks_that_make_no_whole_groups(made: Path, tmp_path: Path) -> None:
    config = shared_run(copy_small_run(made, tmp_path / "a").parent, 2)
    with pytest.raises(RunError) as caught:
        build_ds_config(
            config, world_size=3, run_folder=tmp_path, base=read_ds_file(config.deepspeed), pin_memory=False
        )
    assert str(caught.value) == (
        "batch.sequence_parallel: the ranks cannot be grouped: got 3 ranks, 2 to a row; expected a multiple of 2 ranks"
    )


def test_a_step_is_shared_out_to_groups(tmp_path: Path) -> None:
    config = shared_run(tmp_path, 2, batch={"packs_per_step": 12, "micro_packs": 2, "sequence_parallel": 2})
    assert [accumulation(config, size) for size in (2, 4, 6, 12)] == [6, 3, 2, 1]
    with pytest.raises(RunError) as caught:
        accumulation(config, 8)
    assert "got 12 packs for 4 groups of 2 ranks x micro_packs 2; expected a multiple of 8" in str(
        caught.value
    )
    assert "by 2, 4, 6, 12 ranks" in str(caught.value)


def test_it_is_a_whole_number_from_1_and_may_change(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"batch\.sequence_parallel: got 0; expected greater than 0"):
        shared_run(tmp_path, 0)
    assert not list(changed_keys(shared_run(tmp_path, 2), shared_run(tmp_path, 1)))
