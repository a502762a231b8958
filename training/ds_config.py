"""The DeepSpeed configuration of a run: the user's JSON for ZeRO and offload, plus what run.yaml owns.

Each key has one owner. DeepSpeed 0.19.8 takes a misspelt top-level key in silence, trains with ZeRO off for
`"stage": "auto"` and clips at the string for `"gradient_clipping": "auto"`; so the file is checked here, all
mistakes in one report, without importing torch.
"""

import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from data_tools.errors import RunError, SettingsError
from data_tools.settings import did_you_mean, read_text
from training.config import RunConfig, accumulation
from training.ds_optimizer import optimizer_keys
from training.ds_types import type_mistakes
from training.optim_checks import optimizer_mistakes
from training.speed_checks import device_mistakes
from training.tuning.checks import offload_mistakes

# The lists of keys below were read from DeepSpeed 0.19.8 (runtime/config.py, runtime/constants.py,
# runtime/zero/config.py, runtime/zero/offload_config.py, runtime/swap_tensor/constants.py).

# Keys that run.yaml owns, and where; None: the trainer decides by itself.
OWNED_BY_RUN: Mapping[str, str | None] = {
    "train_batch_size": "batch.packs_per_step",
    "train_micro_batch_size_per_gpu": "batch.micro_packs",
    "gradient_accumulation_steps": "batch.packs_per_step and batch.micro_packs",
    "managed_gradient_accumulation": None,
    "gradient_clipping": "optim.clip",
    "optimizer": "optim",
    "scheduler": "optim.schedule and optim.warmup",
    "bf16": "precision",
    "bfloat16": "precision",
    "fp16": "precision",
    "torch_autocast": "precision",
    "data_types": "precision",
    "activation_checkpointing": "activation_checkpointing",
    "steps_per_print": "log.every_steps",
    "tensorboard": "log.tensorboard",
    "csv_monitor": "log",
    "wandb": "log",
    "comet": "log",
    "checkpoint": "save",
    "gradient_allreduce_op": None,
    "prescale_gradients": None,
    "gradient_predivide_factor": None,
    "dataloader_drop_last": None,
    "data_efficiency": None,
    "seed": "seed",
}
# Keys that the file may hold: ZeRO, offload, communication, I/O, and DeepSpeed's own diagnostics.
OWNED_BY_FILE = (
    "zero_optimization",
    "aio",
    "communication_data_type",
    "disable_allgather",
    "zero_allow_untested_optimizer",
    "zero_force_ds_cpu_optimizer",
    "comms_logger",
    "dump_state",
    "wall_clock_breakdown",
    "memory_breakdown",
    "flops_profiler",
    "disable_python_gc",
    "log_level",
    "timers",
)
# Their presence makes DeepSpeed 0.19.8 raise.
REMOVED = (
    "nebula",
    "compression_training",
    "amp",
    "quantize_training",
    "sparse_gradients",
    "eigenvalue",
    "sparse_attention",
    "elasticity",
    "graph_harvesting",
    "curriculum_learning",
    "progressive_layer_drop",
    "zero_optimization.mics_shard_size",
    "zero_optimization.mics_hierarchical_params_gather",
    "zero_optimization.zeropp_loco_param",
)
# Real keys of DeepSpeed that are not proved with this trainer's loss, checkpoint or export.
NOT_SUPPORTED = (
    "pipeline",
    "tensor_parallel",
    "expert_parallel",
    "sequence_parallel_size",
    "hybrid_engine",
    "autotuning",
    "compile",
    "weight_quantization",
    "datastates_ckpt",
    "use_data_before_expert_parallelism",
    "seq_parallel_communication_data_type",
    "zero_optimization.zenflow",
    "zero_optimization.offload_optimizer.super_offload",
)
OFFLOAD_KEYS = frozenset({"device", "nvme_path", "buffer_count", "pin_memory"})
KNOWN_BELOW: Mapping[str, frozenset[str]] = {
    "zero_optimization": frozenset(
        {
            *("stage", "contiguous_gradients", "reduce_scatter", "reduce_bucket_size", "overlap_comm"),
            *("use_multi_rank_bucket_allreduce", "allgather_partitions", "allgather_bucket_size"),
            *("offload_param", "offload_optimizer", "sub_group_size", "leaf_module", "round_robin_gradients"),
            *("stage3_prefetch_bucket_size", "stage3_param_persistence_threshold"),
            *(
                "stage3_model_persistence_threshold",
                "stage3_max_live_parameters",
                "stage3_max_reuse_distance",
            ),
            *("stage3_module_granularity_threshold", "stage3_use_all_reduce_for_fetch_params"),
            *("stage3_allgather_sequential", "stage3_gather_16bit_weights_on_model_save"),
            *("zero_hpz_partition_size", "zero_quantized_weights", "zero_quantized_gradients"),
            *("zero_quantized_nontrainable_weights", "memory_efficient_linear", "override_module_apply"),
            *("ignore_unused_parameters", "parameter_alignment", "load_from_fp32_weights"),
            *("log_trace_cache_warnings", "enable_sanity_checks"),
        }
    ),
    "zero_optimization.offload_param": OFFLOAD_KEYS | {"buffer_size", "max_in_cpu"},
    "zero_optimization.offload_optimizer": OFFLOAD_KEYS
    | {"pipeline_read", "pipeline_write", "fast_init", "ratio"},
    "aio": frozenset(
        {"block_size", "queue_depth", "intra_op_parallelism", "single_submit", "overlap_events", "use_gds"}
    ),
}
OFFLOAD_DEVICES = ("none", "cpu", "nvme")
VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}|\$([A-Za-z_][A-Za-z0-9_]*)")


