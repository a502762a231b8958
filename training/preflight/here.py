"""`shardtune check RUN.yaml`: everything about a run that can be known here, in seconds and without a GPU.

Every part is looked at, whatever the others found: one report holds all mistakes. What only the nodes can tell is
on_nodes.py's.
"""

import json
import os
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_tools.errors import RunError, SettingsError, ShardError
from data_tools.shard_index import compute_fingerprint
from training.base_model import EMBEDDINGS, HEAD, parameter_shapes, read_header
from training.cluster.settings import SlurmConfig
from training.config import RunConfig, check_run, derive_steps, no_model
from training.done import nothing_left
from training.ds_config import VARIABLE, build_ds_config, nvme_paths, read_ds_file
from training.events import read_events
from training.launch import visible_gpus
from training.lease import read_holder
from training.nvme_checks import nvme_mistakes
from training.plan.choose import resolve_micro_packs, with_micro_packs
from training.plan.machine import tiers_here
from training.plan.plan import GIB, TIERS, Plan, Ranks, Tiers, plan_run
from training.plan.weights import base_weights, read_shape
from training.preflight.disk import gib, what_hinders
from training.preflight.findings import Finding, format_table, mistakes_in, summary
from training.preflight.tokens import check_template, check_tokenizer
from training.run_folder import RunFolder
from training.status.facts import newest_checkpoint
from training.status.starts import find_starts

if TYPE_CHECKING:
    from data_tools.shards import Shards

# The parts that lines of check_run belong to, by the key that they begin with; the others have the key's own name.
PARTS: Mapping[str, str] = {"evaluate": "settings", "epochs": "settings", "resize_embeddings": "model"}
NUM_SHOWN = 5
TIER_NAMES = {"gpu": "each GPU", "host": "each node's host", "nvme": "each node's NVMe"}


def check_here(config: RunConfig) -> list[Finding]:
    """Return what there is to say of a run whose settings could be read, part by part."""
    findings = [Finding("settings", "ok", f"run {config.name}, in {config.run_folder}")]
    shards = None
    try:
        from data_tools.shards import open_shards

        shards = open_shards(config.shards)
    except ShardError as error:
        findings.append(Finding("shards", "MISTAKE", str(error)))
        if not (config.model / "config.json").is_file():
            findings.append(Finding("model", "MISTAKE", no_model(config)))
    else:
        findings += _check_shards(config, shards)
    try:
        if shards is not None:
            check_run(config)
    except RunError as error:
        findings += [Finding(_part_of(line, config), "MISTAKE", line) for line in str(error).splitlines()]
    findings += _check_model(config)
    if shards is not None:
        findings += check_tokenizer(config, shards) if config.model.is_dir() else []
        findings.append(check_template(shards))
    ranks = expected_ranks(config)
    base = None
    try:
        base = read_ds_file(config.deepspeed)
    except SettingsError as error:
        findings += [Finding("deepspeed", "MISTAKE", line) for line in str(error).splitlines()]
    else:
        config, told = _settle(config, base, shards, ranks)
        findings += [*told, *_check_deepspeed(config, base, shards, ranks)]
    if base is not None and not mistakes_in(findings):
        findings += _check_plan(config, base, shards, ranks)
    if shards is not None:
        findings += _check_run_folder(config, shards)
    return findings


def print_check(config: RunConfig) -> int:
    """Print the report of `check_here` and return the exit code: 2 with any mistake."""
    findings = check_here(config)
    sys.stdout.write(f"{format_table(findings)}\n{summary(findings)}\n")
    return RunError.exit_code if mistakes_in(findings) else 0


def expected_ranks(config: RunConfig) -> Ranks | None:
    """Return the ranks that the run is to have; None if they are as many as GPUs, and there are none here."""
    here = len(visible_gpus())
    per_node = config.launch.gpus_per_node or here
    if not per_node:
        return None
    if _trains_here(config):
        return Ranks(nodes=1, per_node=per_node, on_gpu=here > 0)
    return Ranks(nodes=config.slurm.nodes, per_node=per_node, on_gpu=config.slurm.gpus is not None)


def _trains_here(config: RunConfig) -> bool:
    """Return whether the run is meant for this machine: nothing is said of a job."""
    return config.slurm == SlurmConfig()


def _tiers(config: RunConfig, base: Mapping[str, Any], ranks: Ranks) -> Tiers:
    """Return the memory that the run has: this machine's, or what the settings say of the nodes of a job."""
    if _trains_here(config):
        return tiers_here(config, base, ranks)
    stated = config.launch.gpu_memory_gib
    return Tiers(gpu=None if stated is None else int(stated * GIB))


