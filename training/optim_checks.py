"""What can be known to be wrong with `optim` and `loss` before a run starts, from files alone and without torch."""

from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from data_tools.errors import RunError
from training.base_model import parameter_shapes
from training.tuning.settings import (
    AdaloraTuning,
    BitfitTuning,
    Ia3Tuning,
    PrefixTuning,
    PromptTuning,
    trains_everything,
)

if TYPE_CHECKING:
    from training.config import RunConfig

NO_MATRICES = (BitfitTuning, Ia3Tuning, PrefixTuning, PromptTuning)


def optim_mistakes(config: "RunConfig", *, num_steps: int) -> Iterator[str]:
    """Yield what is wrong between `optim`, `loss`, `tuning` and the model; num_steps is 0 if it cannot be told."""
    optim, method = config.optim, config.tuning.method
    if optim.schedule == "wsd" and num_steps:
        warmup, decay = optim.warmup_steps(num_steps), optim.decay_steps(num_steps)
        if warmup + decay > num_steps:
            yield (
                f"optim.decay: warm-up and decay are longer than the run: got {warmup} + {decay} steps of {num_steps}; "
                "expected no more than that; use shares"
            )
    if optim.name == "muon" and isinstance(config.tuning, NO_MATRICES):
        yield f"optim.name: muon updates matrices and tuning.method {method} trains none; expected adamw, lion or sgd"
    if optim.name == "muon" and isinstance(config.tuning, AdaloraTuning):
        yield (
            "optim.name: adalora scores the gradient, which muon has replaced by its update: got muon with "
            "tuning.method adalora; expected adamw, lion or sgd"
        )
    moved = "neftune" if config.loss.neftune else "adversarial"
    if isinstance(config.tuning, PromptTuning) and (
        config.loss.neftune or config.loss.adversarial is not None
    ):
        yield (
            f"loss.{moved}: moves input embeddings, and those of tuning.method prompt are what is trained; "
            "take one of them out"
        )
    yield from _unmatched(config)


def _unmatched(config: "RunConfig") -> Iterator[str]:
    """Yield a mistake for each glob of `no_decay` that the user has written and that matches nothing."""
    globs = [
        glob
        for glob in config.optim.no_decay
        if glob not in type(config.optim).model_fields["no_decay"].default
    ]
    if not globs or config.from_scratch or not trains_everything(config.tuning):
        return
    try:
        names = list(parameter_shapes(config.model))
    except RunError:
        return  # said of the model itself
    for glob in globs:
        if not any(fnmatchcase(name, glob) for name in names):
            yield (
                f"optim.no_decay: matches no weight of the model: got {glob!r}; expected a glob of names such as "
                f"*.layers.0.* or {names[0]}"
            )


def optimizer_mistakes(config: "RunConfig", base: Mapping[str, Any], *, offload: str) -> Iterator[str]:
    """Yield what of `optim` cannot work with this precision and with the file of `ds_configs`.

    base: what the file says. offload: where it keeps the optimizer: none, cpu or nvme.
    """
    optim, zero = config.optim, base["zero_optimization"]
    if optim.name == "muon":
        if offload == "nvme":
            yield (
                "optim.name: muon gathers its momentum from all ranks in each step, which is not proved from the disk: "
                "got offload_optimizer.device nvme; expected cpu or none"
            )
        if zero.get("reduce_scatter"):
            yield "zero_optimization.reduce_scatter: muon needs whole gradients: got true; expected false; take it out"
        if base.get("communication_data_type", "fp32") != "fp32":
            yield (
                "communication_data_type: muon keeps its momentum in this type: got "
                f"{base['communication_data_type']}; expected fp32; take it out"
            )
    if optim.name == "adamw8bit" and offload == "nvme":
        yield (
            "optim.name: adamw8bit keeps its moments where DeepSpeed does not swap: got offload_optimizer.device nvme; "
            "expected cpu or none"
        )
    if optim.states == "fp32":
        return
    if config.precision != "bf16":
        yield f"optim.states: got {optim.states} with precision {config.precision}; expected precision bf16"
    if optim.name != "adamw" or offload != "cpu":
        where = "not offloaded" if offload == "none" else f"on {offload}"
        yield (
            f"optim.states: only DeepSpeed's AdamW for the CPU keeps states in bfloat16: got {optim.states} with "
            f"{optim.name}, {where}; expected adamw and offload_optimizer.device cpu"
        )
