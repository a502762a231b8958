"""Goodput of a preempted run: `python benchmarks/goodput.py [--seconds 600] [--preemptions 5] [--output FILE.json]`.

A real run of two ranks on the two nodes of a Slurm cluster on this machine, which a job of a higher priority takes away
again and again after `--seconds` of training. Its goodput is what `shardtune status` reads from its files; time in the
queue is left out. With the defaults it takes an hour and a quarter.

What a preemption costs (the start of a job, the save before the end, steps done again) does not grow with the time
between two of them. So the cost that was measured also says what a run gets that is preempted less or more often, which
is printed below: every hour, say, and by a kill without notice that loses half the time between two saves.
"""

import argparse
import itertools
import json
import statistics
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.cluster.jobs import ClusterRun, wait_until
from tests.cluster.slurmbox import SlurmBox
from tests.training.small_run import make_small_run
from training.events import read_events
from training.metrics import duration
from training.status.goodput import Goodput
from training.status.report import read_status, to_text

PARTITIONS = (
    "PartitionName=main Nodes=ALL Default=YES State=UP PriorityTier=1 GraceTime=120",
    "PartitionName=urgent Nodes=ALL State=UP PriorityTier=10 PreemptMode=OFF",
)
PREEMPTION = ("PreemptType=preempt/partition_prio", "PreemptMode=REQUEUE")
SAVE_SECONDS = 120.0
START_SECONDS = 300.0


def measure(folder: Path, *, seconds: float, preemptions: int, save_steps: int) -> Goodput:
    """Run, preempt as often, and let it stop; return the goodput of the whole."""
    make_small_run(folder / "project")
    with SlurmBox(folder / "slurm", nodes=2, partitions=PARTITIONS, extra=PREEMPTION) as box:
        run = ClusterRun(
            box,
            folder / "project",
            "goodput",
            steps=10**6,
            batch={"packs_per_step": 16},
            launch={"gpus_per_node": 1},
            save={"every_steps": save_steps, "keep": 1},
            evaluate={"every_steps": 10**6, "max_packs": 1},
            slurm={"nodes": 2, "gpus": None},
        )
        job = run.submit()
        for start in range(1, preemptions + 2):
            wait_until(lambda start=start: len(run.events("training")) >= start, START_SECONDS)  # type: ignore[misc]
            print(f"start {start} trains from step {run.events('training')[-1]['step']}", flush=True)
            time.sleep(seconds)
            if start <= preemptions:
                urgent = box.sbatch("--partition=urgent", "--nodes=2", "--exclusive", "--wrap", "sleep 1")
                box.wait(urgent, START_SECONDS)
        (run.path / "STOP").touch()
        box.wait(job, START_SECONDS)
        status = read_status(run.path)
        print(to_text(status))
        assert status.restarts == preemptions
        assert status.goodput is not None
        saves = [event["time"] for event in read_events(run.path) if event["event"] == "saved"]
        apart = [after - before for before, after in itertools.pairwise(saves)]
        print(
            f"checkpoints: {len(saves)}, the middle one {statistics.median(apart):.0f} s after the one before"
        )
        return status.goodput


def at_scale(goodput: Goodput, *, seconds_between: float, lost: float = 0.0) -> float:
    """Return the goodput of a run that is preempted each `seconds_between`, at the cost a start that was measured.

    Steps slower than the others are left out: they do not come of preemptions.
    """
    return 1 - (cost_of_start(goodput) + lost) / seconds_between


def cost_of_start(goodput: Goodput) -> float:
    """Return the seconds that a start takes beside its steps: coming up, steps done twice, saving, ending."""
    beside = goodput.other_seconds - goodput.slow_steps_seconds
    return (goodput.startup_seconds + goodput.repeated_seconds + beside) / goodput.num_starts


def main() -> None:
    """Measure, print, and write the figures to a file where asked."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=600.0, help="of training before each preemption")
    parser.add_argument("--preemptions", type=int, default=5)
    parser.add_argument("--save-steps", type=int, default=400, help="about two minutes of them")
    parser.add_argument("--output", type=Path)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        goodput = measure(
            Path(folder),
            seconds=chosen.seconds,
            preemptions=chosen.preemptions,
            save_steps=chosen.save_steps,
        )
    print(
        f"measured: goodput {goodput.goodput:.3f}; a start costs {cost_of_start(goodput):.1f} s beside its steps"
    )
    print("the same cost in a run that is preempted each     told before     killed outright")
    for seconds in (600.0, 1800.0, 3600.0, 4 * 3600.0):
        told, killed = (
            at_scale(goodput, seconds_between=seconds, lost=lost) for lost in (0.0, SAVE_SECONDS / 2)
        )
        print(f"{duration(seconds):>46}     {told:11.3f}     {killed:15.3f}")
    if chosen.output is not None:
        chosen.output.write_text(json.dumps(asdict(goodput), indent=2) + "\n")


if __name__ == "__main__":
    main()
