"""Kills a run again and again, and sees that nothing is lost: `python -m tests.soak --kills 40` (or `make soak`).

A run on two ranks is killed with -9 (one rank, the launcher, the command, or all of them) while it starts, while it
trains or while it saves, and started again. After each kill the newest checkpoint that counts must be whole, and its
ledger that of the rows up to there. At the end weights, optimizer states, ledger and losses must be those of a run that
nobody killed, bit for bit.
"""

import argparse
import random
import subprocess
import tempfile
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import psutil
from safetensors.torch import load_file

from data_tools.shards import Shards, open_shards
from tests.training.checkpoints import same_checkpoint
from tests.training.harness import Project, make_project, ranks_of
from training.checkpoint_files import (
    MASTER,
    CheckpointReader,
    checkpoint_folder,
    finished_checkpoints,
    partition,
    rank_file,
)
from training.data import PackOrder, step_slots
from training.ledger import BEGINNING, extend_ledger

VICTIMS = ("rank 0", "rank 1", "launcher", "command", "all")
MOMENTS = ("start", "step", "save")
START_SECONDS = 10.0
PATIENCE_SECONDS = 300.0
NUM_RANKS, PACKS_PER_STEP, SEED = 2, 4, 17


class Soak:
    """A run that is killed, and the one beside it that is not."""

    def __init__(self, project: Project, *, num_steps: int, seed: int, unbroken: str) -> None:
        self.project, self.num_steps, self.unbroken = project, num_steps, unbroken
        self.random = random.Random(seed)
        self.settings = {
            "steps": num_steps,
            "batch": {"packs_per_step": PACKS_PER_STEP, "micro_packs": 1},
            "save": {"every_steps": 2, "keep": 2},
            "launch": {"gpus_per_node": NUM_RANKS},
            "seed": SEED,
        }
        self.losses = project.train(unbroken, **self.settings)
        self.kills: Counter[str] = Counter()

    def kill_once(self, name: str, victim: str, moment: str) -> bool:
        """Start the run, kill it at such a moment, wait until all of it is gone, and look at what is left.

        Returns False if it came to its end before.
        """
        process = self.project.start(self.project.write_run(name, self.settings))
        reached = self._wait_for(process, name, moment)
        during_save = any(self._checkpoints(name).glob("*.partial"))
        processes = _tree(process) if reached else {}
        reached = bool(processes)  # it may have come to its end just now
        if victim != "all" and victim not in processes:
            victim = "command"  # the others have not been started yet
        for target in processes if victim == "all" else [victim]:
            with suppress(
                psutil.NoSuchProcess, KeyError
            ):  # its parent was killed first, or it has just ended
                processes[target].kill()
        process.communicate(timeout=PATIENCE_SECONDS)
        psutil.wait_procs(processes.values(), timeout=60)
        self._check(name)
        if reached:
            self.kills[f"{victim} at {moment}"] += 1
            self.kills["of these while a save was going on"] += during_save
        return reached

    def _wait_for(self, process: "subprocess.Popen[str]", name: str, moment: str) -> bool:
        """Wait for a moment of this start; return False if the run has ended before it."""
        if moment == "start":
            time.sleep(self.random.uniform(0.0, START_SECONDS))
            return process.poll() is None
        deadline = time.monotonic() + PATIENCE_SECONDS
        metrics = self.project.run_folder(name) / "metrics.jsonl"
        begun = _num_lines(metrics)
        wanted = begun + self.random.randint(1, 5)
        while process.poll() is None:
            assert time.monotonic() < deadline, f"{name} does not come to its next step"
            if moment == "save" and any(self._checkpoints(name).glob("*.partial")):
                time.sleep(self.random.uniform(0.0, 0.05))
                return True
            if moment == "step" and _num_lines(metrics) >= wanted:
                time.sleep(self.random.uniform(0.0, 0.2))
                return True
            time.sleep(0.002)
        return False

    def _checkpoints(self, name: str) -> Path:
        return self.project.run_folder(name) / "checkpoints"

    def _check(self, name: str) -> None:
        """See that the newest checkpoint is whole, and made of the rows up to its step and of no others."""
        finished = finished_checkpoints(self._checkpoints(name))
        if not finished:
            return
        reader = CheckpointReader(finished[-1])
        progress = reader.progress
        for rank in range(NUM_RANKS):
            tensors = load_file(rank_file(reader.folder, rank, NUM_RANKS))
            assert len(tensors) == len(progress.shapes) * (1 + len(progress.optimizer_states))
            for parameter, shape in progress.shapes.items():
                numel = 1
                for size in shape:
                    numel *= size
                start, stop = partition(numel, rank, NUM_RANKS)
                assert tensors[f"{MASTER}|{parameter}"].numel() == stop - start
        assert progress.packs_consumed == progress.step * PACKS_PER_STEP
        assert progress.ledger == ledger_after(open_shards(self.project.shards), progress.step)

    def finish(self, name: str) -> None:
        """Let the run come to its end, and compare it with the unbroken one."""
        losses = self.project.train(name, **self.settings)
        assert losses == self.losses, "the losses differ from those of the unbroken run"
        ours, theirs = (
            checkpoint_folder(self._checkpoints(run), self.num_steps) for run in (name, self.unbroken)
        )
        assert same_checkpoint(ours, theirs), "the last checkpoint differs from that of the unbroken run"


