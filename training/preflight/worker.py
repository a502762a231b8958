"""A rank of `shardtune check --on-nodes`: `python -m training.preflight.worker RUN_FOLDER/config.yaml`.

The ranks meet, go through the parts together, and share what each of them found after every part; rank 0 prints. A
part that takes longer than its limit is ended by the watchdog, which names the rank and the node.
"""

import math
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from deepspeed.accelerator import get_accelerator

from data_tools.errors import ShardtuneError
from data_tools.shards import Shards, open_shards
from training.clock import Clock
from training.config import RunConfig, read_run_config
from training.data import Slot, make_batch
from training.distributed import World, barrier, find_world, join
from training.ds_config import build_ds_config, expand_variables, nvme_folder, nvme_paths, read_ds_file
from training.engine import build_engine
from training.heartbeat import Place, write_json
from training.nodes import add_bad_nodes, node_name
from training.ops import CACHE_VARIABLE, cache_folder, ensure_ops, needed_ops, path_to_ninja
from training.plan.plan import GIB, Ranks, Tiers, plan_run
from training.preflight.findings import Finding, format_table, mistakes_in, summary
from training.preflight.measure import (
    all_reduce_speed,
    compute_speed,
    disk_speed,
    link_speeds,
    memory,
    slowest,
    versions,
)
from training.run_folder import RunFolder, watch_parent
from training.step import train_step
from training.throughput import memory as used_memory
from training.watchdog import watched

REPORT = "report.json"
# Seconds that a part may take; less with a short `watchdog`: no short part takes longer, no long one ten times longer.
SHORT = {"versions": 60.0, "memory": 60.0, "shared disk": 120.0, "nvme": 120.0}
SHORT |= {"compute": 120.0, "all-reduce": 120.0, "links": 120.0}
LONG = {"rendezvous": 300.0, "ops": 900.0, "step": 1800.0, "end": 60.0}
# How many times slower than the median a rank or a node must be to be named. CPU ranks share their cores.
SLOW_DISK, SLOW_GPU, SLOW_CPU, SLOW_LINK = 4.0, 1.3, 3.0, 3.0
SHM_BYTES_PER_RANK = 68 * 2**20


