"""A throwaway Slurm cluster on this machine: real daemons, nodes on loopback, no root, up in about a second.

    with SlurmBox(folder, nodes=2, gpus=4) as slurm:
        job = slurm.sbatch("--nodes=2", "job.sh")
        assert slurm.wait(job)["JobState"] == "COMPLETED"

Nodes are named 127.0.0.1, 127.0.0.2, …, so that their names resolve without DNS. Needs the Debian packages slurmctld,
slurmd and slurm-client (tried with 22.05.8). supervisor.py owns the daemons and ends them, however this process ends.
"""

import getpass
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

NEEDED = ("slurmctld", "slurmd", "sbatch", "srun", "scontrol", "sinfo")
SYSTEM_PATH = "/usr/sbin:/sbin"
BOOT_SECONDS = 30
# GPUs are device files to Slurm, each another one; these are there without hardware.
DEVICES = [Path(f"/dev/tty{number}") for number in range(8)]
DEVICES_IN_CONTAINERS = [
    Path("/dev", name) for name in ("null", "zero", "full", "random", "urandom", "tty", "ptmx", "console")
]
UNFINISHED = {"PENDING", "RUNNING", "COMPLETING", "CONFIGURING", "SUSPENDED", "REQUEUED"}


def missing_programs() -> list[str]:
    """Return the programs of Slurm that this machine lacks."""
    path = f"{os.environ['PATH']}:{SYSTEM_PATH}"
    return [name for name in NEEDED if shutil.which(name, path=path) is None]