def ledger_after(shards: Shards, num_steps: int) -> str:
    """Return the ledger of the first steps, from the shards alone."""
    split = shards.splits["train"]
    order = PackOrder(fingerprint=shards.fingerprint, seed=SEED, num_packs=split.num_packs)
    ledger = BEGINNING
    for step in range(num_steps):
        slots = step_slots(order, consumed=step * PACKS_PER_STEP, packs_per_step=PACKS_PER_STEP, end=None)
        ledger = extend_ledger(ledger, split, slots)
    return ledger


def _tree(process: "subprocess.Popen[str]") -> dict[str, psutil.Process]:
    """Return the processes of a run that are there: command, launcher, rank 0, rank 1."""
    found = {}
    try:
        found["command"] = psutil.Process(process.pid)
        for child in psutil.Process(process.pid).children():
            if "deepspeed.launcher.launch" in child.cmdline():
                found["launcher"] = child
        for rank in ranks_of(process):
            found[f"rank {rank.environ()['RANK']}"] = rank
    except psutil.NoSuchProcess:
        pass  # it ends by itself just now
    return found


def _num_lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def soak(project: Project, *, kills: int, num_steps: int, seed: int, name: str = "soak") -> Counter[str]:
    """Kill a run so many times, and begin another one whenever it is done; return the kills by victim and moment.

    Raises AssertionError if anything is lost.
    """
    done = Soak(project, num_steps=num_steps, seed=seed, unbroken=f"{name}-unbroken")
    runs, killed = 1, 0
    while killed < kills:
        victim = done.random.choice(VICTIMS)
        moment = done.random.choice(MOMENTS) if killed else "save"
        run = f"{name}-{runs}"
        killed += done.kill_once(run, victim, moment)
        there = finished(project, run)
        print(f"kill {killed} of {kills}: {victim} at {moment}; checkpoints: {there}", flush=True)
        if checkpoint_folder(project.run_folder(run) / "checkpoints", num_steps).exists():
            done.finish(run)
            runs += 1
    done.finish(f"{name}-{runs}")
    return done.kills


def finished(project: Project, name: str) -> str:
    """Return the names of a run's checkpoints that count."""
    folders = finished_checkpoints(project.run_folder(name) / "checkpoints")
    return ", ".join(folder.name for folder in folders) or "none"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=40)
    parser.add_argument(
        "--steps", type=int, default=40, help="of one run; when it is done another one begins"
    )
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    options = parser.parse_args()
    print(f"seed {options.seed}")
    layers = {
        "hidden_size": 192,
        "intermediate_size": 768,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    }
    with tempfile.TemporaryDirectory() as name:
        project = make_project(Path(name), rows_per_family=60, seq_len=128, layers=layers)
        found = soak(project, kills=options.kills, num_steps=options.steps, seed=options.seed)
    for what, count in sorted(found.items()):
        print(f"{count:4d}  {what}")
    print(
        "nothing was lost: every checkpoint whole, each row once, the end that of an unbroken run bit for bit"
    )


if __name__ == "__main__":
    main()
