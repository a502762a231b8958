"""A Slurm cluster for the tests of this folder; they are skipped where Slurm is not installed."""

from collections.abc import Iterator

import pytest

from tests.cluster.slurmbox import SlurmBox, missing_programs


@pytest.fixture(scope="session")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SlurmBox]:
    """Return a cluster of three nodes with four fake GPUs each; jobs of `urgent` preempt those of `main`."""
    missing = missing_programs()
    if missing:
        pytest.skip(f"needs the Debian packages slurmctld slurmd slurm-client: no {', '.join(missing)} here")
    with SlurmBox(
        tmp_path_factory.mktemp("slurm"),
        nodes=3,
        gpus=4,
        gpu_type="h100",
        partitions=[
            "PartitionName=main Nodes=ALL Default=YES State=UP PriorityTier=1 GraceTime=60",
            "PartitionName=urgent Nodes=ALL State=UP PriorityTier=10 PreemptMode=OFF",
        ],
        extra=["PreemptType=preempt/partition_prio", "PreemptMode=REQUEUE"],
    ) as box:
        yield box
