"""A whole model's weights, one at a time, and the safetensors files that they are written to."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Protocol

import torch

from training.checkpoint_files import CheckpointReader
from training.safetensors_file import SafetensorsWriter, TensorSpec

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
MAX_FILE_BYTES = 5 * 10**9


class Weights(Protocol):
    """A whole model's weights."""

    shapes: dict[str, tuple[int, ...]]

    def weight(self, name: str) -> torch.Tensor:
        """Return one of them, float32."""


class CheckpointWeights:
    """The weights of a checkpoint that holds the whole model."""

    def __init__(self, reader: CheckpointReader) -> None:
        self.shapes = reader.progress.shapes
        self.weight = reader.weight


class Tensors(Protocol):
    """What the files will hold: each tensor's type and shape, in order, and the tensor itself."""

    specs: dict[str, TensorSpec]

    def tensor(self, name: str) -> torch.Tensor:
        """Return one of them; they are asked for in their order."""


class RoundedTensors:
    """Weights rounded to `dtype`."""

    def __init__(self, weights: Weights, dtype: torch.dtype) -> None:
        self._weights, self._dtype = weights, dtype
        self.specs = {name: TensorSpec(dtype, shape) for name, shape in weights.shapes.items()}

    def tensor(self, name: str) -> torch.Tensor:
        """Return a weight, rounded."""
        return self._weights.weight(name).to(self._dtype)


def write_weights(tensors: Tensors, folder: Path) -> None:
    """Write a model's tensors as safetensors files of at most 5 GB, with an index if there are several."""
    files = list(_plan_files(tensors.specs))
    weight_map = {}
    for number, specs in enumerate(files, 1):
        name = (
            f"model-{number:05d}-of-{len(files):05d}.safetensors" if len(files) > 1 else "model.safetensors"
        )
        with SafetensorsWriter(folder / name, specs) as file:
            for parameter in specs:
                file.write(parameter, tensors.tensor(parameter))
                weight_map[parameter] = name
    if len(files) > 1:
        total = sum(spec.num_bytes for spec in tensors.specs.values())
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")


def _plan_files(specs: Mapping[str, TensorSpec]) -> Iterator[dict[str, TensorSpec]]:
    members: dict[str, TensorSpec] = {}
    size = 0
    for name, spec in specs.items():
        if members and size + spec.num_bytes > MAX_FILE_BYTES:
            yield members
            members, size = {}, 0
        members[name] = spec
        size += spec.num_bytes
    yield members
