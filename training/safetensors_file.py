"""A safetensors file written tensor by tensor, so that what it holds need never be in memory at once.

The `safetensors` package writes from a complete dictionary of tensors only. The layout (a length of 8 bytes, a
JSON header, the data) is of its published format; files are read with the package.
"""

import json
import os
import struct
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

import torch

DTYPE_NAMES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}


class TensorSpec(NamedTuple):
    """What a tensor in the file will be."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        """Return the bytes of the tensor's data."""
        return self.dtype.itemsize * torch.Size(self.shape).numel()


class SafetensorsWriter:
    """Writes the tensors of `specs`, in their order, one `write` each; `close` makes them durable.

    As a context manager it closes on success and leaves an incomplete file behind on an error.
    """

    def __init__(self, path: Path, specs: Mapping[str, TensorSpec]) -> None:
        header: dict[str, object] = {"__metadata__": {"format": "pt"}}
        offset = 0
        for name, spec in specs.items():
            header[name] = {
                "dtype": DTYPE_NAMES[spec.dtype],
                "shape": list(spec.shape),
                "data_offsets": [offset, offset + spec.num_bytes],
            }
            offset += spec.num_bytes
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        self._specs = iter(specs.items())
        self._file = path.open("wb")
        self._file.write(struct.pack("<Q", len(text)) + text)

    def write(self, name: str, tensor: torch.Tensor) -> None:
        """Append the next tensor; it must be the next of `specs`, by name, type and size."""
        expected, spec = next(self._specs)
        assert (name, tensor.dtype, tensor.numel()) == (expected, spec.dtype, torch.Size(spec.shape).numel())
        flat = tensor.detach().to("cpu").contiguous().flatten()
        if flat.numel():
            self._file.write(flat.view(torch.uint8).numpy().data)

    def close(self) -> None:
        """Flush the file to the disk and close it."""
        missing = next(self._specs, None)
        assert missing is None, f"{missing} was not written"
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()

    def __enter__(self) -> "SafetensorsWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self._file.close()
