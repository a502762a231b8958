"""The command `shardtune plan`: from its options to a plan, printed."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from data_tools.errors import RunError
from data_tools.report import make_console
from training.config import RunConfig
from training.ds_config import read_ds_file
from training.launch import visible_gpus
from training.plan.choose import candidates
from training.plan.duration import duration, read_measured
from training.plan.machine import tiers_here
from training.plan.plan import GIB, Ranks, Tiers
from training.plan.report import as_json, print_plan

if TYPE_CHECKING:
    from data_tools.shards import Shards


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line says; sizes in GiB, None = not said."""

    nodes: int | None = None
    gpus_per_node: int | None = None
    gpu_memory: float | None = None
    host_memory: float | None = None
    nvme: float | None = None
    tokens_per_second: float | None = None
    disk: float | None = None
    calibrate: Path | None = None
    ds_config: str | None = None
    seq_len: int | None = None


def show_plan(config: RunConfig, options: Options, *, as_json_: bool) -> None:
    """Print the plan of a run. Raises RunError for what cannot be planned."""
    _check_numbers(options)
    ranks = _ranks(config, options)
    shards = _open_shards(config) if options.seq_len is None else None
    files = _files(config, options.ds_config)
    own_file = config.deepspeed if options.ds_config in (None, "all") else files[0]
    tiers = _tiers(config, options, ranks)
    found = candidates(config, files, shards, ranks, tiers, seq_len=options.seq_len)
    own = next(item for item in found if item.path == own_file)
    if own.plan is None:
        raise RunError(own.mistake)
    took = duration(
        own.plan,
        tokens_per_second=options.tokens_per_second,
        disk=None if options.disk is None else options.disk * GIB,
        measured=None if options.calibrate is None else read_measured(options.calibrate),
    )
    if as_json_:
        typer.echo(as_json(own, found, took))
    else:
        print_plan(own, found, took, make_console())


def _check_numbers(options: Options) -> None:
    """Raise RunError with every number that is not above zero."""
    mistakes = [
        f"--{name.replace('_', '-')}: got {value:g}; expected a number above 0"
        for name in Options.__slots__
        if isinstance(value := getattr(options, name), int | float) and not isinstance(value, bool)
        if not 0 < value < float("inf")
    ]
    if mistakes:
        raise RunError("\n".join(mistakes))


def _ranks(config: RunConfig, options: Options) -> Ranks:
    """Return the ranks: as stated, as run.yaml says, or as this machine has them."""
    stated = options.gpus_per_node or config.launch.gpus_per_node
    # Someone who names GPUs means GPUs, also on a login node that has none.
    on_gpu = bool(
        options.gpu_memory or config.launch.gpu_memory_gib or options.gpus_per_node or visible_gpus()
    )
    per_node = stated or (len(visible_gpus()) if on_gpu else 1)
    if per_node == 0:
        raise RunError("--gpus-per-node: missing, and there is no GPU here to count; say how many a node has")
    return Ranks(nodes=options.nodes or config.slurm.nodes, per_node=per_node, on_gpu=on_gpu)


def _tiers(config: RunConfig, options: Options, ranks: Ranks) -> Tiers:
    """Return the tiers as stated; of the rest, those of this machine if the ranks would run on it."""
    here = Tiers()
    if ranks.on_gpu == bool(visible_gpus()):
        here = tiers_here(config, read_ds_file(config.deepspeed), ranks)
    elif config.launch.gpu_memory_gib is not None:
        here = Tiers(gpu=int(config.launch.gpu_memory_gib * GIB))
    stated = [
        None if size is None else int(size * GIB)
        for size in (options.gpu_memory, options.host_memory, options.nvme)
    ]
    there = (here.gpu, here.host, here.nvme)
    return Tiers(*(known if size is None else size for size, known in zip(stated, there, strict=True)))


def _open_shards(config: RunConfig) -> "Shards | None":
    """Return the run's shards, or None if there is no such folder yet."""
    from data_tools.shards import open_shards

    if not config.shards.exists():
        return None
    shards = open_shards(config.shards)
    if "train" not in shards.splits or shards.splits["train"].num_packs == 0:
        raise RunError(f"{config.shards}: has no train split; expected at least one pack to train on")
    return shards


def _files(config: RunConfig, wanted: str | None) -> list[Path]:
    """Return the ds_configs to plan with: the run's and all beside it, or the one that is named."""
    if wanted is not None and wanted != "all":
        return [Path(wanted).absolute()]
    beside = (path for path in config.deepspeed.parent.glob("*.json") if _holds_zero(path))
    return [config.deepspeed, *sorted(set(beside) - {config.deepspeed})]


def _holds_zero(path: Path) -> bool:
    """Return whether a JSON file is a DeepSpeed configuration."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(value, dict) and "zero_optimization" in value
