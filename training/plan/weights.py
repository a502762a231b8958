"""The weights of a run by arithmetic, from a model's config.json and the tuning method: names, shapes, what is trained.

Nothing is loaded, and no safetensors file need be there: a model that is only a config can be planned too.
"""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from data_tools.errors import RunError
from training.base_model import EMBEDDINGS, HEAD, linear_layers, matches
from training.config import SUPPORTED_MODEL_TYPES, RunConfig
from training.tuning.settings import (
    AdaloraTuning,
    AdapterTuning,
    BitfitTuning,
    FullTuning,
    Ia3Tuning,
    LoraTuning,
    PrefixTuning,
    PromptTuning,
    QloraTuning,
)


@dataclass(frozen=True, slots=True)
class ModelShape:
    """The numbers of a config.json that memory and time depend on; heads and kv_heads of head_dim features each."""

    model_type: str
    vocab: int
    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    tied: bool
    attention_bias: bool
    mlp_bias: bool

    @property
    def query(self) -> int:
        """Return the features of all query heads together."""
        return self.heads * self.head_dim

    @property
    def key(self) -> int:
        """Return the features of all key heads together; values have as many."""
        return self.kv_heads * self.head_dim


@dataclass(frozen=True, slots=True)
class Weight:
    """One parameter, in the order of the model. quantised: kept in 4 bits."""

    name: str
    shape: tuple[int, ...]
    trained: bool
    quantised: bool = False

    @property
    def numel(self) -> int:
        """Return the number of elements."""
        return math.prod(self.shape)

    @property
    def decays(self) -> bool:
        """Return whether it is a matrix, as far as weight decay tells matrices from vectors."""
        return sum(size > 1 for size in self.shape) > 1


