"""A rank of the tests of what a GPU is for, tried on a CPU: fp16, and the share of the optimizer that Twin-Flow keeps.

    python -m tests.training.speed_worker FOLDER/config.yaml

Trains as optim_worker does. A case may also say: first_scale, grows_after (of the loss scale), twin (Twin-Flow's second
optimizer updates half of the sub-groups, in CPU memory).
"""

from pathlib import Path
from typing import Any

import deepspeed
from deepspeed.accelerator import get_accelerator

from tests.training import optim_worker
from training import engine, loss_scale
from training.config import RunConfig
from training.distributed import World
from training.saver import Saver

original_case, original_build = optim_worker.run_case, engine.build_engine


def run_case(
    config: RunConfig,
    ds_config: dict[str, Any],
    world: World,
    case: dict[str, Any],
    folder: Path,
    saver: Saver,
) -> dict[str, Any]:
    """Run a case with its scale, and its sub-groups dealt out."""
    loss_scale.FIRST = case.get("first_scale", 2.0**16)
    loss_scale.GROWS_AFTER = case.get("grows_after", 2000)
    if "first_scale" in case:
        ds_config["fp16"]["loss_scale"] = case["first_scale"]

    def build_engine(*arguments: Any, **named: Any) -> deepspeed.DeepSpeedEngine:
        built = original_build(*arguments, **named)
        if case.get("twin"):
            groups = built.optimizer.subgroup_to_device
            assert len(groups) > 1
            # Any name but `cpu` is the second optimizer's; this one is the same memory.
            groups.update(dict.fromkeys(range(len(groups) // 2), "cpu:0"))
        return built

    optim_worker.build_engine = build_engine
    found = original_case(config, ds_config, world, case, folder, saver)
    return found | {"twin": case.get("twin", False)}


if __name__ == "__main__":
    get_accelerator().is_fp16_supported = lambda: True  # torch computes in fp16 on any CPU; slowly, on most
    optim_worker.run_case = run_case
    optim_worker.main()
