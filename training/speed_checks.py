"""What of the settings for speed, memory and precision cannot work, said before a run starts and without torch."""

import importlib.util
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from training.tuning.settings import AdaloraTuning, QloraTuning

if TYPE_CHECKING:
    from training.config import RunConfig

# Of zero_optimization: ZeRO++ quantises with CUDA kernels.
QUANTISED = ("zero_quantized_weights", "zero_quantized_nontrainable_weights", "zero_quantized_gradients")


def speed_mistakes(config: "RunConfig") -> Iterator[str]:
    """Yield what is wrong between the settings themselves."""
    if config.offload_activations and config.activation_checkpointing is not True:
        got = config.activation_checkpointing or "false"
        yield (
            "offload_activations: moves the inputs of checkpointed layers to the host: got true with "
            f"activation_checkpointing {got}; expected activation_checkpointing true"
        )
    if config.kernels == "liger" and importlib.util.find_spec("liger_kernel") is None:
        yield (
            "kernels: liger needs liger-kernel, which is not installed; run: pip install 'shardtune[liger]', or "
            "expected torch"
        )
    if config.kernels == "liger" and config.compile:
        yield "compile: would replace what liger has replaced: got true with kernels liger; expected one of them"
    if config.activation_checkpointing == "selective" and config.compile:
        # torch compiles nothing below the dispatch modes by which the products are kept.
        yield "compile: does nothing with activation_checkpointing selective: got both; expected one of them"
    if config.precision != "fp16":
        return
    if config.optim.name == "muon":
        yield (
            "precision: muon's gradients are clipped before DeepSpeed takes the loss scale out of them: got fp16; "
            "expected bf16 or fp32"
        )
    if isinstance(config.tuning, AdaloraTuning | QloraTuning):
        yield (
            f"precision: is not proved with tuning.method {config.tuning.method}: got fp16; expected bf16 or fp32"
        )


def device_mistakes(
    config: "RunConfig", base: Mapping[str, Any], *, world_size: int, on_gpu: bool
) -> Iterator[str]:
    """Yield what the ranks of this run cannot do; base: what the file of `ds_configs` says."""
    zero = base["zero_optimization"]
    if not on_gpu:
        wanted = [
            ("precision: got fp16", "bf16 or fp32", config.precision == "fp16"),
            ("offload_activations: got true", "false", config.offload_activations),
            ("kernels: got liger", "torch", config.kernels == "liger"),
            *((f"zero_optimization.{key}: got true", "false", zero.get(key)) for key in QUANTISED),
        ]
        for what, expected, is_wanted in wanted:
            if is_wanted:
                yield f"{what}, which needs a GPU, and there is none here; expected {expected}"
    yield from _hpz_mistakes(config, zero, world_size=world_size)
    yield from _twinflow_mistakes(config, zero)


def _hpz_mistakes(config: "RunConfig", zero: Mapping[str, Any], *, world_size: int) -> Iterator[str]:
    size = zero.get("zero_hpz_partition_size", 1)
    if not isinstance(size, int) or size < 1:
        yield f"zero_optimization.zero_hpz_partition_size: got {size!r}; expected a number of ranks"
    elif size > 1 and world_size % size:
        possible = ", ".join(str(n) for n in range(1, world_size + 1) if world_size % n == 0)
        yield (
            f"zero_optimization.zero_hpz_partition_size: must divide the number of ranks: got {size} with {world_size} "
            f"ranks; expected one of {possible}; the GPUs of a node are usual"
        )
    elif size > 1 and isinstance(config.tuning, AdaloraTuning):
        yield (
            "zero_optimization.zero_hpz_partition_size: keeps copies of weights, which adalora changes between steps: "
            f"got {size} with tuning.method adalora; expected 1"
        )


def _twinflow_mistakes(config: "RunConfig", zero: Mapping[str, Any]) -> Iterator[str]:
    offload = zero.get("offload_optimizer") or {}
    ratio = offload.get("ratio", 1.0)
    where = "zero_optimization.offload_optimizer.ratio"
    if isinstance(ratio, bool) or not isinstance(ratio, int | float) or not 0 <= ratio <= 1:
        yield f"{where}: got {ratio!r}; expected a share from 0 to 1"
    elif ratio < 1:
        optim = config.optim
        wrong = {
            f"device {offload.get('device')}": offload.get("device") != "cpu",
            f"optim.name {optim.name}": optim.name != "adamw",
            f"optim.states {optim.states}": optim.states != "fp32",
            "tuning.method adalora": isinstance(config.tuning, AdaloraTuning),
        }
        for what in (what for what, is_wrong in wrong.items() if is_wrong):
            yield (
                f"{where}: a share of the optimizer on the GPU works with device cpu, adamw, states fp32, and without "
                f"adalora: got {ratio} with {what}; expected 1"
            )
