import json
from pathlib import Path

import pytest

from data_tools.errors import RunError
from training.events import record_event
from training.plan.duration import duration, read_measured
from training.plan.plan import Plan, Ranks, Tiers

PLAN = Plan(
    ranks=Ranks(nodes=2, per_node=4, on_gpu=True),
    tiers=Tiers(),
    needs=(),
    moment="update",
    micro_packs=1,
    accumulation=1,
    row_tokens=1,
    row_targets=1,
    parameters=1,
    trained=1,
    num_steps=100,
    tokens_per_step=1e6,
    flops_per_step=8e15,
    checkpoint_bytes=8 * 10**9,
)


def make_run(folder: Path, teraflops: list[float]) -> Path:
    """Leave what a run of two ranks measured, with one checkpoint of 1,000,000 bytes saved in half a second."""
    lines = [
        json.dumps({"step": step, "speed/teraflops_per_second": value})
        for step, value in enumerate(teraflops, 1)
    ]
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    record_event(folder, "training", step=0, num_steps=9, world=2)
    checkpoint = folder / "checkpoints" / "step-000003"
    checkpoint.mkdir(parents=True)
    (checkpoint / "rank-00000-of-00001.safetensors").write_bytes(bytes(10**6))
    record_event(folder, "saved", step=3, seconds=0.5)
    record_event(folder, "saved", step=2, seconds=99.0)  # that checkpoint is gone
    return folder


def test_an_earlier_run_is_scaled_by_operations_and_ranks(tmp_path: Path) -> None:
    measured = read_measured(make_run(tmp_path, [1.0, 1.0, 100.0, 200.0, 300.0]))
    assert measured.flops_per_rank == 100e12  # the median without the first steps, over two ranks
    took = duration(PLAN, tokens_per_second=None, disk=None, measured=measured)
    assert took.step_seconds == pytest.approx(8e15 / (8 * 100e12))
    assert took.run_seconds == pytest.approx(1000)
    assert took.save_seconds == pytest.approx(8e9 / 2e6)
    assert "the median of 3 steps; taken for 8 ranks" in took.source
    assert "saves at 0.00 GiB/s there" in took.source


def test_what_is_stated_comes_before_what_was_measured(tmp_path: Path) -> None:
    measured = read_measured(make_run(tmp_path, [100.0] * 5))
    took = duration(PLAN, tokens_per_second=5e5, disk=2e9, measured=measured)
    assert took.step_seconds == 2.0
    assert took.run_seconds == 200.0
    assert took.save_seconds == 4.0


def test_nothing_stated_nothing_known() -> None:
    took = duration(PLAN, tokens_per_second=None, disk=None, measured=None)
    assert (took.step_seconds, took.run_seconds, took.save_seconds, took.source) == (None, None, None, "")


def test_a_folder_that_measured_nothing_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"holds no metrics\.jsonl; expected the folder of a run"):
        read_measured(tmp_path)
    make_run(tmp_path, [100.0])
    with pytest.raises(
        RunError, match="too short to measure by: got 1 steps with a speed; expected more than 2"
    ):
        read_measured(tmp_path)
