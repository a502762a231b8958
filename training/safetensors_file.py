"""A safetensors file written tensor by tensor, so that what it holds need never be in memory at once.

The `safetensors` package writes from a complete dictionary of tensors only. The layout (a length of 8 bytes, a
JSON header, the data) is of its published format; files are read with the package. Of our own, its metadata have a
checksum for each tensor: the format has none, and a disk or a copy that changes a byte goes unnoticed without.
"""

import json
import os
import struct
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import torch
import xxhash
from safetensors import SafetensorError, safe_open

DTYPE_NAMES = {
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int32: "I32",
    torch.int64: "I64",
}
# So much of a tensor that lies on a device, or in another file, is in host memory at a time.
STAGED_BYTES = 32 * 2**20
CHECKSUMS = "xxh3_64"  # in the metadata: the digits of all tensors in the order of their data
DIGITS = 16


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
        room = "0" * DIGITS * len(specs)  # the checksums are known at the end
        header: dict[str, object] = {"__metadata__": {"format": "pt", CHECKSUMS: room}}
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
        self._checksum = xxhash.xxh3_64()  # of the tensor that is being written
        self._checksums: list[str] = []
        self._checksums_at = 8 + text.index(f'"{CHECKSUMS}":"{room}"'.encode()) + len(CHECKSUMS) + 4
        self._file = path.open("wb", buffering=0)
        self._put(memoryview(struct.pack("<Q", len(text)) + text))

    def _put(self, data: memoryview) -> None:
        self._checksum.update(data)
        with self._named():
            while data:
                data = data[self._file.write(data) :]  # one call takes less than 2 GiB

    @contextmanager
    def _named(self) -> Iterator[None]:
        """Add the file's name to an error of the system, which for a full disk does not have it by itself."""
        try:
            yield
        except OSError as error:
            error.filename = self._file.name
            raise

    def write(self, name: str, source: Source) -> None:
        """Append the next tensor; it must be the next of `specs`, by name, type and size."""
        expected, spec = next(self._specs)
        assert name == expected, (name, expected)
        self._checksum.reset()
        if isinstance(source, FileRange):
            self._copy(source, spec.num_bytes)
        else:
            self._put_tensor(source, spec)
        self._checksums.append(self._checksum.hexdigest())

    def _put_tensor(self, source: torch.Tensor | Callable[[], torch.Tensor], spec: TensorSpec) -> None:
        if not isinstance(source, torch.Tensor):
            source = source()
        assert (source.dtype, source.numel()) == (spec.dtype, torch.Size(spec.shape).numel()), spec
        flat = source.detach().contiguous().flatten()
        on_host = flat.device.type == "cpu"
        pieces = (flat,) if on_host else torch.split(flat, STAGED_BYTES // flat.itemsize)
        for piece in pieces:
            if piece.numel():
                self._put(piece.to("cpu").view(torch.uint8).numpy().data)

    def _copy(self, source: FileRange, num_bytes: int) -> None:
        with source.path.open("rb", buffering=0) as file:
            file.seek(source.offset)
            while num_bytes:
                data = file.read(min(num_bytes, STAGED_BYTES))
                assert data, f"{source.path} ends {num_bytes} bytes too early"
                self._put(memoryview(data))
                num_bytes -= len(data)

    def close(self) -> None:
        """Write the file through to the disk and close it."""
        missing = next(self._specs, None)
        assert missing is None, f"{missing} was not written"
        with self._named():
            os.pwrite(self._file.fileno(), "".join(self._checksums).encode(), self._checksums_at)
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


class CheckedFile:
    """A file's tensors, each held against its checksum when it is read; one that has none is read as it is.

    Raises SafetensorError for a damaged file, as the package does.
    """

    def __init__(self, path: Path) -> None:
        self._file = _open(path)
        digits = (self._file.metadata() or {}).get(CHECKSUMS, "")
        checksums = (digits[start : start + DIGITS] for start in range(0, len(digits), DIGITS))
        self._checksums = dict(zip(self._file.offset_keys(), checksums, strict=False))
        self.names = frozenset(self._file.keys())

    def dtype(self, name: str) -> torch.dtype:
        """Return a tensor's type, without reading it."""
        dtype: torch.dtype = self._file.get_slice(name)[:0].dtype
        return dtype

    def read(self, name: str) -> torch.Tensor:
        """Return a tensor, which may lie in the file's own memory."""
        tensor: torch.Tensor = self._file.get_tensor(name)
        expected = self._checksums.get(name)
        got = xxhash.xxh3_64_hexdigest(tensor.flatten().view(torch.uint8).numpy().data)
        if expected is not None and got != expected:
            raise SafetensorError(f"{name}: got the checksum {got}; expected {expected}")
        return tensor


def _open(path: Path) -> Any:  # the package has no types
    return safe_open(path, framework="pt")