def _part_of(line: str, config: RunConfig) -> str:
    if line.startswith(str(config.shards)):
        return "shards"
    key = line.partition(":")[0].partition(".")[0]
    return PARTS.get(key, key)


def _check_shards(config: RunConfig, shards: "Shards") -> Iterator[Finding]:
    if compute_fingerprint(shards.index) != shards.fingerprint:
        yield Finding(
            "shards",
            "MISTAKE",
            f"{config.shards}: index.json was changed: its fields do not give its fingerprint; pack again",
        )
    train = shards.splits.get("train")
    if train is None or not train.num_packs:
        return  # said by check_run
    try:
        num_steps = derive_steps(config, train.num_packs)
    except RunError:
        num_steps = 0
    yield Finding(
        "shards",
        "ok",
        f"{train.num_packs:,} train packs of {shards.seq_len:,} tokens, {num_steps:,} steps; sealed, sizes as in the "
        f"index, fingerprint {shards.fingerprint[:12]}; `shardtune verify` reads every byte",
    )
    if 0 < num_steps <= (warmup := config.optim.warmup_steps(num_steps)):
        said = (
            f"optim.warmup: {warmup} steps of {num_steps}: the run hardly comes to its learning rate optim.lr"
        )
        yield Finding("settings", "warning", said)


def _check_model(config: RunConfig) -> Iterator[Finding]:
    """Yield what is wrong with the weights: files that are missing or cut short, other shapes than config.json's.

    What is there at all is said by check_run.
    """
    if config.from_scratch:
        yield Finding("model", "ok", f"{config.model}: weights are drawn anew")
        return
    if not (config.model / "config.json").is_file() or not any(config.model.glob("*.safetensors")):
        return
    found = [Finding("model", "MISTAKE", mistake) for mistake in _weight_mistakes(config.model)]
    yield from found
    if not found:
        size = sum(path.stat().st_size for path in config.model.glob("*.safetensors"))
        yield Finding(
            "model", "ok", f"{config.model}: {gib(size)} of weights, whole, of the shapes in config.json"
        )


