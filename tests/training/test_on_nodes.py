"""`shardtune check --on-nodes`: two real ranks, which take each other for the ranks of two nodes."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT
from tests.training.harness import environment, shardtune
from tests.training.small_run import copy_small_run, make_small_run, write_run
from training.config import load_run_config
from training.launch import Devices, free_port, launcher_environment
from training.nodes import read_bad_nodes
from training.preflight.measure import slowest

pytestmark = pytest.mark.alone

NODES = ("node-a", "node-b")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_small_run(tmp_path_factory.mktemp("on-nodes") / "project")


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    return copy_small_run(made, tmp_path / "project").parent


class Ranks:
    """A rank on each of two nodes, started as srun would; the second one's environment may differ."""

    def __init__(
        self, folder: Path, *, second: dict[str, str] | None = None, num_started: int = 2, **changes: Any
    ) -> None:
        config = load_run_config(write_run(folder, **changes))
        self.run = config.run_folder
        self.run.mkdir(parents=True, exist_ok=True)
        config.write(self.run / "config.yaml")
        common = environment() | launcher_environment(Devices(("0", "1"), on_gpu=False))
        common |= {"PYTHONPATH": str(ROOT), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
        common |= {"WORLD_SIZE": "2", "LOCAL_RANK": "0"}
        self.processes = [
            subprocess.Popen(
                [sys.executable, "-m", "training.preflight.worker", self.run / "config.yaml"],
                cwd=folder,  # python -m looks there first, for versions too
                env=common | {"RANK": str(rank), "SLURMD_NODENAME": node} | ((second or {}) if rank else {}),
                text=True,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
            for rank, node in enumerate(NODES[:num_started])
        ]

    def finish(self) -> tuple[list[int], str, str]:
        """Return the exit codes, what the first rank wrote to stdout, and what all wrote to stderr."""
        outputs = [process.communicate(timeout=200) for process in self.processes]
        codes = [process.returncode for process in self.processes]
        return codes, outputs[0][0], "".join(stderr for _, stderr in outputs)

    def report(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.run / "preflight" / "report.json").read_text())
        return found


def test_a_node_with_another_version_and_a_full_disk_is_named(folder: Path, tmp_path: Path) -> None:
    """The second node's Python finds another release of shardtune, and its file on the shared disk has no room."""
    other = tmp_path / "site" / "shardtune-9.9.dist-info"
    other.mkdir(parents=True)
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: shardtune\nVersion: 9.9\n")
    preflight = folder / "runs" / "small" / "preflight"
    preflight.mkdir(parents=True)
    (preflight / "check-node-b-1").symlink_to("/dev/full")

    ranks = Ranks(folder, second={"PYTHONPATH": f"{other.parent}:{ROOT}"})
    codes, stdout, stderr = ranks.finish()
    assert codes == [1, 1], stderr
    rows = {row["part"]: row for row in ranks.report()["findings"]}
    assert rows["versions"]["found"].startswith(
        "node node-b, rank 1: shardtune: got 9.9; the other ranks have "
    )
    assert rows["shared disk"]["found"].startswith("node node-b, rank 1: [Errno 28] No space left on device")
    for part in ("memory", "ops", "compute", "all-reduce", "links", "step"):
        assert rows[part]["verdict"] == "ok", rows[part]
    assert "loss " in rows["step"]["found"]
    assert "2 ranks on 2 nodes: 2 mistakes, no warnings" in stdout
    assert read_bad_nodes(ranks.run) == ["node-b"]
    assert not list(preflight.glob("check-*"))


@pytest.mark.slow
def test_a_rank_that_hangs_in_a_part_is_named_with_its_node(folder: Path) -> None:
    preflight = folder / "runs" / "small" / "preflight"
    preflight.mkdir(parents=True)
    os.mkfifo(preflight / "check-node-b-1")  # opening it waits for a reader that never comes
    ranks = Ranks(folder, watchdog=8)
    codes, _, stderr = ranks.finish()
    assert codes == [76, 76], stderr
    assert "stuck for 8 s in shared disk: waits for rank 1 on node node-b" in stderr
    assert "which hangs in shared disk, at open (pathlib.py:" in stderr
    assert "called by disk_speed (measure.py:" in stderr
    assert read_bad_nodes(ranks.run) == ["node-b"]


@pytest.mark.slow
def test_a_rank_that_never_comes_up_is_named(folder: Path) -> None:
    ranks = Ranks(folder, watchdog=3, num_started=1)
    codes, _, stderr = ranks.finish()
    assert codes == [76], stderr
    assert (
        "stuck for 30 s in rendezvous: waits for rank 1 on node (unknown), which has never come up" in stderr
    )
    assert not (ranks.run / "bad_nodes").exists()  # outside Slurm nobody knows where it was to be


@pytest.mark.slow
def test_by_the_command_with_the_launcher(folder: Path) -> None:
    run_yaml = write_run(folder)
    done = subprocess.run(
        shardtune("check", run_yaml, "--on-nodes"),
        env=environment(),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 ranks on 1 nodes: no mistakes, no warnings" in done.stdout
    assert not (folder / "runs" / "small" / "bad_nodes").exists()
    assert not (folder / "runs" / "small" / "state").exists()
    assert {path.name for path in (folder / "runs" / "small").iterdir()} == {"preflight"}


def test_who_is_slow() -> None:
    assert slowest({0: 10.0, 1: 9.0, 2: 11.0, 3: 3.0}, 2.0) == pytest.approx({3: 10 / 3})
    assert slowest({0: 10.0, 1: 4.0}, 2.0) == {1: 2.5}
    assert slowest({0: 10.0, 1: 9.0}, 2.0) == {}
    assert slowest({0: 10.0}, 2.0) == {}