class Checks:
    """The parts on one rank; every rank calls them in the same order, and gets what all ranks found."""

    def __init__(self, config: RunConfig, run: RunFolder, world: World, place: Place) -> None:
        self.config, self.run, self.world, self.place = config, run, world, place
        self.findings: list[Finding] = []
        self.bad_nodes: list[str] = []
        self.nodes: Sequence[str] = []
        self.on_gpu = get_accelerator().device_name() != "cpu"
        base = read_ds_file(config.deepspeed)
        self.ds_config = build_ds_config(
            config, world_size=world.size, run_folder=run.path, base=base, pin_memory=self.on_gpu
        )

    def all_ranks(self, part: str, measure: Callable[[], Any]) -> list[Any]:
        """Run a part on every rank and return what each measured; None, and a finding, where it failed."""
        self.place.at(part)
        try:
            mine, error = measure(), ""
        except (OSError, ShardtuneError) as failure:
            mine, error = None, str(failure)
        gathered: list[Any] = [None] * self.world.size
        dist.all_gather_object(gathered, (mine, error, node_name()))
        self.nodes = [node for _, _, node in gathered]
        for rank, (_, said, _) in enumerate(gathered):
            if said:
                self.blame(part, rank, said)
        return [measured for measured, _, _ in gathered]

    def blame(self, part: str, rank: int, what: str) -> None:
        """Note what is wrong with the node of a rank."""
        self.findings.append(Finding(part, "MISTAKE", f"node {self.nodes[rank]}, rank {rank}: {what}"))
        self.bad_nodes.append(self.nodes[rank])

    def note(self, part: str, found: str) -> None:
        """Note what is as it should be, unless something of this part is not."""
        if not any(finding.part == part for finding in self.findings):
            self.findings.append(Finding(part, "ok", found))

    def on_first_of_node(self, measure: Callable[[], Any]) -> Callable[[], Any]:
        """Return what measures on the first rank of each node alone."""
        return measure if self.world.local_rank == 0 else lambda: None

    def slow(self, part: str, speeds: Sequence[float | None], factor: float) -> None:
        """Blame the nodes of ranks that are slower than the median by more than `factor`."""
        known = {rank: speed for rank, speed in enumerate(speeds) if speed is not None}
        for rank, times in slowest(known, factor).items():
            self.blame(part, rank, f"{times:.1f} times slower than the others")

    def versions(self) -> None:
        """Compare the versions on all ranks; what most of them have is taken for right."""
        found = self.all_ranks("versions", versions)
        told = []
        for name in found[0]:
            values = [versions_of[name] for versions_of in found]
            usual = max(dict.fromkeys(values), key=values.count)
            told.append(f"{name} {usual}")
            for rank, value in enumerate(values):
                if value != usual:
                    self.blame("versions", rank, f"{name}: got {value}; the other ranks have {usual}")
        self.note("versions", f"the same on {self.world.size} ranks: {', '.join(told)}")

    def memory(self, shards: Shards) -> None:
        """Compare what is free on each node with what the run needs there."""
        found = self.all_ranks("memory", memory)
        per_node = max(self.nodes.count(node) for node in self.nodes)
        ranks = Ranks(nodes=len(set(self.nodes)), per_node=per_node, on_gpu=self.on_gpu)
        plan = plan_run(self.config, self.ds_config, shards, ranks, Tiers())
        needed = {
            "shm free": per_node * SHM_BYTES_PER_RANK,
            "host": plan.needed("host"),
            "device": plan.needed("gpu"),
        }
        names = {"shm free": "free in /dev/shm", "host": "free on the host", "device": "free on the GPU"}
        for rank, there in enumerate(found):
            for what, least in needed.items():
                if what in there and there[what] < least and (what == "device" or self._is_first(rank)):
                    self.blame(
                        "memory",
                        rank,
                        f"got {there[what] / GIB:.1f} GiB {names[what]}; expected {least / GIB:.1f} GiB",
                    )
        least_of = ", ".join(
            f"{min(there[what] for there in found) / GIB:.1f} GiB {name}"
            for what, name in names.items()
            if what in found[0]
        )
        self.note("memory", f"at least {least_of}")

    def _is_first(self, rank: int) -> bool:
        return self.nodes.index(self.nodes[rank]) == rank

    def disks(self) -> None:
        """Write and read a file in the run's folder from each node, and in the NVMe folders."""
        folders = [("shared disk", self.run.path)]
        folders += [("nvme", Path(expand_variables(path))) for path in nvme_paths(self.ds_config)]
        for part, folder in folders:
            found = self.all_ranks(
                part, self.on_first_of_node(partial(_make_and_time, folder, self.world.rank))
            )
            for way in ("write", "read"):
                self.slow(part, [speeds[way] if speeds else None for speeds in found], SLOW_DISK)
            there = [speeds for speeds in found if speeds]
            if there:
                least = {way: min(speeds[way] for speeds in there) / 2**20 for way in ("write", "read")}
                self.note(
                    part,
                    f"{folder}: each node writes at least {least['write']:.0f}, reads {least['read']:.0f} MiB/s",
                )

    def ops(self) -> None:
        """Build DeepSpeed's ops on each node where they are missing."""
        names = needed_ops(self.ds_config, on_gpu=self.on_gpu)
        env = {**os.environ, CACHE_VARIABLE: str(cache_folder()), "PATH": path_to_ninja()}
        os.environ[CACHE_VARIABLE] = env[CACHE_VARIABLE]
        self.all_ranks("ops", self.on_first_of_node(lambda: ensure_ops(names, env)))
        self.note(
            "ops", f"built: {', '.join(name.removesuffix('Builder') for name in names) or 'none needed'}"
        )

    def speeds(self) -> None:
        """Measure each rank alone, all together, and each with its neighbours."""
        alone = self.all_ranks("compute", compute_speed)
        self.slow("compute", alone, SLOW_GPU if self.on_gpu else SLOW_CPU)
        self.note("compute", f"{min(alone) / 1e12:.2f} to {max(alone) / 1e12:.2f} TFLOP/s a rank")
        if self.world.size == 1:
            return
        together = self.all_ranks("all-reduce", lambda: all_reduce_speed(self.world))
        self.note("all-reduce", f"{min(together) / 2**30:.2f} GiB/s of 64 MiB over {self.world.size} ranks")
        links = self.all_ranks("links", lambda: link_speeds(self.world))
        # A rank whose every link is slow is the slow end of them.
        self.slow("links", [max(found.values()) if found else None for found in links], SLOW_LINK)
        worst = min(speed for found in links for speed in found.values())
        self.note("links", f"at least {worst / 2**30:.2f} GiB/s between neighbouring ranks")

    def step(self, shards: Shards) -> None:
        """Take one real step with the fullest packs; nothing is saved."""
        self.all_ranks(
            "step", lambda: None
        )  # from here on a rank that fails ends the check, as it would end the run
        clock = Clock()
        split = shards.splits["train"]
        fullest = np.argsort(split.tokens)[-self.config.batch.packs_per_forward :]
        slots = [Slot(0, int(pack), True) for pack in fullest]
        self.ds_config["gradient_accumulation_steps"] = 1
        with nvme_folder(self.ds_config):
            engine = build_engine(self.config, self.ds_config, self.world, vocab_size=shards.vocab_size)
            loaded = clock.seconds()
            targets = self.world.data_size * sum(int(split.target_tokens[pack]) for pack in fullest)
            result = train_step(
                engine,
                [make_batch(split, slots)],
                self.world,
                num_targets=max(1, targets),
                lr=self.config.optim.lr,
                seed=self.config.seed,
                clock=clock,
                clip=self.config.optim.clip,
            )
            clock.metrics()
        used = self.all_ranks("step", used_memory)
        memory_used = ", ".join(
            f"{name.removeprefix('memory/')} {max(u[name] for u in used):.1f}" for name in used[0]
        )
        tokens = int(result.num_tokens)
        self.note(
            "step",
            f"{tokens:,} tokens in {clock.seconds() - loaded:.1f} s, the first one; loss {result.loss:.4f}; loaded in "
            f"{loaded:.1f} s; at most on a rank: {memory_used}",
        )


