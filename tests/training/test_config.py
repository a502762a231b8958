"""run.yaml: the typed run, what follows from its numbers, and what can be known to be wrong without torch."""

import json
from pathlib import Path
from typing import Any

import pytest

from data_tools.errors import RunError, SettingsError, ShardError
from tests.training.small_run import copy_small_run, make_small_run, write_run
from training.config import (
    RunConfig,
    accumulation,
    check_run,
    derive_steps,
    evaluation_splits,
    load_run_config,
    read_run_config,
)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_small_run(tmp_path_factory.mktemp("small") / "made")


def config_of(folder: Path, *overrides: str, **changes: Any) -> RunConfig:
    folder.mkdir(exist_ok=True)
    return load_run_config(write_run(folder, **changes), overrides)


def test_paths_are_anchored_and_the_written_config_reads_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = config_of(tmp_path / "a", "model=other", optim={"lr": 3e-7, "betas": [0.8, 0.99]})
    assert config.model == tmp_path / "other"
    assert config.run_folder == tmp_path / "a/runs/small"
    assert config.optim.betas == (0.8, 0.99)
    config.write(tmp_path / "config.yaml")
    monkeypatch.chdir("/")
    assert read_run_config(tmp_path / "config.yaml") == config


def test_a_left_out_runs_folder_lies_beside_the_file(tmp_path: Path) -> None:
    assert config_of(tmp_path / "a", runs=None).runs == tmp_path / "a/runs"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": 2}, "steps: epochs and steps are both set; expected exactly one of them"),
        ({"steps": None}, "steps: neither epochs nor steps is set; expected exactly one of them"),
        ({"lr": 1e-3}, "lr: unknown key; did you mean 'optim.lr'?"),
        ({"slurm": {"time": 86400}}, 'slurm.time: got 86400; expected a time limit in quotes: "24:00:00"'),
        ({"optim": {"lr": 1e-3, "warmup": 1.5}}, "optim.warmup: got 1.5; expected a share below 1"),
        ({"name": "a/b"}, "name: got 'a/b'; expected text that matches"),
        ({"precision": "fp8"}, "precision: got 'fp8'; expected 'bf16', 'fp16' or 'fp32'"),
        ({"batch": {"packs_per_step": 0}}, "batch.packs_per_step: got 0; expected greater than 0"),
        ({"batch": {"packs_per_step": 10**12}}, "expected less than or equal to 1000000"),
        ({"seed": 2**64}, "seed: got 18446744073709551616; expected less than"),
        ({"optim": {"lr": 1e-3, "betas": [0.9, 0.95, 0.99]}}, "expected a list of at most 2 items"),
        ({"watchdog": 10**24}, "expected less than or equal to 604800"),
        (
            {"tuning": {"method": "lora", "targets": []}},
            "tuning.targets: got []; expected 'all-linear' or a list of",
        ),
        (
            {"batch": {"packs_per_step": 4, "micro_packs": "all"}},
            "micro_packs: got 'all'; expected auto, or a whole number above 0",
        ),
    ],
)
def test_mistakes(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError) as caught:
        config_of(tmp_path, **changes)
    assert message in str(caught.value)


def test_mistakes_between_keys_do_not_wait_for_the_others(tmp_path: Path) -> None:
    with pytest.raises(SettingsError) as caught:
        config_of(tmp_path, steps=None, precison="fp32", seed=-1)
    lines = str(caught.value).splitlines()
    assert len(lines) == 3
    assert any("precison: unknown key; did you mean 'precision'?" in line for line in lines)


def test_steps_of_epochs(tmp_path: Path) -> None:
    epochs = config_of(tmp_path, steps=None, epochs=2)
    assert derive_steps(epochs, 9) == 5  # 18 packs, 4 a step
    more = config_of(tmp_path, steps=None, epochs=4)
    assert derive_steps(more, 9, steps_done=5, consumed=18) == 10
    assert derive_steps(config_of(tmp_path, steps=7), 9) == 7
    with pytest.raises(RunError, match=r"nothing to train on: got 0\.1 epochs of 3 packs"):
        derive_steps(config_of(tmp_path, steps=None, epochs=0.1), 3)