def read_ds_file(path: Path) -> dict[str, Any]:
    """Read and check a file of `ds_configs`. Raise SettingsError with all mistakes, one a line."""
    text = read_text(path)
    repeated: list[str] = []

    def collect(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        keys = [key for key, _ in pairs]
        repeated.extend(dict.fromkeys(key for key in keys if keys.count(key) > 1))
        return dict(pairs)

    try:
        base = json.loads(text, object_pairs_hook=collect)
    except json.JSONDecodeError as error:
        raise SettingsError(f"{path}:{error.lineno}: is not JSON: {error.msg}") from None
    if not isinstance(base, dict):
        raise SettingsError(f"{path}: got a {type(base).__name__}; expected a JSON object of DeepSpeed keys")
    mistakes = [f"{path}: {key}: stands there twice; expected once" for key in repeated]
    mistakes += [f"{path}: {mistake}" for mistake in find_mistakes(base)]
    if mistakes:
        raise SettingsError("\n".join(mistakes))
    return base


def find_mistakes(base: Mapping[str, Any]) -> Iterator[str]:
    """Yield `key: what is wrong` for everything in a DeepSpeed configuration that the file may not say."""
    for key, value in base.items():
        yield from _key_mistakes(key, key, OWNED_BY_FILE)
        if key in OWNED_BY_FILE:
            yield from _auto_mistakes(key, value)
    for section, known in KNOWN_BELOW.items():
        value = _get(base, section)
        if isinstance(value, Mapping):
            for key in value:
                yield from _key_mistakes(f"{section}.{key}", key, known)
        elif value is not None and value != "auto":
            yield f"{section}: got {value!r}; expected an object"
    yield from type_mistakes(base)
    zero = base.get("zero_optimization")
    if zero is None:
        yield 'zero_optimization: missing; expected an object with "stage": 3'
    elif isinstance(zero, Mapping):
        yield from _zero_mistakes(zero)


def _key_mistakes(path: str, key: str, known: frozenset[str] | tuple[str, ...]) -> Iterator[str]:
    if path in REMOVED:
        yield f"{path}: DeepSpeed has removed this; take it out"
    elif path in NOT_SUPPORTED:
        yield f"{path}: is not supported by this trainer; take it out"
    elif path in OWNED_BY_RUN:
        owner = OWNED_BY_RUN[path]
        yield (
            f"{path}: belongs to run.yaml: {owner}"
            if owner
            else f"{path}: the trainer sets this; take it out"
        )
    elif key not in known:
        candidates = {*known, *(OWNED_BY_RUN if "." not in path else ())}
        yield f"{path}: unknown key{did_you_mean(key, candidates)}"


def _auto_mistakes(path: str, value: Any) -> Iterator[str]:
    """Yield a mistake for each "auto": the Hugging Face Trainer fills it in, DeepSpeed itself does not."""
    if value == "auto":
        yield f'{path}: got "auto"; expected a value; nothing fills it in here'
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _auto_mistakes(f"{path}.{key}", inner)
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from _auto_mistakes(f"{path}.{index}", inner)


def _zero_mistakes(zero: Mapping[str, Any]) -> Iterator[str]:
    stage = zero.get("stage")
    if stage != "auto" and (stage != 3 or isinstance(stage, bool)):
        yield f"zero_optimization.stage: got {json.dumps(stage)}; expected 3; others are not supported"
    for name in ("offload_param", "offload_optimizer"):
        section = zero.get(name)
        if not isinstance(section, Mapping):
            continue
        path, device = f"zero_optimization.{name}", section.get("device", "none")
        if device not in (*OFFLOAD_DEVICES, "auto"):
            yield f"{path}.device: got {device!r}; expected one of {', '.join(OFFLOAD_DEVICES)}"
        if device == "nvme" and not isinstance(section.get("nvme_path"), str):
            yield f"{path}.nvme_path: missing; expected a folder on the node's own disk, such as ${{TMPDIR}}"


def _get(base: Mapping[str, Any], path: str) -> Any:
    value: Any = base
    for part in path.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def build_ds_config(
    config: RunConfig, *, world_size: int, run_folder: Path, base: Mapping[str, Any], pin_memory: bool = True
) -> dict[str, Any]:
    """Return the whole DeepSpeed configuration of a run: the checked file plus everything that run.yaml owns.

    `nvme_path` gets a folder of the run's own below it; variables in it stay as they are until a worker reads
    them on its node. `pin_memory` False, for nodes without a GPU, overrules the file. Raises RunError if a
    step cannot be shared by `world_size` ranks.
    """
    copied: dict[str, Any] = json.loads(json.dumps(base))
    offload = offload_device(copied, "optimizer")
    merged = copied | {
        # A micro-batch is one row of `micro_packs` packs laid end to end, whatever their number.
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": accumulation(config, world_size),
        "steps_per_print": 10**9,  # we log ourselves
    }
    merged |= optimizer_keys(config, offload=offload)
    problems = [
        *offload_mistakes(config.tuning, optimizer=offload, param=offload_device(merged, "param")),
        *optimizer_mistakes(config, base, offload=offload),
        *device_mistakes(config, base, world_size=world_size, on_gpu=pin_memory),
    ]
    if problems:
        raise RunError("\n".join(problems))
    if config.optim.name == "muon":
        merged["zero_optimization"]["reduce_scatter"] = False
    for section in _offload_sections(merged):
        section["pin_memory"] = section.get("pin_memory", True) and pin_memory
    for section in _nvme_sections(merged):
        section["nvme_path"] = str(Path(section["nvme_path"]) / _nvme_name(run_folder))
    return merged


def read_ds_config(path: Path, *, pin_memory: bool = True) -> dict[str, Any]:
    """Read the ds_config.json of a run folder, as its workers do: variables in `nvme_path` get their value.

    `pin_memory` False, on a node without a GPU, overrules the file. Raises RunError for a variable that is not set.
    """
    ds_config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    for section in _offload_sections(ds_config):
        section["pin_memory"] = section["pin_memory"] and pin_memory
    for section in _nvme_sections(ds_config):
        section["nvme_path"] = expand_variables(section["nvme_path"])
    return ds_config


def expand_variables(text: str) -> str:
    """Return `text` with `$NAME` and `${NAME}` replaced. Raise RunError for a variable that is not set."""

    def value_of(match: re.Match[str]) -> str:
        name = match[1] or match[2]
        if name not in os.environ:
            raise RunError(
                f"nvme_path: {text}: the environment variable {name} is not set; set it, or name a folder"
            )
        return os.environ[name]

    return VARIABLE.sub(value_of, text)


@contextmanager
def nvme_folder(ds_config: Mapping[str, Any]) -> Iterator[tuple[Path, ...]]:
    """Make the folders for NVMe offload on this node, and remove them at the end; without it, do nothing.

    DeepSpeed names its swap files by rank alone: two runs in one folder would overwrite each other's.
    """
    paths = [expand_variables(section["nvme_path"]) for section in _nvme_sections(ds_config)]
    folders = tuple(Path(path) for path in dict.fromkeys(paths))
    for folder in folders:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunError(f"nvme_path: {folder}: cannot be made: {error.strerror}") from None
    try:
        yield folders
    finally:
        for folder in folders:
            shutil.rmtree(folder, ignore_errors=True)


def nvme_paths(ds_config: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the folders that the NVMe offload is given, with their variables."""
    return tuple(dict.fromkeys(str(section.get("nvme_path", "")) for section in _nvme_sections(ds_config)))


def offload_device(ds_config: Mapping[str, Any], what: Literal["optimizer", "param"]) -> str:
    """Return where DeepSpeed keeps the optimizer or the parameters: cpu, nvme, or none for the device itself."""
    section = _get(ds_config, f"zero_optimization.offload_{what}") or {}
    return str(section.get("device") or "none")


def _offload_sections(ds_config: Mapping[str, Any]) -> list[dict[str, Any]]:
    names = ("zero_optimization.offload_param", "zero_optimization.offload_optimizer")
    return [section for section in (_get(ds_config, name) for name in names) if section]


def _nvme_sections(ds_config: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [section for section in _offload_sections(ds_config) if section.get("device") == "nvme"]


def _nvme_name(run_folder: Path) -> str:
    """Return a name that no other run and no other start of this run has on the node."""
    start = os.environ.get("SLURM_JOB_ID") or f"pid{os.getpid()}"
    return f"shardtune-{run_folder.name}-{start}"