def _make_and_time(folder: Path, rank: int) -> Mapping[str, float]:
    folder.mkdir(parents=True, exist_ok=True)
    return disk_speed(folder, rank)


def limits_of(config: RunConfig) -> dict[str, float]:
    """Return the seconds that each part may take."""
    most = config.watchdog or math.inf
    short = {part: min(seconds, most) for part, seconds in SHORT.items()}
    return short | {part: min(seconds, 10 * most) for part, seconds in LONG.items()}


def check_rank(config: RunConfig) -> int:
    """Go through the parts as one of the ranks; return 0 if all is well, else 1. Raises ShardtuneError."""
    run = RunFolder(config.run_folder / "preflight")
    run.path.mkdir(parents=True, exist_ok=True)
    world = replace(find_world(), sequence_size=config.batch.sequence_parallel)
    limits = limits_of(config)
    with watched(run, world, min(limits.values()), limits=limits, blame=config.run_folder) as place:
        join(world)
        checks = Checks(config, run, world, place)
        shards = open_shards(config.shards)
        checks.versions()
        checks.memory(shards)
        checks.disks()
        checks.ops()
        checks.speeds()
        checks.step(shards)
        fine = not mistakes_in(checks.findings)
        if world.is_main:
            tell(checks)
        barrier()
    if world.is_main:
        run.write_state("done")
    dist.destroy_process_group()
    return 0 if fine else 1


def tell(checks: Checks) -> None:
    """Print the report, and leave it in the folder of the check; note the bad nodes in the run's folder."""
    findings, nodes = checks.findings, list(dict.fromkeys(checks.bad_nodes))
    sys.stdout.write(
        f"{format_table(findings)}\n{checks.world.size} ranks on {len(set(checks.nodes))} nodes: "
    )
    sys.stdout.write(f"{summary(findings)}\n")
    sys.stdout.flush()
    add_bad_nodes(checks.config.run_folder, nodes)
    report = {"fine": not mistakes_in(findings), "findings": [asdict(finding) for finding in findings]}
    write_json(checks.run.path / REPORT, report | {"bad_nodes": nodes})


def run_rank(config: RunConfig) -> int:
    """Check as one rank; return its exit code: 0 all is well, 1 something is not, 2 the user's mistake."""
    watch_parent()
    try:
        return check_rank(config)
    except (ShardtuneError, OSError, torch.OutOfMemoryError) as error:
        rank = os.environ.get("RANK", "?")
        sys.stderr.write(f"node {node_name()}, rank {rank}: {error}\n")
        if isinstance(error, ShardtuneError):
            RunFolder(config.run_folder / "preflight").write_mistake(error)
            return error.exit_code
        return 1


if __name__ == "__main__":
    sys.exit(run_rank(read_run_config(Path(sys.argv[1]))))
