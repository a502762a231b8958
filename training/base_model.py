"""A model folder seen from outside, without torch: the names and shapes of its weights, and whose they are."""

import hashlib
import json
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from data_tools.errors import RunError

Shapes = Mapping[str, tuple[int, ...]]

EMBEDDINGS, HEAD = "model.embed_tokens.weight", "lm_head.weight"

SAMPLES_PER_FILE = 64
SAMPLE_BYTES = 4096


def head_mistakes(path: Path, model: Mapping[str, Any]) -> Iterator[str]:
    """Yield which numbers of heads of a config.json do not divide: transformers says so in a rank's traceback."""
    numbers = [model.get(key) for key in ("hidden_size", "num_attention_heads", "num_key_value_heads")]
    numbers[2] = numbers[2] or numbers[1]
    known = [number for number in numbers if isinstance(number, int) and number > 0]
    if len(known) < len(numbers):
        return
    hidden, heads, kv_heads = known
    if hidden % heads and not model.get("head_dim"):
        yield (
            f"model: {path}: num_attention_heads: the width cannot be shared out: got {heads} heads of hidden_size "
            f"{hidden}; expected a number that divides it, or head_dim"
        )
    if heads % kv_heads:
        yield (
            f"model: {path}: num_key_value_heads: the heads cannot share them: got {kv_heads} for {heads} heads; "
            "expected a number that divides it"
        )


def read_weight_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor in a model folder, from the safetensors headers alone."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise RunError(
            f"{folder}: no weights: expected *.safetensors files; save the model with safetensors, or set "
            "from_scratch: true to start from random weights"
        )
    return {
        name: tuple(entry["shape"])
        for file in files
        for name, entry in read_header(file).items()
        if name != "__metadata__"
    }


def read_header(file: Path) -> dict[str, Any]:
    """Return the header of a safetensors file. Raise RunError if it is cut short."""
    with file.open("rb") as stream:
        size = struct.unpack("<Q", stream.read(8).ljust(8, b"\0"))[0]
        if size > file.stat().st_size - 8:
            raise RunError(f"{file}: not a whole safetensors file; fetch it again")
        header: dict[str, Any] = json.loads(stream.read(size))
    return header


def parameter_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a folder's weights under the names that the loaded model gives them.

    Some folders hold the names of the bare decoder (`layers.0…`), which the language model calls `model.layers.0…`.
    """
    shapes = read_weight_shapes(folder)
    if any(name.startswith("model.") for name in shapes):
        return shapes
    return {name if name.startswith("lm_head.") else f"model.{name}": shape for name, shape in shapes.items()}


def linear_layers(shapes: Shapes) -> list[str]:
    """Return the linear layers inside the decoder's layers, as module names."""
    return [
        name.removesuffix(".weight")
        for name, shape in shapes.items()
        if ".layers." in name and name.endswith(".weight") and len(shape) == 2
    ]


def matches(layer: str, target: str) -> bool:
    """Return whether a target such as `q_proj` or `0.self_attn.q_proj` names a layer; the rule is peft's."""
    return layer == target or layer.endswith(f".{target}")


def base_fingerprint(folder: Path) -> str:
    """Return what tells a model's weights from others of the same shapes: a hash of headers, sizes and samples.

    64 samples of 4 KiB, spread over each file: training changes nearly all weights, and a model of a terabyte is
    looked at in seconds.
    """
    digest = hashlib.sha256()
    for file in sorted(folder.glob("*.safetensors")):
        size = file.stat().st_size
        digest.update(f"{size} {json.dumps(read_header(file), sort_keys=True)}".encode())
        with file.open("rb") as stream:
            for sample in range(SAMPLES_PER_FILE):
                stream.seek(max(0, size - SAMPLE_BYTES) * sample // (SAMPLES_PER_FILE - 1))
                digest.update(stream.read(SAMPLE_BYTES))
    return digest.hexdigest()