class SlurmBox:
    """A cluster whose files lie in `root`, up while it is entered.

    `partitions` and `extra` are lines of slurm.conf; without partitions there is one, `main`. `slurmd_timeout` is how
    long (seconds) a node may be silent before it is down, `kill_wait` what lies between SIGTERM and SIGKILL.
    """

    def __init__(
        self,
        root: Path,
        *,
        nodes: int = 2,
        cpus: int = 32,
        memory_mib: int = 16000,
        gpus: int = 0,
        gpu_type: str = "",
        slurmd_timeout: int = 10,
        kill_wait: int = 10,
        partitions: Sequence[str] = ("PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP",),
        extra: Sequence[str] = (),
    ) -> None:
        self.root = root.resolve()
        self.nodes = [f"127.0.0.{number + 1}" for number in range(nodes)]
        self.env = {
            key: value
            for key, value in os.environ.items()
            if not key.startswith(("SLURM", "SBATCH", "SRUN", "SQUEUE", "SINFO", "SCONTROL"))
        }
        self.env["SLURM_CONF"] = str(self.root / "slurm.conf")
        self.env["PATH"] += f":{SYSTEM_PATH}"
        for name in ("controller", "spool", "log", "run"):
            (self.root / name).mkdir(parents=True, exist_ok=True)
        node = f"CPUs={cpus} RealMemory={memory_mib} State=UNKNOWN"
        if gpus:
            gpu = f"gpu:{gpu_type}:{gpus}" if gpu_type else f"gpu:{gpus}"
            node += f" Gres={gpu}"
            self._write_gpus(gpus, gpu_type)
        self._write_config(
            node,
            [
                f"SlurmdTimeout={slurmd_timeout}",
                f"KillWait={kill_wait}",
                *(["GresTypes=gpu"] if gpus else []),
                *extra,
            ],
            partitions,
        )

    def _write_gpus(self, gpus: int, gpu_type: str) -> None:
        devices = DEVICES if all(device.exists() for device in DEVICES[:gpus]) else DEVICES_IN_CONTAINERS
        devices = [device for device in devices if device.exists()][:gpus]
        assert len(devices) == gpus, f"only {len(devices)} device files can stand for GPUs here"
        kind = f" Type={gpu_type}" if gpu_type else ""
        lines = [f"NodeName={name} Name=gpu{kind} File={file}" for name in self.nodes for file in devices]
        (self.root / "gres.conf").write_text("\n".join(lines) + "\n")

    def _write_config(self, node: str, settings: Sequence[str], partitions: Sequence[str]) -> None:
        user, host, root = getpass.getuser(), socket.gethostname().split(".")[0], self.root
        controller, *ports = _free_ports(1 + len(self.nodes))
        lines = [
            *("ClusterName=box", f"SlurmctldHost={host}(127.0.0.1)", f"SlurmctldPort={controller}"),
            *(f"SlurmUser={user}", f"SlurmdUser={user}", "AuthType=auth/none", "CredType=cred/none"),
            # A requeued job waits until its credential has expired: 6 seconds for the least there may be.
            "AuthInfo=cred_expire=5",
            *(f"StateSaveLocation={root}/controller", f"SlurmdSpoolDir={root}/spool/%n"),
            *(f"SlurmctldPidFile={root}/run/slurmctld.pid", f"SlurmdPidFile={root}/run/%n.pid"),
            *(f"SlurmctldLogFile={root}/log/slurmctld.log", f"SlurmdLogFile={root}/log/%n.log"),
            # The nodes have the CPUs and the memory that are written here, whatever the machine has.
            *(
                "SlurmdParameters=config_overrides",
                "ProctrackType=proctrack/linuxproc",
                "TaskPlugin=task/none",
            ),
            # Without a default for memory each job would take a whole node.
            *("SelectType=select/cons_tres", "SelectTypeParameters=CR_Core_Memory", "DefMemPerNode=100"),
            "SchedulerParameters=sched_interval=1,batch_sched_delay=0,sched_min_interval=0,bf_interval=1",
            *("MpiDefault=none", "ReturnToService=2", "MailProg=/bin/true", "MinJobAge=86400"),
            *("JobCompType=jobcomp/filetxt", f"JobCompLoc={root}/log/jobcomp.txt"),
            *settings,
            *(
                f"NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} {node}"
                for name, port in zip(self.nodes, ports, strict=True)
            ),
            *partitions,
        ]
        (root / "slurm.conf").write_text("\n".join(lines) + "\n")

    def __enter__(self) -> Self:
        with (self.root / "log" / "supervisor.log").open("w") as log:
            self._supervisor = subprocess.Popen(
                [
                    sys.executable,
                    str(Path(__file__).with_name("supervisor.py")),
                    self.root / "log",
                    *self.nodes,
                ],
                env=self.env,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                text=True,
                start_new_session=True,
            )
        deadline = time.monotonic() + BOOT_SECONDS
        while True:
            states = self.command("sinfo", "-h", "-N", "-o", "%T", check=False).stdout.split()
            if len(states) >= len(self.nodes) and set(states) == {"idle"}:
                return self
            if self._supervisor.poll() is not None or time.monotonic() > deadline:
                self._end()
                logs = [path.read_text()[-1500:] for path in (self.root / "log").iterdir()]
                raise RuntimeError("Slurm did not come up:\n" + "\n".join(logs))
            time.sleep(0.05)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def _end(self) -> None:
        assert self._supervisor.stdin is not None
        self._supervisor.stdin.close()
        self._supervisor.wait(20)

    def _tell(self, order: str) -> None:
        assert self._supervisor.stdin is not None
        self._supervisor.stdin.write(f"{order}\n")
        self._supervisor.stdin.flush()

    def kill_node(self, name: str) -> None:
        """Let a node lose its power: its slurmd and every process of its jobs are gone at once."""
        self._tell(f"kill {name}")

    def start_node(self, name: str) -> None:
        """Switch a node on again."""
        self._tell(f"start {name}")

    def command(
        self,
        *command: str | Path,
        check: bool = True,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> "subprocess.CompletedProcess[str]":
        """Run a program on the login node of this cluster; its output is in the result."""
        done = subprocess.run(
            [str(part) for part in command],
            env={**self.env, **(env or {})},
            cwd=cwd or self.root,
            text=True,
            capture_output=True,
            timeout=120,
        )
        assert not check or done.returncode == 0, f"{command}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done

    def sbatch(
        self, *arguments: str | Path, env: Mapping[str, str] | None = None, cwd: Path | None = None
    ) -> str:
        """Submit a batch job and return its id."""
        return self.command("sbatch", "--parsable", *arguments, env=env, cwd=cwd).stdout.strip().split(";")[0]

    def jobs(self, job: str) -> list[dict[str, str]]:
        """Return what the controller knows of a job; of an array, one record for each element."""
        lines = self.command("scontrol", "show", "job", "-o", job).stdout.splitlines()
        return [dict(re.findall(r"(\w[\w:/]*)=(\S*)", line)) for line in lines if line.strip()]

    def job(self, job: str) -> dict[str, str]:
        """Return what the controller knows of a job that is no array: JobState, Restarts, Reason, …"""
        (record,) = self.jobs(job)
        return record

    def wait_all(self, job: str, timeout: float = 120, states: Sequence[str] = ()) -> list[dict[str, str]]:
        """Wait until all elements of an array are in one of `states`, or have ended; return their records."""
        deadline = time.monotonic() + timeout
        while True:
            records = self.jobs(job)
            now = {record["JobState"] for record in records}
            if now <= set(states) if states else not now & UNFINISHED:
                return records
            if time.monotonic() > deadline:
                raise TimeoutError(f"job {job}: {now} after {timeout} s; wanted {states or 'its end'}")
            time.sleep(0.1)

    def wait(self, job: str, timeout: float = 120, states: Sequence[str] = ()) -> dict[str, str]:
        """Wait until a job is in one of `states`, or has ended; return its record."""
        (record,) = self.wait_all(job, timeout, states)
        return record


def _free_ports(number: int) -> list[int]:
    sockets = [socket.socket() for _ in range(number)]
    for sock in sockets:
        sock.bind(("127.0.0.1", 0))
    ports = [int(sock.getsockname()[1]) for sock in sockets]
    for sock in sockets:
        sock.close()
    return ports
