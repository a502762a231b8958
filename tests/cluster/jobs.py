"""What the tests of training jobs share: a run on a cluster, and what is read from its files while it goes on."""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import yaml

from tests.cluster.slurmbox import SlurmBox
from tests.training.harness import read_losses, shardtune
from training.events import read_events
from training.ops import user_cache

# Nodes share this machine's builds of DeepSpeed's ops; one thread a rank, for two cores.
ENVIRONMENT = {"DS_ACCELERATOR": "cpu", "SHARDTUNE_CACHE": str(user_cache()), "OMP_NUM_THREADS": "1"}


class ClusterRun:
    """A run of `steps` steps below `folder`, which make_small_run has filled, as jobs of a cluster."""

    def __init__(self, box: SlurmBox, folder: Path, name: str, *, steps: int, **settings: Any) -> None:
        self.slurm, self.project, self.path = box, folder, folder / "runs" / name
        self.yaml = folder / f"{name}.yaml"
        base = yaml.safe_load((folder / "run.yaml").read_text())
        changes = {"name": name, "steps": steps, "log": {"tensorboard": False}, **settings}
        self.yaml.write_text(yaml.safe_dump(base | changes))

    def submit(self, *arguments: str) -> str:
        """Submit the run with the command, and return the job's id."""
        done = self.slurm.command(
            *shardtune("submit", self.yaml, *arguments), env=ENVIRONMENT, cwd=self.project
        )
        return done.stdout.removeprefix("submitted batch job ").split(";")[0]

    def sbatch(self, *options: str) -> str:
        """Send the script in the run folder once more."""
        return self.slurm.sbatch(*options, self.path / "train.sbatch", env=ENVIRONMENT)

    @property
    def losses(self) -> dict[int, float]:
        return read_losses(self.path)

    @property
    def state(self) -> str:
        return (self.path / "state").read_text().strip()

    def events(self, name: str) -> list[dict[str, Any]]:
        """Return the events of one kind, oldest first."""
        return [event for event in read_events(self.path) if event["event"] == name]

    def log(self, job: str) -> str:
        """Return what the job script itself has said."""
        return (self.path / "logs" / f"job-{job}.out").read_text()

    def logged_step(self) -> int:
        """Return the last step in metrics.jsonl; 0 if there is none."""
        try:
            lines = (self.path / "metrics.jsonl").read_text().splitlines()
            return int(json.loads(lines[-1])["step"]) if lines else 0
        except (FileNotFoundError, ValueError):
            return 0

    def wait_for_step(self, step: int, *, starts: int = 1) -> None:
        """Wait until so many starts of the run have begun to train, and the newest has logged this step."""
        wait_until(lambda: len(self.events("training")) >= starts and self.logged_step() >= step, 150)

    def ranks(self) -> dict[int, psutil.Process]:
        """Return the processes of the ranks that run now."""
        argument, found = str(self.path / "config.yaml"), {}
        for process in psutil.process_iter(["cmdline"]):
            command = process.info["cmdline"] or [""]
            if "training.train" in command and argument in command and "python" in Path(command[0]).name:
                environment = environment_of(process.pid)
                found[int(environment.get("RANK", environment.get("SLURM_PROCID", "-1")))] = process
        return found


def environment_of(pid: int) -> dict[str, str]:
    """Return the environment variables that a process was started with; none if it has ended."""
    try:
        entries = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return {}
    return dict(os.fsdecode(entry).split("=", 1) for entry in entries if b"=" in entry)


def wait_until(condition: Callable[[], bool], seconds: float) -> None:
    """Wait until a condition holds; fail after `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)