def _weight_mistakes(folder: Path) -> Iterator[str]:
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        named = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        missing = sorted(name for name in named if not (folder / name).is_file())
        if missing:
            yield f"{folder}: files that {index.name} names are not there: {', '.join(missing)}; fetch them"
            return
    try:
        for path in sorted(folder.glob("*.safetensors")):
            header = read_header(path)
            end = max(
                (entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"),
                default=0,
            )
            with path.open("rb") as file:
                expected = 8 + int.from_bytes(file.read(8), "little") + end
            if path.stat().st_size != expected:
                yield f"{path}: got {path.stat().st_size} bytes; expected {expected}; fetch it again"
                return
        shapes = parameter_shapes(folder)
        expected_shapes = base_weights(read_shape(folder))
    except RunError as error:
        yield str(error).removeprefix("model: ")
        return
    wrong = [
        f"{name} {list(shapes[name]) if name in shapes else 'is missing'}, not {list(shape)}"
        for name, shape in expected_shapes.items()
        if shapes.get(name) != shape and not (name == EMBEDDINGS and name not in shapes and HEAD in shapes)
    ]
    if wrong:
        more = f"; and {len(wrong) - NUM_SHOWN} more" if len(wrong) > NUM_SHOWN else ""
        yield f"{folder}: the weights do not fit config.json: {'; '.join(wrong[:NUM_SHOWN])}{more}"


def _settle(
    config: RunConfig, base: Mapping[str, Any], shards: "Shards | None", ranks: Ranks | None
) -> tuple[RunConfig, list[Finding]]:
    """Return the run with a number in place of `micro_packs: auto`, and what there is to say of it."""
    if config.batch.micro_packs != "auto":
        return config, []
    try:
        if ranks is not None and shards is not None:
            settled, why = resolve_micro_packs(config, base, shards, ranks, _tiers(config, base, ranks))
            return settled, [Finding("plan", "ok", why)]
    except RunError as error:
        return with_micro_packs(config, 1), [Finding("plan", "MISTAKE", str(error))]
    return with_micro_packs(config, 1), []


def _check_deepspeed(
    config: RunConfig, base: Mapping[str, Any], shards: "Shards | None", ranks: Ranks | None
) -> Iterator[Finding]:
    world_size = ranks.nodes * ranks.per_node if ranks is not None else 1
    mistakes: list[str] = []
    unset = [name for path in nvme_paths(base) for name in _variables(path) if name not in os.environ]
    try:
        build_ds_config(config, world_size=world_size, run_folder=config.run_folder, base=base)
        if _trains_here(config) and shards is not None and ranks is not None and not unset:
            mistakes = list(nvme_mistakes(config, base, shards, ranks))
    except RunError as error:
        mistakes = str(error).splitlines()
    yield from (Finding("deepspeed", "MISTAKE", mistake) for mistake in mistakes)
    if ranks is None:
        yield Finding(
            "deepspeed",
            "warning",
            "launch.gpus_per_node is null and this machine has no GPU: how a step is shared out, and memory, are not "
            "checked; set it to the GPUs of a node",
        )
    for name in unset:
        yield Finding(
            "deepspeed",
            "warning",
            f"nvme_path: the variable {name} is not set here; be sure that it is on the nodes, spelled like this",
        )
    if not mistakes:
        shared = f"shared by {world_size} ranks" if ranks is not None else "not yet shared out"
        yield Finding(
            "deepspeed", "ok", f"{config.deepspeed}: a step of {config.batch.packs_per_step} packs, {shared}"
        )


def _variables(path: str) -> list[str]:
    return [match[1] or match[2] for match in VARIABLE.finditer(path)]


def _check_plan(
    config: RunConfig, base: Mapping[str, Any], shards: "Shards | None", ranks: Ranks | None
) -> Iterator[Finding]:
    """Yield whether the run fits where that can be judged, and whether its checkpoints fit on the disk."""
    if ranks is None:
        return  # what is not known of the ranks has been said
    try:
        plan = plan_run(config, base, shards, ranks, _tiers(config, base, ranks))
    except RunError as error:
        yield Finding("plan", "MISTAKE", str(error))
        return
    needed = ", ".join(
        f"{plan.needed(tier) / GIB:,.1f} GiB on {TIER_NAMES[tier]}" for tier in TIERS if plan.needed(tier)
    )
    if plan.misfit is not None:
        yield Finding("plan", "MISTAKE", f"{plan.misfit}; see shardtune plan for what fits")
    else:
        judged = (
            "fits"
            if plan.tiers != Tiers()
            else "the memory of the nodes is not known here; see shardtune plan"
        )
        yield Finding("plan", "ok", f"{plan.parameters / 1e9:,.2f} G weights need {needed}; {judged}")
    yield _check_disk(config, plan)


def _check_disk(config: RunConfig, plan: Plan) -> Finding:
    """Compare what the checkpoints take at most, one more than are kept, with the room there is."""
    forever = (plan.num_steps or 0) // config.save.keep_every if config.save.keep_every else 0
    count = config.save.keep + 1 + forever
    there = sum(
        path.stat().st_size
        for path in (config.run_folder / "checkpoints").rglob("*.safetensors")
        if path.is_file()
    )
    needed = max(0, plan.checkpoint_bytes * count - there)
    size = f"{count} checkpoints of {gib(plan.checkpoint_bytes)} at a time"
    reason = what_hinders(config.run_folder, needed)
    if reason is not None:
        return Finding("disk", "MISTAKE", f"runs: {reason}: {size}; make room, or set save.keep lower")
    return Finding("disk", "ok", f"room for {size}")


def _check_run_folder(config: RunConfig, shards: "Shards") -> Iterator[Finding]:
    run = RunFolder(config.run_folder)
    try:
        holder = read_holder(run.path / "lease.json")
    except OSError as error:
        yield Finding("run folder", "MISTAKE", f"runs: {config.runs}: {error.strerror}; expected a folder")
        return
    if holder is not None:
        yield Finding(
            "run folder", "warning", f"{run.path}: held by {holder}; it must end before another start"
        )
    try:
        run.check_unchanged(config, shards_fingerprint=shards.fingerprint)
    except (RunError, OSError) as error:
        yield Finding("run folder", "MISTAKE", str(error))
        return
    problems: list[str] = []
    newest_checkpoint(run, time.time(), problems)
    if problems:
        yield from (Finding("run folder", "MISTAKE", f"{run.path}: {problem}") for problem in problems)
        return
    started = bool(find_starts(read_events(run.path)))
    going = "no start of it has ended in order" if started else "not started yet"
    state = run.state or (going if run.config_path.exists() else "not there yet")
    if state == "done" and (said := nothing_left(config, shards)):
        yield Finding("run folder", "warning", said)
        return
    going_on = "; goes on from its newest checkpoint" if run.has_checkpoint() else ""
    yield Finding("run folder", "ok", f"{run.path}: {state}{going_on}")
