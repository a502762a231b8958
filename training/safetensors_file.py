"""A safetensors file written tensor by tensor, so that what it holds need never be in memory at once.

The `safetensors` package writes from a complete dictionary of tensors only. The layout (a length of 8 bytes, a
JSON header, the data) is of its published format; files are read with the package.
"""

import json
import os
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

import torch

DTYPE_NAMES = {
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int32: "I32",
    torch.int64: "I64",
}
# So much of a tensor that lies on a device is in host memory at a time.
STAGED_BYTES = 32 * 2**20


class TensorSpec(NamedTuple):
    """What a tensor in the file will be."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        """Return the bytes of the tensor's data."""
        return self.dtype.itemsize * torch.Size(self.shape).numel()


class FileRange(NamedTuple):
    """Bytes of another file: the data of a tensor that lies there."""

    path: Path
    offset: int


# The tensor itself, where its bytes lie already, or what makes it.
Source = torch.Tensor | FileRange | Callable[[], torch.Tensor]


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
        self._file = path.open("wb", buffering=0)
        self._put(memoryview(struct.pack("<Q", len(text)) + text))

    def _put(self, data: memoryview) -> None:
        while data:
            data = data[self._file.write(data) :]  # one call takes less than 2 GiB

    def write(self, name: str, source: Source) -> None:
        """Append the next tensor; it must be the next of `specs`, by name, type and size."""
        expected, spec = next(self._specs)
        assert name == expected, (name, expected)
        if isinstance(source, FileRange):
            self._copy(source, spec.num_bytes)
            return
        if not isinstance(source, torch.Tensor):
            source = source()
        assert (source.dtype, source.numel()) == (spec.dtype, torch.Size(spec.shape).numel()), (name, spec)
        flat = source.detach().contiguous().flatten()
        on_host = flat.device.type == "cpu"
        pieces = (flat,) if on_host else torch.split(flat, STAGED_BYTES // flat.itemsize)
        for piece in pieces:
            if piece.numel():
                self._put(piece.to("cpu").view(torch.uint8).numpy().data)

    def _copy(self, source: FileRange, num_bytes: int) -> None:
        """Append bytes of another file, within the kernel."""
        with source.path.open("rb", buffering=0) as file:
            offset, end = source.offset, source.offset + num_bytes
            while offset < end:
                sent = os.sendfile(self._file.fileno(), file.fileno(), offset, end - offset)
                assert sent, f"{source.path} ends at {offset}, before {end}"
                offset += sent

    def close(self) -> None:
        """Write the file through to the disk and close it."""
        missing = next(self._specs, None)
        assert missing is None, f"{missing} was not written"
        os.fsync(self._file.fileno())
        self._file.close()

    def __enter__(self) -> "SafetensorsWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self.close()
        finally:
            self._file.close()
