"""A small rank for the tests of the launcher: real processes in a real group, which count steps together.

    python -m tests.training.gloo_worker RUN_FOLDER/config.yaml

`plan.json` in the run folder says how many steps, and in which step rank 1 fails and how.
"""

import json
import os
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist

from data_tools.errors import RunError
from training.distributed import rendezvous_from
from training.run_folder import RunFolder, watch_parent


def main() -> int:
    watch_parent()
    run = RunFolder(Path(sys.argv[1]).parent)
    plan = json.loads((run.path / "plan.json").read_text())
    os.environ.update(rendezvous_from(os.environ))
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
        stop = torch.tensor([float(run.stop_requested())])
        dist.all_reduce(stop, op=dist.ReduceOp.MAX)
        if rank == 0:
            print(f"step {step}")
        if stop.item():
            state = "stopped"
            break
        time.sleep(0.05)
    dist.barrier()
    if rank == 0:
        run.write_state(state)
    dist.destroy_process_group()
    return 0


if __name__ == "__main__":
    sys.exit(main())
