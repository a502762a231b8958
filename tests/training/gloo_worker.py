"""A small rank for the tests of the launcher: real processes in a real group, which count steps together.

    python -m tests.training.gloo_worker RUN_FOLDER/config.yaml

`plan.json` in the run folder says how many steps, in which step rank 1 fails and how, and in which one it hangs.
"""

import ctypes
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from data_tools.errors import RunError
from training.distributed import find_world
from training.heartbeat import Place
from training.run_folder import RunFolder, watch_parent
from training.watchdog import watched

HANGS = {
    "stop": lambda: os.kill(os.getpid(), signal.SIGSTOP),
    "sleep": lambda: time.sleep(1000),
    "keep the interpreter": lambda: ctypes.PyDLL(None).sleep(1000),
}


def main() -> int:
    watch_parent()
    run = RunFolder(Path(sys.argv[1]).parent)
    plan = json.loads((run.path / "plan.json").read_text())
    world = find_world()
    with watched(run, world, plan.get("watchdog")) as place:
        return count_steps(run, plan, place)


def count_steps(run: RunFolder, plan: dict[str, Any], place: Place) -> int:
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    (run.path / "pids").mkdir(exist_ok=True)
    (run.path / "pids" / f"{rank}-{os.getpid()}-{os.getppid()}").touch()
    state = "done"
    for step in range(1, plan["steps"] + 1):
        if rank == 1 and step == plan.get("fail_at"):
            if plan["how"] == "user":
                run.write_mistake(RunError("weights: they do not fit"))
                return RunError.exit_code
            raise ArithmeticError("rank 1 cannot count further")
        for _ in range(plan.get("parts", 1)):
            place.at("forward", step=step)
            time.sleep(0.05)
        if rank == 1 and step == plan.get("hang_at"):
            HANGS[plan["hang"]]()
        stop = torch.tensor([float(run.stop_requested())])
        dist.all_reduce(stop, op=dist.ReduceOp.MAX)
        if rank == 0:
            print(f"step {step}")
        if stop.item():
            state = "stopped"
            break
    dist.barrier()
    if rank == 0:
        run.write_state(state)
    dist.destroy_process_group()
    return 0


if __name__ == "__main__":
    sys.exit(main())