def test_accumulation_names_the_numbers_and_the_ranks_that_would_do(tmp_path: Path) -> None:
    config = config_of(tmp_path, batch={"packs_per_step": 24, "micro_packs": 2})
    assert [accumulation(config, size) for size in (1, 2, 3, 12)] == [12, 6, 4, 1]
    with pytest.raises(RunError) as caught:
        accumulation(config, 5)
    assert "got 24 packs for 5 ranks x micro_packs 2; expected a multiple of 10" in str(caught.value)
    assert "1, 2, 3, 4, 6, 12 ranks" in str(caught.value)


def test_more_ranks_than_packs(tmp_path: Path) -> None:
    with pytest.raises(RunError) as caught:
        accumulation(config_of(tmp_path, batch={"packs_per_step": 4}), 8)
    assert str(caught.value) == (
        "batch.packs_per_step: there are more ranks than packs: got 4 packs for 8 ranks x micro_packs 1; expected a "
        "multiple of 8; this step can be shared by 1, 2, 4 ranks"
    )
    with pytest.raises(
        RunError, match="with micro_packs 8 no number of ranks can share it; set micro_packs: 1"
    ):
        accumulation(config_of(tmp_path, batch={"packs_per_step": 4, "micro_packs": 8}), 2)


def test_a_good_run_gives_its_shards(made: Path) -> None:
    config = load_run_config(made)
    shards = check_run(config)
    assert shards.seq_len == 128
    assert evaluation_splits(config, shards) == ("validation",)


def test_a_split_that_is_named_and_absent(made: Path) -> None:
    config = load_run_config(made, ["evaluate.splits=[validaton]"])
    with pytest.raises(RunError, match=r"evaluate\.splits: no such split .* did you mean 'validation'"):
        check_run(config)


def test_vocabulary_and_positions_too_small_are_said_at_once(made: Path, tmp_path: Path) -> None:
    run = copy_small_run(made, tmp_path / "copy")
    path = run.parent / "model/config.json"
    model = json.loads(path.read_text())
    size = model["vocab_size"]
    path.write_text(json.dumps(model | {"vocab_size": size - 1, "max_position_embeddings": 127}))
    with pytest.raises(RunError) as caught:
        check_run(load_run_config(run))
    vocabulary, positions = str(caught.value).splitlines()
    assert f"vocabulary is larger than the model's: got {size} ids" in vocabulary
    assert f"expected at most {size - 1}" in vocabulary
    assert "seq_len is beyond the model's positions: got 128" in positions
    assert "expected at most 127" in positions


def test_numbers_of_heads_that_do_not_divide(made: Path, tmp_path: Path) -> None:
    run = copy_small_run(made, tmp_path / "copy")
    path = run.parent / "model/config.json"
    model = json.loads(path.read_text())
    path.write_text(json.dumps(model | {"num_attention_heads": 3, "num_key_value_heads": 2}))
    with pytest.raises(RunError) as caught:
        check_run(load_run_config(run))
    width, shared = str(caught.value).splitlines()
    assert "num_attention_heads: the width cannot be shared out: got 3 heads of hidden_size 32" in width
    assert "num_key_value_heads: the heads cannot share them: got 2 for 3 heads" in shared
    with_width = {"num_attention_heads": 3, "num_key_value_heads": 3, "head_dim": 16}
    path.write_text(json.dumps(model | with_width))
    check_run(load_run_config(run))


def test_shards_that_are_not_sealed(made: Path, tmp_path: Path) -> None:
    run = copy_small_run(made, tmp_path / "copy")
    (run.parent / "shards/index.json").unlink()
    with pytest.raises(ShardError, match="not sealed"):
        check_run(load_run_config(run))
    with pytest.raises(ShardError, match="no such shard folder"):
        check_run(load_run_config(run, [f"shards={tmp_path}/nowhere"]))


def test_models_that_cannot_be_used(made: Path, tmp_path: Path) -> None:
    run = copy_small_run(made, tmp_path / "copy")
    with pytest.raises(RunError, match="no such folder; expected a Hugging Face model folder"):
        check_run(load_run_config(run, [f"model={tmp_path}/nowhere"]))
    with pytest.raises(RunError, match=r"holds no \*.safetensors; expected weights, or from_scratch: true"):
        check_run(load_run_config(run, ["from_scratch=false"]))
    path = run.parent / "model/config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_type": "gemma2"}))
    with pytest.raises(RunError, match="got 'gemma2'; expected one of llama, mistral, qwen2, qwen3"):
        check_run(load_run_config(run))
    path.write_text("{")
    with pytest.raises(RunError, match=r"config\.json: cannot be read"):
        check_run(load_run_config(run))
