from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_tools.errors import RunError
from data_tools.shards import open_shards
from tests.conftest import ROOT
from tests.training.small_run import copy_small_run, write_run
from training.config import RunConfig, load_run_config
from training.ds_config import read_ds_file
from training.plan.heap import free_in_heap, heap_size
from training.plan.job import Memory, make_job
from training.plan.moments import fill_bucket, gather, moments
from training.plan.plan import GIB, Plan, Ranks, Tiers, flops, plan_run

LLAMA_7B = (
    '{"model_type": "llama", "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008, '
    '"num_hidden_layers": 32, "num_attention_heads": 32, "max_position_embeddings": 4096}'
)
WEIGHTS_7B = 6_738_415_616  # as its paper and its files have it


def load(folder: Path, ds_config: str = "zero3.json", **changes: Any) -> RunConfig:
    path = write_run(folder, deepspeed=str(ROOT / "ds_configs" / ds_config), **changes)
    return load_run_config(path)


def plan_7b(folder: Path, ds_config: str, **changes: Any) -> Plan:
    """Plan a Llama of 7 billion weights on 8 GPUs, with packs of 4096 tokens that are not there yet."""
    (folder / "model" / "config.json").write_text(LLAMA_7B)
    defaults: dict[str, Any] = {"precision": "bf16", "batch": {"packs_per_step": 64}, "steps": 1000}
    config = load(folder, ds_config, **defaults | changes)
    base = read_ds_file(config.deepspeed)
    return plan_run(config, base, None, Ranks(1, 8, on_gpu=True), Tiers(gpu=80 * GIB), seq_len=4096)


def by_kind(plan: Plan, tier: str, kind: str) -> int:
    return sum(need.bytes for need in plan.needs if need.tier == tier and need.kind == kind)


@pytest.fixture
def folder(small_run: Path, tmp_path: Path) -> Path:
    return copy_small_run(small_run, tmp_path / "run").parent


def test_the_states_of_a_model_of_known_size_are_the_known_bytes(folder: Path) -> None:
    plan = plan_7b(folder, "zero3.json")
    assert plan.parameters == plan.trained == WEIGHTS_7B
    assert by_kind(plan, "gpu", "gradients") == pytest.approx(4 * WEIGHTS_7B / 8)
    assert by_kind(plan, "gpu", "optimizer") == pytest.approx((4 + 8) * WEIGHTS_7B / 8)
    small = 65 * 4096 * 2  # of the norms, which are whole on every rank, too
    assert by_kind(plan, "gpu", "weights") == pytest.approx(2 * WEIGHTS_7B / 8 + small)
    assert plan.checkpoint_bytes == 12 * WEIGHTS_7B
    assert plan.save_seconds(2e9) == pytest.approx(6 * WEIGHTS_7B / 1e9)


def test_offload_moves_what_it_says_from_the_gpu_to_the_host_and_the_disk(folder: Path) -> None:
    on_gpu = plan_7b(folder, "zero3.json")
    optimizer = plan_7b(folder, "zero3_offload_optimizer.json")
    both = plan_7b(folder, "zero3_offload_cpu.json")
    disk = plan_7b(folder, "zero3_offload_nvme.json")
    gpu = [plan.needed("gpu") for plan in (on_gpu, optimizer, both)]
    assert gpu == sorted(gpu, reverse=True)
    assert by_kind(optimizer, "gpu", "optimizer") == by_kind(optimizer, "gpu", "gradients") == 0
    assert by_kind(both, "host", "optimizer") == pytest.approx(12 * WEIGHTS_7B)
    # Pinned blocks are rounded up to powers of two.
    assert 8 * WEIGHTS_7B <= by_kind(both, "host", "gradients") <= 16 * WEIGHTS_7B
    assert disk.needed("nvme") == pytest.approx((2 + 16) * WEIGHTS_7B, rel=0.01)
    assert disk.needed("host") < both.needed("host")


def test_the_first_tier_that_does_not_fit_is_named_with_by_how_much(folder: Path) -> None:
    (folder / "model" / "config.json").write_text(LLAMA_7B)
    config = load(folder, precision="bf16", batch={"packs_per_step": 64})
    base = read_ds_file(config.deepspeed)
    plan = plan_run(config, base, None, Ranks(1, 2, on_gpu=True), Tiers(gpu=40 * GIB, host=GIB), seq_len=4096)
    assert plan.misfit is not None
    assert plan.misfit.tier == "gpu"
    needed = plan.needed("gpu") / GIB
    assert f"one GPU is too small: needs {needed:,.2f} GiB of 40.00 GiB, {needed - 40:,.2f} GiB more" in str(
        plan.misfit
    )
    plenty = plan_run(config, base, None, Ranks(8, 8, on_gpu=True), Tiers(gpu=40 * GIB), seq_len=4096)
    assert plenty.fits
    assert plenty.misfit is None


@pytest.mark.parametrize(
    ("fewer", "more"),
    [
        ({"activation_checkpointing": True}, {"activation_checkpointing": "selective"}),
        ({"activation_checkpointing": "selective"}, {"activation_checkpointing": False}),
        (
            {"batch": {"packs_per_step": 64, "micro_packs": 1}},
            {"batch": {"packs_per_step": 64, "micro_packs": 8}},
        ),
        ({"tuning": {"method": "lora"}, "from_scratch": False}, {}),
        (
            {"tuning": {"method": "qlora"}, "from_scratch": False},
            {"tuning": {"method": "lora"}, "from_scratch": False},
        ),
        ({"optim": {"name": "lion", "lr": 1e-4}}, {}),
        (
            {"batch": {"packs_per_step": 64, "micro_packs": 8}, "offload_activations": True},
            {"batch": {"packs_per_step": 64, "micro_packs": 8}},
        ),
    ],
)
def test_what_should_save_gpu_memory_does(fewer: dict[str, Any], more: dict[str, Any], folder: Path) -> None:
    less, base = plan_7b(folder, "zero3.json", **fewer), plan_7b(folder, "zero3.json", **more)
    assert less.needed("gpu") < base.needed("gpu")


