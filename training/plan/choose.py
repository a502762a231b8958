"""What the plan would choose: the largest micro-batch that fits, and the fastest ds_config that fits."""

import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_tools.errors import RunError, SettingsError
from training.config import RunConfig
from training.ds_config import expand_variables, offload_device, read_ds_file
from training.optim_checks import optimizer_mistakes
from training.plan.plan import Plan, Ranks, Tiers, plan_run
from training.plan.zero import read_zero_settings
from training.speed_checks import device_mistakes
from training.tuning.checks import offload_mistakes

if TYPE_CHECKING:
    from data_tools.shards import Shards

# Of what there is, `auto` leaves a tenth free: evaluation, fragments, other processes.
MARGIN = 0.9
# From the fastest to what fits nearly always: where the optimizer and the parameters are.
LADDER = (
    ("none", "none"),
    ("cpu", "none"),
    ("cpu", "cpu"),
    ("nvme", "none"),
    ("nvme", "cpu"),
    ("nvme", "nvme"),
)


@dataclass(frozen=True, slots=True)
class Candidate:
    """A file of ds_configs with the run's plan in it. mistake: why the run cannot have it; then there is no plan.

    largest: the most packs of a forward that fit, 0 if none does, None if no tier's size is known.
    """

    path: Path
    plan: Plan | None
    largest: int | None
    mistake: str = ""


def with_micro_packs(config: RunConfig, micro_packs: int) -> RunConfig:
    """Return the run with another number of packs in a forward."""
    return config.model_copy(update={"batch": config.batch.model_copy(update={"micro_packs": micro_packs})})


def possible_micro_packs(config: RunConfig, ranks: Ranks) -> tuple[int, ...]:
    """Return the numbers of packs of a forward that share out a step evenly, the largest first."""
    rows = ranks.size // config.batch.sequence_parallel
    if rows == 0 or ranks.size % config.batch.sequence_parallel or config.batch.packs_per_step % rows:
        return ()
    share = config.batch.packs_per_step // rows
    return tuple(number for number in range(share, 0, -1) if share % number == 0)


def largest_micro_packs(
    config: RunConfig,
    ds_config: Mapping[str, Any],
    shards: "Shards | None",
    ranks: Ranks,
    tiers: Tiers,
    *,
    seq_len: int | None = None,
) -> Plan | None:
    """Return the plan with the largest micro-batch that fits with a margin; None if not even one pack does."""
    tight = Tiers(
        *(None if size is None else int(size * MARGIN) for size in (tiers.gpu, tiers.host, tiers.nvme))
    )
    for number in possible_micro_packs(config, ranks):
        plan = plan_run(with_micro_packs(config, number), ds_config, shards, ranks, tight, seq_len=seq_len)
        if plan.fits:
            return replace(plan, tiers=tiers)
    return None


def resolve_micro_packs(
    config: RunConfig,
    ds_config: Mapping[str, Any],
    shards: "Shards | None",
    ranks: Ranks,
    tiers: Tiers,
    *,
    seq_len: int | None = None,
) -> tuple[RunConfig, str]:
    """Return the run with a number in place of `micro_packs: auto`, and a sentence that says why; else as it is.

    Raises RunError if a step cannot be shared out, if nothing fits, and if the memory of the device is not known.
    """
    if config.batch.micro_packs != "auto":
        return config, ""
    if (tiers.gpu if ranks.on_gpu else tiers.host) is None:
        raise RunError(
            "batch.micro_packs: auto needs to know the memory of a GPU, and there is none here; set "
            "launch.gpu_memory_gib, or a number in place of auto"
        )
    if not possible_micro_packs(config, ranks):
        plan_run(with_micro_packs(config, 1), ds_config, shards, ranks, tiers, seq_len=seq_len)  # says why
    best = largest_micro_packs(config, ds_config, shards, ranks, tiers, seq_len=seq_len)
    if best is None:
        one = plan_run(with_micro_packs(config, 1), ds_config, shards, ranks, tiers, seq_len=seq_len)
        raise RunError(
            f"batch.micro_packs: auto: not one pack fits with a tenth to spare: {one}; offload more "
            "(`shardtune plan` chooses a ds_config), take shorter packs or more ranks, or set a number"
        )
    return with_micro_packs(config, best.micro_packs), f"micro_packs: auto takes {best.micro_packs}: {best}"


def speed_rank(ds_config: Mapping[str, Any]) -> tuple[int, float]:
    """Return where a configuration stands from the fastest on; what is on no rung of the ladder comes last.

    On the same rung, that which leaves more of the optimizer on the GPU (Twin-Flow's ratio) is faster.
    """
    devices = (offload_device(ds_config, "optimizer"), offload_device(ds_config, "param"))
    rung = LADDER.index(devices) if devices in LADDER else len(LADDER)
    return rung, read_zero_settings(ds_config).optimizer_share


def candidates(
    config: RunConfig,
    files: Sequence[Path],
    shards: "Shards | None",
    ranks: Ranks,
    tiers: Tiers,
    *,
    seq_len: int | None = None,
) -> list[Candidate]:
    """Return the plans of a run with each of these files, the fastest first, with the micro-batch that is set."""
    read, found = [], []
    for path in files:
        try:
            read.append((path, read_ds_file(path)))
        except SettingsError as error:
            if path == config.deepspeed or len(files) == 1:
                raise
            found.append(Candidate(path, None, None, str(error).splitlines()[0]))
    read.sort(key=lambda item: (speed_rank(item[1]), item[0] != config.deepspeed, item[0].name))
    known = any(size is not None for size in (tiers.gpu, tiers.host, tiers.nvme))
    for path, base in read:
        if mistake := "; ".join(_mistakes(config, base, ranks)):
            found.append(Candidate(path, None, None, mistake))
            continue
        best = largest_micro_packs(config, base, shards, ranks, tiers, seq_len=seq_len) if known else None
        number = config.batch.micro_packs
        if number == "auto":
            number = best.micro_packs if best else 1
        plan = plan_run(with_micro_packs(config, number), base, shards, ranks, tiers, seq_len=seq_len)
        found.append(Candidate(path, plan, (best.micro_packs if best else 0) if known else None))
    return found


def _mistakes(config: RunConfig, base: dict[str, Any], ranks: Ranks) -> Iterator[str]:
    """Yield why the run's tuning, optimizer or ranks cannot be had with a file."""
    yield from device_mistakes(config, base, world_size=ranks.size, on_gpu=ranks.on_gpu)
    optimizer, param = offload_device(base, "optimizer"), offload_device(base, "param")
    yield from offload_mistakes(config.tuning, optimizer=optimizer, param=param)
    yield from optimizer_mistakes(config, base, offload=optimizer)


def choose(found: Sequence[Candidate]) -> Candidate | None:
    """Return the fastest that fits; None if none does or no tier's size is known."""
    return next((item for item in found if item.plan is not None and item.largest and item.plan.fits), None)


def nvme_space(ds_config: Mapping[str, Any]) -> int | None:
    """Return the free bytes where a configuration puts its swap files, if that place is on this machine."""
    zero = ds_config["zero_optimization"]
    for name in ("offload_optimizer", "offload_param"):
        section = zero.get(name) or {}
        if section.get("device") == "nvme":
            try:
                return shutil.disk_usage(expand_variables(section["nvme_path"])).free
            except (RunError, OSError):
                return None  # of the nodes, not of this machine
    return None
