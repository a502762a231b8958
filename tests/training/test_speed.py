"""Precision fp16, what of a forward is kept, and the files for ZeRO++ and Twin-Flow, under ZeRO-3 on two ranks."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT
from tests.training.harness import Project
from tests.training.ranks import run_ranks
from training.checkpoint_files import CheckpointReader
from training.config import load_run_config

NUM_STEPS = 4
FP16: dict[str, Any] = {"precision": "fp16"}
OPTIM = {"lr": 1e-3, "weight_decay": 0.1, "warmup": 2, "schedule": "constant"}
EIGHT_BITS = OPTIM | {"name": "adamw8bit"}
ON_CPU = {"offload_optimizer": {"device": "cpu", "pin_memory": False}}
TWIN = {"offload_optimizer": {"device": "cpu", "ratio": 0.5, "pin_memory": False}}


def run(project: Project, folder: Path, cases: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Run cases (config: keys of run.yaml; zero: of zero_optimization; and speed_worker's) in one launch."""
    listed = []
    for number, (name, case) in enumerate(cases.items()):
        zero = {"stage": 3, "sub_group_size": 20_000} | case.get("zero", {})
        path = folder / f"{number}.json"
        path.write_text(json.dumps({"zero_optimization": zero}))
        listed.append(
            {"config": {}, "expected": None, "on_gpu": True} | case | {"name": name, "deepspeed": str(path)}
        )
    config = load_run_config(project.write_run("speed", {"steps": NUM_STEPS, "optim": OPTIM}))
    results = run_ranks("tests.training.speed_worker", folder / "ranks", config, listed, num_ranks=2)
    for result in results:
        assert result["resumed_losses"] == result["losses"][NUM_STEPS // 2 :], result["name"]
        assert result["resumed_weights"] == result["weights"], result["name"]
    return {result["name"]: result for result in results}


@pytest.mark.slow
def test_what_is_for_speed_and_memory_trains_right_and_resumes_to_the_last_bit(
    tiny: Project, tmp_path: Path
) -> None:
    dynamic = FP16 | {"loss_scale": "dynamic"}
    found = run(
        tiny,
        tmp_path,
        {
            "plain": {},
            "not checkpointed": {"config": {"activation_checkpointing": False}},
            "selective": {"config": {"activation_checkpointing": "selective"}},
            "cpu": {"zero": ON_CPU},
            "selective cpu": {"zero": ON_CPU, "config": {"activation_checkpointing": "selective"}},
            "ratio": {"zero": TWIN},
            "twin": {"zero": TWIN, "twin": True},
            "8 bits": {"config": {"optim": EIGHT_BITS}},
            "8 bits cpu": {"config": {"optim": EIGHT_BITS}, "zero": ON_CPU},
            "constant": {"config": FP16 | {"loss_scale": 1024.0}},
            "constant cpu": {"config": FP16 | {"loss_scale": 1024.0}, "zero": ON_CPU},
            "growing": {"config": dynamic, "first_scale": 1024.0, "grows_after": 1},
            "overflowing": {"config": dynamic, "first_scale": 2.0**20},
            # What is compiled stays so in a process: these come last.
            "compiled": {"config": {"compile": True, "activation_checkpointing": False}},
            "compiled again": {"config": {"compile": True}},
        },
    )
    for name in ("not checkpointed", "selective"):
        assert found[name]["weights"] == found["plain"]["weights"], name
        assert found[name]["losses"] == found["plain"]["losses"], name
    for name in ("selective cpu", "ratio"):  # a CPU has no other place for the share that stays
        assert found[name]["weights"] == found["cpu"]["weights"], name
    assert found["twin"]["weights"] != found["cpu"]["weights"], "torch's AdamW rounds otherwise"
    assert found["twin"]["losses"] == pytest.approx(found["cpu"]["losses"], rel=1e-6)

    for name in ("compiled", "compiled again"):  # seen: 1.5e-7
        assert found[name]["losses"] == pytest.approx(found["plain"]["losses"], rel=1e-6), name
    for name in ("8 bits", "8 bits cpu"):  # seen: 6e-6
        assert found[name]["losses"] == pytest.approx(found["plain"]["losses"], rel=1e-4), name
        assert found[name]["losses"] != found["plain"]["losses"], name

    # An fp16 has 11 bits, 1/2048; seen: losses 8e-5, norms 5e-4.
    for name in ("constant", "constant cpu", "growing"):
        assert found[name]["losses"] == pytest.approx(found["plain"]["losses"], rel=5e-4), name
        assert found[name]["grad_norms"] == pytest.approx(found["plain"]["grad_norms"], rel=2e-3), name
    norms = found["overflowing"]["grad_norms"]
    skipped = norms.count(math.inf)
    assert 1 < skipped < NUM_STEPS, "the run is resumed while the scale is still being found"
    assert norms == [math.inf] * skipped + norms[skipped:]


@pytest.mark.slow
def test_hpz_changes_no_number_and_goes_on_from_a_checkpoint(tiny: Project, tmp_path: Path) -> None:
    settings = json.loads((ROOT / "ds_configs" / "zero3_zeropp.json").read_text())
    zero = settings["zero_optimization"] | {
        "zero_hpz_partition_size": 2,
        "stage3_param_persistence_threshold": 0,
    }
    for key in ("zero_quantized_weights", "zero_quantized_gradients"):
        assert zero.pop(key) is True  # they need a GPU
    path = tmp_path / "hpz.json"
    path.write_text(json.dumps(settings | {"zero_optimization": zero}))
    without = tmp_path / "zero3.json"
    without.write_text(json.dumps({"zero_optimization": zero | {"zero_hpz_partition_size": 1}}))

    plain = tiny.train("hpz-plain", steps=NUM_STEPS, deepspeed=str(without))
    whole = tiny.train("hpz-whole", steps=NUM_STEPS, deepspeed=str(path))
    assert whole == plain
    tiny.train("hpz", steps=2, deepspeed=str(path))
    assert tiny.train("hpz", steps=NUM_STEPS, deepspeed=str(path)) == plain
    ours, theirs = (
        CheckpointReader(tiny.run_folder(name) / "checkpoints" / f"step-{NUM_STEPS:06d}")
        for name in ("hpz", "hpz-plain")
    )
    for name in theirs.progress.shapes:
        assert (ours.weight(name) == theirs.weight(name)).all(), name
