"""Names for content: the same bytes and settings have the same fingerprint on any machine, in any folder.

Also the project's own 64-bit mixer, by which the plan makes every choice that looks random: NumPy does not
promise its random streams between versions, a few lines of arithmetic do.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from data_tools.errors import ShardError

UINT64_RANGE = 2.0**64


def fingerprint(value: Any) -> str:
    """Return the SHA-256 of a JSON value, written in one canonical way (sorted keys, no spaces, UTF-8)."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def hash_file(path: Path) -> str:
    """Return the SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_text(*parts: str) -> int:
    """Return 64 bits of a list of texts; the parts' borders count."""
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        data = part.encode("utf-8", "surrogatepass")
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    return int.from_bytes(digest.digest(), "little")


def mix(values: NDArray[np.uint64], *, seed: int, use: str) -> NDArray[np.uint64]:
    """Scatter 64-bit values evenly: one independent draw for each (value, seed, use).

    `use` names the choice (such as "split"), so that two choices on the same value are independent.
    The scrambling is the finaliser of SplitMix64 (Steele, Lea and Flood, 2014), a bijection of 64 bits.
    """
    mixed = values ^ np.uint64(hash_text(str(seed), use))
    mixed = mixed + np.uint64(0x9E3779B97F4A7C15)  # wraps, as it should
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


class ContentHash:
    """A hash of a table's values that does not depend on batches, padding, compression or Arrow's version."""

    def __init__(self) -> None:
        self._streams: dict[str, Any] = {}

    def add(self, batch: pa.RecordBatch) -> None:
        """Take in one batch of the table."""
        for name, column in zip(batch.schema.names, batch.columns, strict=True):
            self._feed(name, column)

    def hexdigest(self) -> str:
        """Return the hash of all that was added."""
        return fingerprint({name: stream.hexdigest() for name, stream in self._streams.items()})

    def _feed(self, name: str, array: pa.Array) -> None:
        if array.null_count:
            raise ShardError(f"column {name}: holds nulls: got {array.null_count}; expected none")
        is_list = pa.types.is_list(array.type)  # whose type's text has a name that Parquet does not keep
        stream = self._streams.setdefault(name if is_list else f"{name}:{array.type}", hashlib.sha256())
        if is_list:
            stream.update(np.diff(array.offsets.to_numpy()).astype("<i8").tobytes())
            self._feed(f"{name}[]", array.flatten())
        elif pa.types.is_string(array.type):
            offsets = np.frombuffer(array.buffers()[1], np.int32)[
                array.offset : array.offset + len(array) + 1
            ]
            stream.update(np.diff(offsets).astype("<i8").tobytes())
            data = array.buffers()[2]
            if data is not None and len(offsets):
                text = self._streams.setdefault(f"{name}text", hashlib.sha256())
                text.update(memoryview(data)[int(offsets[0]) : int(offsets[-1])])
        else:
            stream.update(np.ascontiguousarray(array.to_numpy(zero_copy_only=False)).tobytes())
