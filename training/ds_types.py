"""What kind of value each key of a file of `ds_configs` takes; DeepSpeed itself says so in a rank's traceback."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

ZERO, PARAM, OPTIMIZER = (
    "zero_optimization",
    "zero_optimization.offload_param",
    "zero_optimization.offload_optimizer",
)
# "" are the keys of the file itself.
FLAGS: Mapping[str, frozenset[str]] = {
    "": frozenset(
        {
            *(
                "disable_allgather",
                "zero_allow_untested_optimizer",
                "zero_force_ds_cpu_optimizer",
                "dump_state",
            ),
            *("wall_clock_breakdown", "memory_breakdown", "disable_python_gc"),
        }
    ),
    ZERO: frozenset(
        {
            *("contiguous_gradients", "reduce_scatter", "overlap_comm", "use_multi_rank_bucket_allreduce"),
            *("allgather_partitions", "round_robin_gradients", "stage3_use_all_reduce_for_fetch_params"),
            *("stage3_allgather_sequential", "stage3_gather_16bit_weights_on_model_save"),
            *("zero_quantized_weights", "zero_quantized_gradients", "zero_quantized_nontrainable_weights"),
            *("memory_efficient_linear", "override_module_apply", "ignore_unused_parameters"),
            *("parameter_alignment", "load_from_fp32_weights", "log_trace_cache_warnings"),
            "enable_sanity_checks",
        }
    ),
    PARAM: frozenset({"pin_memory"}),
    OPTIMIZER: frozenset({"pin_memory", "pipeline_read", "pipeline_write", "fast_init"}),
    "aio": frozenset({"single_submit", "overlap_events", "use_gds"}),
}
# Whole numbers and the smallest of each. Where DeepSpeed takes 0 and then cannot work, it is 1.
WHOLE_NUMBERS: Mapping[str, Mapping[str, int]] = {
    ZERO: {
        "reduce_bucket_size": 1,
        "allgather_bucket_size": 1,
        "sub_group_size": 1,
        "stage3_prefetch_bucket_size": 0,
        "stage3_param_persistence_threshold": 0,
        "stage3_model_persistence_threshold": 0,
        "stage3_max_live_parameters": 0,
        "stage3_max_reuse_distance": 0,
        "stage3_module_granularity_threshold": 0,
        "zero_hpz_partition_size": 1,
    },
    PARAM: {"buffer_count": 1, "buffer_size": 1, "max_in_cpu": 0},
    OPTIMIZER: {"buffer_count": 1},
    "aio": {"block_size": 1, "queue_depth": 1, "intra_op_parallelism": 1},
}
SHARES: Mapping[str, frozenset[str]] = {OPTIMIZER: frozenset({"ratio"})}
COMMUNICATION_TYPES = ("fp32", "bf16", "fp16")
NULLABLE = ("overlap_comm", "communication_data_type")
OBJECTS = ("leaf_module", "comms_logger", "flops_profiler", "timers")


def type_mistakes(base: Mapping[str, Any]) -> Iterator[str]:
    """Yield `key: got …; expected …` for each value of the wrong kind or size. "auto" is left to others."""
    for section in ("", ZERO, PARAM, OPTIMIZER, "aio"):
        values: Any = base
        for part in section.split(".") if section else ():
            values = values.get(part) if isinstance(values, Mapping) else None
        if not isinstance(values, Mapping):
            continue
        for key, value in values.items():
            left = value == "auto" or (value is None and key in NULLABLE)
            expected = None if left else _expected(section, key, value)
            if expected:
                path = f"{section}.{key}" if section else key
                yield f"{path}: got {json.dumps(value)}; expected {expected}"


def _expected(section: str, key: str, value: Any) -> str | None:
    """Return what was expected of a value; None if it is right, or not known here."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if key in FLAGS.get(section, ()):
        return None if isinstance(value, bool) else "true or false"
    if key in SHARES.get(section, ()):
        return None if number and 0 <= value <= 1 else "a number from 0 to 1"
    if key in WHOLE_NUMBERS.get(section, {}):
        least = WHOLE_NUMBERS[section][key]
        return (
            None if number and value >= least and value == value // 1 else f"a whole number from {least} up"
        )
    if section == "" and key == "communication_data_type":
        return None if value in COMMUNICATION_TYPES else f"one of {', '.join(COMMUNICATION_TYPES)}"
    if key in OBJECTS:
        return None if isinstance(value, Mapping) else "an object"
    return None
