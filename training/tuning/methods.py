"""A loaded model made ready for its tuning method: what is trained thaws, what the method adds is put in.

What is added is made outside of DeepSpeed's partitioned loading, whole on every rank; `deepspeed.initialize` gives all
ranks the weights of rank 0 and partitions them.
"""

from fnmatch import fnmatchcase
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from transformers import BitsAndBytesConfig, PreTrainedModel

from data_tools.errors import RunError
from training.base_model import Shapes
from training.config import RunConfig
from training.tuning.adapter_files import WEIGHTS, tensor_name
from training.tuning.bottleneck import add_bottlenecks
from training.tuning.settings import AdapterTuning, BitfitTuning, FullTuning


def tune(model: PreTrainedModel, config: RunConfig, shapes: Shapes) -> None:
    """Let the run's method train what it trains of `model`, in place.

    shapes: of the base weights. Virtual tokens are no part of the model: see PackedCausalLM.
    """
    tuning = config.tuning
    if isinstance(tuning, FullTuning | BitfitTuning):
        patterns = trained_patterns(tuning)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(any(fnmatchcase(name, pattern) for pattern in patterns))
        return
    torch.manual_seed(config.seed)
    model.requires_grad_(False)
    if isinstance(tuning, AdapterTuning):
        add_bottlenecks(model, tuning.size)
    else:
        # Here, since peft takes half a second to load, which most starts need not spend.
        from training.tuning.peft_layers import inject

        inject(model, tuning, config.model, shapes)
    for parameter in model.parameters():
        if parameter.requires_grad:  # one type for all that is trained: DeepSpeed lays them in one buffer
            parameter.data = parameter.data.to(model.dtype)


def trained_patterns(tuning: FullTuning | BitfitTuning) -> tuple[str, ...]:
    """Return globs of the names of the weights that are trained."""
    return ("*.bias",) if isinstance(tuning, BitfitTuning) else tuning.train or ("*",)


def quantization(*, double: bool, dtype: torch.dtype) -> BitsAndBytesConfig:
    """Return how the base weights of a QLoRA run are kept; `double` quantises the scales too."""
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=double,
        bnb_4bit_compute_dtype=dtype,
    )


def keep_quantized_layers_training(model: nn.Module) -> None:
    """Leave the 4-bit layers of a CPU model in training mode, whatever the mode of the model.

    In evaluation mode bitsandbytes 0.50 repacks their weights for its CPU kernel, and from then on the gradients that
    pass through them are zero; weights narrower than 64 fail. The layers themselves do the same in both modes.
    """
    for module in model.modules():
        if type(module).__name__ == "Linear4bit" and module.weight.device.type == "cpu":
            module.training = True


def continue_adapter(module: nn.Module, folder: Path, *, prefix: str) -> None:
    """Put the tensors of an adapter's folder into the parameters that `module` trains; not partitioned yet.

    prefix: of the model's names, seen from `module`. Raises RunError if they are not the very same, by name and shape.
    """
    try:
        tensors = load_file(folder / WEIGHTS)
    except SafetensorError as error:
        raise RunError(
            f"tuning.continue_from: {folder / WEIGHTS}: damaged: {error}; do: export the adapter again"
        ) from None
    trained = {
        tensor_name(name.removeprefix(prefix)): parameter
        for name, parameter in module.named_parameters()
        if parameter.requires_grad
    }
    shapes = [{name: tuple(tensor.shape) for name, tensor in found.items()} for found in (tensors, trained)]
    if shapes[0] != shapes[1]:
        name = sorted(shapes[0].items() ^ shapes[1].items())[0][0]
        raise RunError(
            f"tuning.continue_from: {folder}: adapter of another model, or of other targets: {name} is "
            f"{shapes[0].get(name, 'not there')} in it; expected {shapes[1].get(name, 'none of that name')}"
        )
    for name, parameter in trained.items():
        parameter.data.copy_(tensors[name])
