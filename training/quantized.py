"""int8 weight-only export: the linear layers of the decoder in 8 bits, in the file format of compressed-tensors.

Each row of a weight is rounded to 255 levels with a scale of its own. Nothing is calibrated, so one weight at a time is
enough. transformers and vLLM read the format; it is written with the library's own functions.
"""

import importlib.util
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from data_tools.errors import RunError
from training.base_model import HEAD, linear_layers
from training.json_file import read_json
from training.model_weights import Weights
from training.safetensors_file import TensorSpec

LIBRARY = "compressed_tensors"
METHOD = "compressed-tensors"  # what config.json calls it
BITS = 8
PER_WORD = 32 // BITS  # weights of a row are packed into 32-bit words


def check_library(where: str) -> None:
    """Raise RunError if compressed-tensors is not installed; `where` begins the message."""
    if importlib.util.find_spec(LIBRARY) is None:
        raise RunError(
            f"{where}: needs compressed-tensors, which is not installed; do: pip install 'shardtune[quantize]'"
        )


def is_quantized(folder: Path) -> bool:
    """Return whether a model folder's weights are in a format of compressed-tensors."""
    described = read_json(folder / "config.json").get("quantization_config")
    return isinstance(described, dict) and described.get("quant_method") == METHOD


def quantization_config() -> dict[str, Any]:
    """Return what config.json says of the format."""
    from compressed_tensors.quantization import QuantizationConfig

    config: dict[str, Any] = QuantizationConfig(
        config_groups={"group_0": _scheme()},
        format="pack-quantized",
        quantization_status="compressed",
        ignore=[HEAD.removesuffix(".weight")],
    ).model_dump()
    return config


def _scheme() -> Any:
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

    weights = QuantizationArgs(num_bits=BITS, type="int", symmetric=True, strategy="channel")
    return QuantizationScheme(targets=["Linear"], weights=weights)


class Int8Tensors:
    """The tensors of a model's file with int8 linear layers; all else is rounded to `dtype` as in a plain export."""

    def __init__(self, weights: Weights, dtype: torch.dtype) -> None:
        self._weights, self._dtype = weights, dtype
        self._linear = set(linear_layers(weights.shapes))
        self._packed: tuple[str, Mapping[str, torch.Tensor]] = ("", {})
        self.specs = dict(self._describe())

    def _describe(self) -> Iterator[tuple[str, TensorSpec]]:
        for name, shape in self._weights.shapes.items():
            layer = name.removesuffix(".weight")
            if layer not in self._linear:
                yield name, TensorSpec(self._dtype, shape)
                continue
            rows, columns = shape
            yield f"{layer}.weight_packed", TensorSpec(torch.int32, (rows, -(-columns // PER_WORD)))
            yield f"{layer}.weight_scale", TensorSpec(self._dtype, (rows, 1))
            yield f"{layer}.weight_shape", TensorSpec(torch.int64, (2,))

    def tensor(self, name: str) -> torch.Tensor:
        """Return a tensor of the file."""
        layer, _, part = name.rpartition(".")
        if layer not in self._linear or part == "bias":
            return self._weights.weight(name).to(self._dtype)
        if self._packed[0] != layer:  # its three tensors are asked for one after the other
            weight = self._weights.weight(f"{layer}.weight").to(self._dtype)
            self._packed = (layer, pack_int8(weight))
        return self._packed[1][part]


def pack_int8(weight: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return weight_packed, weight_scale and weight_shape of a weight [rows, columns]."""
    from compressed_tensors.compressors import PackedQuantizationCompressor
    from compressed_tensors.quantization.utils import calculate_qparams

    scheme = _scheme()
    wide = weight.float()
    scale, _ = calculate_qparams(wide.amin(1, keepdim=True), wide.amax(1, keepdim=True), scheme.weights)
    packed: dict[str, torch.Tensor] = PackedQuantizationCompressor.compress(
        {"weight": wide, "weight_scale": scale.to(weight.dtype)}, scheme
    )
    return packed
