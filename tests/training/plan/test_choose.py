from pathlib import Path
from typing import Any

import pytest

from data_tools.errors import RunError
from data_tools.shards import open_shards
from tests.conftest import ROOT
from tests.training.small_run import copy_small_run, write_run
from training.config import RunConfig, load_run_config
from training.ds_config import read_ds_file
from training.plan.choose import (
    MARGIN,
    candidates,
    choose,
    largest_micro_packs,
    possible_micro_packs,
    resolve_micro_packs,
    with_micro_packs,
)
from training.plan.plan import GIB, Ranks, Tiers, plan_run

TWO = Ranks(nodes=1, per_node=2, on_gpu=False)
GPUS = Ranks(nodes=1, per_node=2, on_gpu=True)
FILES = [
    ROOT / "ds_configs" / f"{name}.json"
    for name in ("zero3_offload_nvme", "zero3_offload_cpu", "zero3", "zero3_offload_optimizer")
]


def load(folder: Path, **changes: Any) -> RunConfig:
    defaults: dict[str, Any] = {"deepspeed": str(ROOT / "ds_configs" / "zero3.json")}
    return load_run_config(write_run(folder, **defaults | changes))


@pytest.fixture
def folder(small_run: Path, tmp_path: Path) -> Path:
    return copy_small_run(small_run, tmp_path / "run").parent


def needed(config: RunConfig, micro_packs: int) -> int:
    """Return the bytes of the host of two CPU ranks with so many packs in a forward."""
    base, shards = read_ds_file(config.deepspeed), open_shards(config.shards)
    return plan_run(with_micro_packs(config, micro_packs), base, shards, TWO, Tiers()).needed("host")


@pytest.mark.parametrize(
    ("packs_per_step", "sequence_parallel", "expected"),
    [(24, 1, (12, 6, 4, 3, 2, 1)), (24, 2, (24, 12, 8, 6, 4, 3, 2, 1)), (2, 1, (1,)), (3, 1, ())],
)
def test_a_forward_takes_what_shares_out_the_step_evenly(
    packs_per_step: int, sequence_parallel: int, expected: tuple[int, ...], folder: Path
) -> None:
    batch = {"packs_per_step": packs_per_step, "sequence_parallel": sequence_parallel}
    assert possible_micro_packs(load(folder, batch=batch), TWO) == expected


def test_auto_takes_the_largest_that_fits_with_a_tenth_to_spare(folder: Path) -> None:
    config = load(folder, batch={"packs_per_step": 24, "micro_packs": "auto"})
    base, shards = read_ds_file(config.deepspeed), open_shards(config.shards)
    for number in (1, 4, 12):
        there = int(needed(config, number) / MARGIN) + 1
        resolved, why = resolve_micro_packs(config, base, shards, TWO, Tiers(host=there))
        assert resolved.batch.micro_packs == number
        assert why.startswith(
            f"micro_packs: auto takes {number}: {number} packs in a forward need the host of"
        )
    assert resolved.model_dump(exclude={"batch"}) == config.model_dump(exclude={"batch"})
    with pytest.raises(RunError) as caught:
        resolve_micro_packs(config, base, shards, TWO, Tiers(host=needed(config, 1)))
    assert "batch.micro_packs: auto: not one pack fits with a tenth to spare" in str(caught.value)


def test_a_number_stays_and_auto_needs_to_know_the_memory(folder: Path) -> None:
    config = load(folder, batch={"packs_per_step": 24, "micro_packs": 3})
    base, shards = read_ds_file(config.deepspeed), open_shards(config.shards)
    assert resolve_micro_packs(config, base, shards, GPUS, Tiers()) == (config, "")
    config = load(folder, batch={"packs_per_step": 24, "micro_packs": "auto"})
    with pytest.raises(RunError, match=r"auto needs to know the memory of a GPU.*launch\.gpu_memory_gib"):
        resolve_micro_packs(config, base, shards, GPUS, Tiers(host=GIB))
    odd = load(folder, batch={"packs_per_step": 3, "micro_packs": "auto"})
    with pytest.raises(
        RunError, match=r"batch\.packs_per_step: cannot be shared out: got 3 packs for 2 ranks"
    ):
        resolve_micro_packs(odd, base, shards, TWO, Tiers(host=GIB))


def test_the_fastest_that_fits_is_chosen(folder: Path) -> None:
    (folder / "model" / "config.json").write_text(
        '{"model_type": "llama", "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008, '
        '"num_hidden_layers": 32, "num_attention_heads": 32, "max_position_embeddings": 4096}'
    )
    config = load(folder, precision="bf16", batch={"packs_per_step": 4})
    order = [
        "zero3.json",
        "zero3_offload_optimizer.json",
        "zero3_offload_cpu.json",
        "zero3_offload_nvme.json",
    ]
    plenty = Tiers(gpu=1000 * GIB, host=1000 * GIB, nvme=1000 * GIB)
    found = candidates(config, FILES, None, GPUS, plenty, seq_len=4096)
    assert [item.path.name for item in found] == order
    gpu = [item.plan.needed("gpu") for item in found if item.plan is not None]
    host = [item.plan.needed("host") for item in found if item.plan is not None]
    for tiers, name in (
        (plenty, order[0]),
        (Tiers(gpu=gpu[0] - 1, host=1000 * GIB, nvme=1000 * GIB), order[1]),
        (Tiers(gpu=gpu[1] - 1, host=1000 * GIB, nvme=1000 * GIB), order[2]),
        (Tiers(gpu=gpu[1] - 1, host=host[2] - 1, nvme=1000 * GIB), order[3]),
    ):
        chosen = choose(candidates(config, FILES, None, GPUS, tiers, seq_len=4096))
        assert chosen is not None
        assert chosen.path.name == name
    nothing = Tiers(gpu=GIB, host=GIB, nvme=GIB)
    assert choose(candidates(config, FILES, None, GPUS, nothing, seq_len=4096)) is None


def test_what_a_run_cannot_be_had_with_is_said_in_its_row(folder: Path) -> None:
    config = load(folder, tuning={"method": "adalora"}, from_scratch=False)
    shards = open_shards(config.shards)
    found = {item.path.name: item for item in candidates(config, FILES, shards, TWO, Tiers(host=100 * GIB))}
    assert found["zero3_offload_nvme.json"].plan is None
    assert "tuning.method: adalora" in found["zero3_offload_nvme.json"].mistake
    assert found["zero3.json"].plan is not None
    assert found["zero3.json"].largest == 2


def test_no_size_known_means_nothing_is_judged(folder: Path) -> None:
    config = load(folder)
    found = candidates(config, FILES, open_shards(config.shards), TWO, Tiers())
    assert {item.largest for item in found} == {None}
    assert choose(found) is None
    base = read_ds_file(config.deepspeed)
    assert largest_micro_packs(config, base, open_shards(config.shards), TWO, Tiers(host=1)) is None
