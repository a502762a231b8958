"""`shardtune check RUN.yaml --on-nodes`: the ranks of a run are started, and try the nodes before the training does.

Inside a job step (srun) or under another launcher this process is a rank itself; else DeepSpeed's launcher starts the
ranks of this machine. Everything is written in RUN/preflight, but for the nodes to do without, in RUN/bad_nodes.
"""

import json
import os

from training.config import RunConfig
from training.launch import check, find_devices, launch, settle
from training.run_folder import RunFolder

WORKER = "training.preflight.worker"


def check_on_nodes(config: RunConfig) -> int:
    """Return the exit code: 0 all is well, 1 something is wrong with a node. Raises ShardtuneError."""
    if "RANK" in os.environ or "SLURM_STEP_ID" in os.environ:
        from training.preflight.worker import run_rank

        return run_rank(config)
    devices = find_devices(config)
    config = settle(config, devices)
    _, ds_config = check(config, devices)
    run = RunFolder(config.run_folder / "preflight")
    report = run.path / "report.json"
    with run.hold():
        report.unlink(missing_ok=True)
        run.logs.mkdir(exist_ok=True)
        config.write(run.config_path)
        code = launch(run, devices, ds_config, ops=(), module=WORKER)
    if not report.exists():
        return code or 1
    return 0 if json.loads(report.read_text(encoding="utf-8"))["fine"] else 1
