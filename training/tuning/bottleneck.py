"""Bottleneck adapters (Houlsby et al. 2019), which peft does not have: small layers inside a frozen model.

Each sits behind the last linear layer of a decoder layer's attention, and of its MLP, before the residual is added:
y + up(gelu(down(y))). `up` begins as zero, so that training starts from the model as it is.

    model = AutoModelForCausalLM.from_pretrained(base)
    load_adapter(model, folder)        # a folder that `shardtune export` wrote
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn
from transformers import PreTrainedModel

from training.json_file import read_json

# The last linear layers of attention and MLP, in every type of model that packed attention is proved for.
PLACES = ("self_attn.o_proj", "mlp.down_proj")


class Bottleneck(nn.Module):
    """Down to `size` features, a GELU, and up again; float tensors [..., width] to the same shape."""

    def __init__(self, width: int, size: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.down = nn.Linear(width, size, dtype=dtype)
        self.up = nn.Linear(size, width, dtype=dtype)
        nn.init.normal_(self.down.weight, std=0.01)
        for parameter in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(parameter)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return what is added to `hidden`."""
        lifted: torch.Tensor = self.up(F.gelu(self.down(hidden)))
        return lifted


class AdaptedLinear(nn.Module):
    """A linear layer of the model with a bottleneck behind it."""

    def __init__(self, base_layer: nn.Linear, bottleneck: Bottleneck) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.bottleneck = bottleneck

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return the layer's output with what the bottleneck adds to it."""
        output: torch.Tensor = self.base_layer(hidden)
        added: torch.Tensor = self.bottleneck(output)
        return output + added


def add_bottlenecks(model: PreTrainedModel, size: int) -> None:
    """Put bottlenecks of `size` features into every decoder layer, in place; the model may be partitioned."""
    for layer in model.base_model.layers:
        for place in PLACES:
            parent_name, _, name = place.rpartition(".")
            parent = layer.get_submodule(parent_name)
            linear = getattr(parent, name)
            bottleneck = Bottleneck(linear.out_features, size, model.dtype).to(linear.weight.device)
            setattr(parent, name, AdaptedLinear(linear, bottleneck))


def load_adapter(model: PreTrainedModel, folder: Path) -> None:
    """Put the bottlenecks of an exported adapter into a plain model, in place. Raises ValueError if they do not fit."""
    settings = read_json(folder / "adapter_config.json")
    add_bottlenecks(model, settings["size"])
    loaded = model.load_state_dict(load_file(folder / "adapter_model.safetensors"), strict=False)
    missing = [name for name in loaded.missing_keys if ".bottleneck." in name]
    if missing or loaded.unexpected_keys:
        raise ValueError(f"weights missing: {missing}; not of the model: {loaded.unexpected_keys}")
