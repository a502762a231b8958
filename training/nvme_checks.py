"""What can be known to be wrong with offload to NVMe before a run starts: buffers and room, by arithmetic."""

import math
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from training.config import RunConfig
from training.ds_config import expand_variables, nvme_paths, offload_device
from training.plan.plan import GIB, Ranks, Tiers, plan_run
from training.plan.weights import read_shape, run_weights
from training.preflight.disk import what_hinders

if TYPE_CHECKING:
    from data_tools.shards import Shards


def nvme_mistakes(
    config: RunConfig, base: Mapping[str, Any], shards: "Shards", ranks: Ranks
) -> Iterator[str]:
    """Yield what is wrong with the offload to NVMe of a run whose `ranks` are all on this machine.

    base: the file of ds_configs. Raises RunError for a variable in `nvme_path` that is not set.
    """
    paths = [Path(expand_variables(path)) for path in nvme_paths(base)]
    if not paths:
        return
    yield from _buffer_mistakes(config, base, world_size=ranks.size, vocab_size=shards.vocab_size)
    needed = plan_run(config, base, shards, ranks, Tiers()).needed("nvme")
    for path in paths:
        folder = next(folder for folder in (path, *path.parents) if folder.is_dir())
        if (reason := what_hinders(path, 0)) is not None:
            yield f"nvme_path: {path}: cannot be made: {reason}; name a folder on the node's own disk"
            continue
        free = shutil.disk_usage(folder).free
        if free < needed:
            yield (
                f"nvme_path: {path}: too small: got {free / GIB:.2f} GiB free; expected {needed / GIB:.2f} GiB for the "
                f"swap files of {ranks.per_node} ranks; make room, name a larger disk, or offload to cpu"
            )


def _buffer_mistakes(
    config: RunConfig, base: Mapping[str, Any], *, world_size: int, vocab_size: int
) -> Iterator[str]:
    """Yield a mistake if the buffers for parameters from the disk are too small for the largest one's part.

    DeepSpeed itself says it with an assertion on each rank.
    """
    size = (base["zero_optimization"].get("offload_param") or {}).get("buffer_size")
    if offload_device(base, "param") != "nvme" or size is None:
        return
    shape = read_shape(config.model, vocab_size=vocab_size if config.resize_embeddings else None)
    largest = max(run_weights(config, shape), key=lambda weight: weight.numel)
    needed = math.ceil(largest.numel / world_size)
    if size < needed:
        yield (
            "zero_optimization.offload_param.buffer_size: too small for the largest weight's part: got "
            f"{int(size)} elements; expected at least {needed}, for {largest.name} {list(largest.shape)} on "
            f"{world_size} ranks; take it out, and it is set to that"
        )