def read_shape(folder: Path, *, vocab_size: int | None = None) -> ModelShape:
    """Return the shape of the model in `folder`, whose embeddings are resized to `vocab_size` if that is more.

    Raises RunError for a folder without config.json, and for a type of model or a number that cannot be right.
    """
    path = folder / "config.json"
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        what = "has no config.json" if folder.is_dir() else "no such folder"
        raise RunError(f"model: {folder}: {what}; expected a Hugging Face model folder") from None
    except ValueError as error:
        raise RunError(f"model: {path}: is not JSON: {error}; fetch it again") from None
    if not isinstance(raw, dict):
        raise RunError(f"model: {path}: got {type(raw).__name__}; expected a JSON object")
    model_type = raw.get("model_type")
    if model_type not in SUPPORTED_MODEL_TYPES:
        raise RunError(
            f"model: {path}: this type of model is not supported: got {model_type!r}; "
            f"expected one of {', '.join(SUPPORTED_MODEL_TYPES)}"
        )
    hidden, heads = _number(raw, "hidden_size", path), _number(raw, "num_attention_heads", path)
    return ModelShape(
        model_type=model_type,
        vocab=max(_number(raw, "vocab_size", path), vocab_size or 0),
        hidden=hidden,
        intermediate=_number(raw, "intermediate_size", path),
        layers=_number(raw, "num_hidden_layers", path),
        heads=heads,
        kv_heads=_number(raw, "num_key_value_heads", path, default=heads),
        # Qwen3's configuration has 128 by default, whatever the width.
        head_dim=_number(
            raw, "head_dim", path, default=128 if model_type == "qwen3" else max(1, hidden // heads)
        ),
        tied=bool(raw.get("tie_word_embeddings", False)),
        attention_bias=bool(raw.get("attention_bias", False)),
        mlp_bias=bool(raw.get("mlp_bias", False)),
    )


def _number(raw: Mapping[str, Any], key: str, path: Path, *, default: int | None = None) -> int:
    value = raw.get(key)
    if value is None and default is not None:
        return default
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise RunError(f"model: {path}: {key}: got {value!r}; expected a whole number above 0")
    return value


def base_weights(shape: ModelShape) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the model's own parameters by name, in the order of `named_parameters`."""
    h, i, q, k = shape.hidden, shape.intermediate, shape.query, shape.key
    weights: dict[str, tuple[int, ...]] = {EMBEDDINGS: (shape.vocab, h)}
    qkv_bias = shape.model_type == "qwen2" or shape.attention_bias
    output_bias = shape.model_type != "qwen2" and shape.attention_bias
    for layer in range(shape.layers):
        at = f"model.layers.{layer}"
        for name, size, width, bias in (
            ("self_attn.q_proj", q, h, qkv_bias),
            ("self_attn.k_proj", k, h, qkv_bias),
            ("self_attn.v_proj", k, h, qkv_bias),
            ("self_attn.o_proj", h, q, output_bias),
        ):
            weights[f"{at}.{name}.weight"] = (size, width)
            if bias:
                weights[f"{at}.{name}.bias"] = (size,)
        if shape.model_type == "qwen3":
            weights[f"{at}.self_attn.q_norm.weight"] = (shape.head_dim,)
            weights[f"{at}.self_attn.k_norm.weight"] = (shape.head_dim,)
        for name, size, width in (("gate_proj", i, h), ("up_proj", i, h), ("down_proj", h, i)):
            weights[f"{at}.mlp.{name}.weight"] = (size, width)
            if shape.mlp_bias:
                weights[f"{at}.mlp.{name}.bias"] = (size,)
        weights[f"{at}.input_layernorm.weight"] = (h,)
        weights[f"{at}.post_attention_layernorm.weight"] = (h,)
    weights["model.norm.weight"] = (h,)
    if not shape.tied:
        weights[HEAD] = (shape.vocab, h)
    return weights


def run_weights(config: RunConfig, shape: ModelShape) -> tuple[Weight, ...]:
    """Return every parameter of a run: the model's, then what its tuning method adds."""
    base, tuning = base_weights(shape), config.tuning
    patterns: tuple[str, ...] = ()
    if isinstance(tuning, FullTuning | BitfitTuning):
        patterns = ("*.bias",) if isinstance(tuning, BitfitTuning) else tuning.train or ("*",)
    quantised = (
        {f"{name}.weight" for name in linear_layers(base)} if isinstance(tuning, QloraTuning) else set()
    )
    own = [
        Weight(name, size, any(fnmatchcase(name, pattern) for pattern in patterns), name in quantised)
        for name, size in base.items()
    ]
    return (*own, *(Weight(name, size, True) for name, size in _added(config, shape, base)))


def _added(
    config: RunConfig, shape: ModelShape, base: Mapping[str, tuple[int, ...]]
) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield names and shapes of what a tuning method adds; the layouts are peft's, and bottleneck.py's."""
    tuning = config.tuning
    if isinstance(tuning, PromptTuning):
        yield "virtual.embedding.weight", (tuning.num_virtual_tokens, shape.hidden)
    if isinstance(tuning, PrefixTuning):
        yield "virtual.embedding.weight", (tuning.num_virtual_tokens, shape.layers * 2 * shape.key)
    for layer in linear_layers(base):
        outputs, inputs = base[f"{layer}.weight"]
        if isinstance(tuning, AdapterTuning) and layer.endswith((".o_proj", ".down_proj")):
            yield f"{layer}.bottleneck.down.weight", (tuning.size, outputs)
            yield f"{layer}.bottleneck.down.bias", (tuning.size,)
            yield f"{layer}.bottleneck.up.weight", (outputs, tuning.size)
            yield f"{layer}.bottleneck.up.bias", (outputs,)
        targets = getattr(tuning, "targets", ())
        if targets != "all-linear" and not any(matches(layer, target) for target in targets):
            continue
        if isinstance(tuning, Ia3Tuning):
            feedforward = any(matches(layer, name) for name in tuning.feedforward)
            yield f"{layer}.ia3_l", (1, inputs) if feedforward else (outputs, 1)
        if isinstance(tuning, LoraTuning | QloraTuning | AdaloraTuning):
            rank = tuning.initial_rank if isinstance(tuning, AdaloraTuning) else tuning.rank
            yield f"{layer}.lora_A", (rank, inputs)
            yield f"{layer}.lora_B", (outputs, rank)
            if isinstance(tuning, AdaloraTuning):
                yield f"{layer}.lora_E", (rank, 1)
            if isinstance(tuning, LoraTuning) and tuning.dora:
                yield f"{layer}.lora_magnitude_vector", (outputs,)
