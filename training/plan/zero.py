"""What of a DeepSpeed configuration memory depends on, with DeepSpeed 0.19.8's defaults for what is left out."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from training.ds_config import offload_device

MIB = 2**20


@dataclass(frozen=True, slots=True)
class ZeroSettings:
    """Sizes are numbers of elements, but for `swap_bytes`: what is smaller than that many bytes is never swapped.

    optimizer, param: none, cpu or nvme. buffer_size None: that of the largest parameter's part (see size_nvme_buffers).
    optimizer_share: of the optimizer's sub-groups that are offloaded (Twin-Flow's ratio).
    """

    optimizer: str
    param: str
    pinned_optimizer: bool
    pinned_param: bool
    sub_group: int
    reduce_bucket: int
    contiguous_gradients: bool
    prefetch_bucket: int
    persistence: int
    max_live: int
    max_reuse: int
    swap_bytes: int
    optimizer_buffers: int
    param_buffers: int
    buffer_size: int | None
    max_in_cpu: int
    optimizer_share: float
    secondary_ranks: int
    communication: str | None


def read_zero_settings(ds_config: Mapping[str, Any]) -> ZeroSettings:
    """Read a file of ds_configs, or a merged configuration."""
    zero: Mapping[str, Any] = ds_config["zero_optimization"]
    optimizer: Mapping[str, Any] = zero.get("offload_optimizer") or {}
    param: Mapping[str, Any] = zero.get("offload_param") or {}
    size = param.get("buffer_size")
    return ZeroSettings(
        optimizer=offload_device(ds_config, "optimizer"),
        param=offload_device(ds_config, "param"),
        pinned_optimizer=bool(optimizer.get("pin_memory", True)),
        pinned_param=bool(param.get("pin_memory", True)),
        sub_group=int(zero.get("sub_group_size", 1e9)),
        reduce_bucket=int(zero.get("reduce_bucket_size", 5e8)),
        contiguous_gradients=bool(zero.get("contiguous_gradients", True)),
        prefetch_bucket=int(zero.get("stage3_prefetch_bucket_size", 5e7)),
        persistence=int(zero.get("stage3_param_persistence_threshold", 1e5)),
        max_live=int(zero.get("stage3_max_live_parameters", 1e9)),
        max_reuse=int(zero.get("stage3_max_reuse_distance", 1e9)),
        swap_bytes=max(MIB, int((ds_config.get("aio") or {}).get("block_size", MIB))),
        optimizer_buffers=int(optimizer.get("buffer_count", 4)),
        param_buffers=int(param.get("buffer_count", 5)),
        buffer_size=None if size is None else int(size),
        max_in_cpu=int(param.get("max_in_cpu", 1e9)),
        optimizer_share=float(optimizer.get("ratio", 1.0)),
        secondary_ranks=int(zero.get("zero_hpz_partition_size", 1)),
        communication=ds_config.get("communication_data_type"),
    )