def test_the_largest_packs_of_the_index_make_the_row(folder: Path) -> None:
    config = load(folder, batch={"packs_per_step": 4, "micro_packs": 2})
    shards = open_shards(config.shards)
    plan = plan_run(config, read_ds_file(config.deepspeed), shards, Ranks(1, 2, on_gpu=False), Tiers())
    split = shards.splits["train"]
    assert plan.row_tokens == sorted(split.tokens)[-1] + sorted(split.tokens)[-2]
    assert plan.row_targets == sorted(split.target_tokens)[-1] + sorted(split.target_tokens)[-2]
    assert plan.num_steps == 4
    epochs = load(folder, steps=None, epochs=2)
    plan = plan_run(epochs, read_ds_file(config.deepspeed), shards, Ranks(1, 2, on_gpu=False), Tiers())
    assert plan.num_steps == -(-2 * split.num_packs // 4)


def test_operations_are_six_for_each_weight_and_token_and_those_of_attention(folder: Path) -> None:
    (folder / "model" / "config.json").write_text(LLAMA_7B)
    config = load(folder)
    job = make_job(
        config,
        read_ds_file(config.deepspeed),
        world_size=1,
        on_gpu=True,
        vocab_size=None,
        row_tokens=1,
        row_targets=1,
        row_documents=1,
    )
    assert flops(job, tokens=10, squares=100) == 6 * WEIGHTS_7B * 10 + 6 * 32 * 4096 * 100
    # The bucket is emptied on the way; more weights than the settings let stay are gathered twice.
    bucket, held = fill_bucket(job), gather(job)
    assert 0 < bucket.remaining < 1
    assert bucket.fill <= job.zero.reduce_bucket
    assert bucket.largest == 32000 * 4096
    assert held.returning
    assert held.live < WEIGHTS_7B


def test_no_more_weights_are_gathered_than_the_model_has_and_the_buffer_they_come_in(folder: Path) -> None:
    (folder / "model" / "config.json").write_text(
        '{"model_type": "llama", "vocab_size": 32000, "hidden_size": 1024, "intermediate_size": 4096, '
        '"num_hidden_layers": 6, "num_attention_heads": 16, "max_position_embeddings": 4096}'
    )
    config = load(folder, precision="bf16", tuning={"method": "lora"})
    job = make_job(
        config,
        read_ds_file(config.deepspeed),
        world_size=2,
        on_gpu=False,
        vocab_size=None,
        row_tokens=1,
        row_targets=1,
        row_documents=1,
    )
    held = gather(job)
    assert held.returning
    assert held.live == held.total
    gradients = 4 * sum(weight.numel for weight in job.trained)
    most = max(moment.buffers.bytes for moment in moments(job))
    assert 0 <= most - 2 * (held.total + held.group) <= gradients


def test_what_is_free_in_the_heap_is_counted_on_cpus_alone(folder: Path) -> None:
    """Rows of 64 tokens are small blocks; with 4,096 tokens and wide layers there are next to none."""

    def free(ranks: Ranks, seq_len: int) -> float:
        config = load(folder)
        base = read_ds_file(config.deepspeed)
        plan = plan_run(config, base, None, ranks, Tiers(), seq_len=seq_len)
        passing = sum(need.bytes for need in plan.needs if need.kind in ("activations", "buffers", "logits"))
        return sum(need.bytes for need in plan.needs if "free" in need.what) / passing

    assert free(Ranks(1, 1, on_gpu=True), 64) == 0
    (folder / "model" / "config.json").write_text(LLAMA_7B)
    small, large = (free(Ranks(1, 1, on_gpu=False), seq_len) for seq_len in (64, 4096))
    assert 0 < large < 0.01 < small


@given(
    st.lists(st.tuples(st.integers(0, 2**30), st.integers(0, 2**30), st.integers(0, 2**33)), min_size=1),
    st.integers(0, 2**33),
)
def test_the_heap_is_no_smaller_than_what_is_never_mapped(
    moments: list[tuple[int, int, int]], passing: int
) -> None:
    there = [Memory(small + medium + rest, small, medium) for small, medium, rest in moments]
    size = heap_size(there, Memory(passing, passing // 2, passing // 3))
    free = [free_in_heap(moment, size) for moment in there]
    assert all(amount >= 0 for amount in free)
    assert size >= max(moment.small for moment in there)
    assert heap_size([Memory(moment.bytes, 0, moment.bytes) for moment in there], Memory()) == 0


def test_without_shards_the_length_of_packs_must_be_said(folder: Path) -> None:
    config = load(folder)
    with pytest.raises(RunError, match="shards: there are none yet; say how long packs are: --seq-len 4096"):
        plan_run(config, read_ds_file(config.deepspeed), None, Ranks(1, 2, on_gpu=False), Tiers())


def test_a_plan_in_one_line(folder: Path) -> None:
    plan = plan_7b(folder, "zero3.json")
    assert str(plan).startswith(
        f"1 packs in a forward need one GPU {plan.needed('gpu') / GIB:,.2f} of 80.00 GiB"
    )
