"""The model of a run: loaded in partitions under ZeRO-3, with attention that keeps a pack's documents apart.

Attention is our own registered function: PyTorch's varlen kernel on a GPU, SDPA document by document elsewhere. No
mask is ever built, and no detection from positions has to guess where documents begin.
"""

import json
import struct
from pathlib import Path
from typing import Any

import deepspeed
import torch
import torch.nn.functional as F
from torch import nn
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    AutoConfig,
    AutoModelForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.integrations import HfDeepSpeedConfig

from data_tools.errors import RunError
from training.config import SUPPORTED_MODEL_TYPES, RunConfig
from training.data import Batch
from training.distributed import World
from training.loss import HeadOutput, TargetHead

ATTENTION_NAME = "shardtune_packed"
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


def packed_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    document_lengths: tuple[int, ...],
    document_offsets: torch.Tensor,
    scaling: float | None = None,
    dropout: float = 0.0,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Attend causally within each document of one packed row.

    query [1, heads, T, head_dim], key and value [1, kv_heads, T, head_dim]; document_offsets int32
    [documents + 1]. Returns [1, T, heads, head_dim], as transformers' attention functions do.
    """
    assert attention_mask is None
    grouped = query.shape[1] != key.shape[1]
    if query.is_cuda and query.dtype != torch.float32 and dropout == 0.0:
        from torch.nn.attention.varlen import varlen_attn

        longest = max(document_lengths)
        attended = varlen_attn(
            query[0].transpose(0, 1),
            key[0].transpose(0, 1),
            value[0].transpose(0, 1),
            document_offsets,
            document_offsets,
            longest,
            longest,
            scale=scaling,
            window_size=(-1, 0),
            enable_gqa=grouped,
        )
        assert isinstance(attended, torch.Tensor)  # a pair only if its statistics are asked for
        return attended.unsqueeze(0), None
    lengths = list(document_lengths)
    pieces = [
        F.scaled_dot_product_attention(
            q, k, v, is_causal=True, scale=scaling, dropout_p=dropout, enable_gqa=grouped
        )
        for q, k, v in zip(
            torch.split(query, lengths, 2),
            torch.split(key, lengths, 2),
            torch.split(value, lengths, 2),
            strict=True,
        )
    ]
    return torch.cat(pieces, 2).transpose(1, 2).contiguous(), None


AttentionInterface.register(ATTENTION_NAME, packed_attention)
AttentionMaskInterface.register(ATTENTION_NAME, lambda *_, **__: None)


class PackedCausalLM(nn.Module):
    """A Hugging Face causal language model that takes a `Batch` and gives the sum of its losses."""

    PREFIX = "hf."  # of the model's parameter names, seen from this module

    def __init__(self, model: PreTrainedModel, hf_deepspeed_config: object = None) -> None:
        super().__init__()
        self.hf = model
        model.set_output_embeddings(TargetHead(model.get_output_embeddings()))
        # transformers finds the ZeRO configuration through a weak reference to this object.
        self._hf_deepspeed_config = hf_deepspeed_config

    def forward(
        self, batch: Batch, output: HeadOutput = "loss_sum"
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        """Return Σ cross-entropy of the batch's targets, or what else `output` names (see TargetHead).

        `logits` are given for every position of the row, [T, vocabulary]; the rest for the targets only.
        """
        device = batch.input_ids.device
        lengths = torch.tensor((0, *batch.document_lengths), dtype=torch.int32, device=device)
        hidden = self.hf.base_model(
            input_ids=batch.input_ids,
            position_ids=batch.position_ids,
            use_cache=False,
            document_lengths=batch.document_lengths,
            document_offsets=lengths.cumsum(0, dtype=torch.int32),
        ).last_hidden_state[0]
        if output != "logits":
            hidden = hidden[batch.predictors]
        return self.hf.get_output_embeddings()(hidden, batch.labels, output)  # type: ignore[no-any-return]


def load_model(config: RunConfig, ds_config: dict[str, Any], world: World) -> PackedCausalLM:
    """Return the run's model in partitions: no rank holds the whole of it.

    Needs an initialised process group. Raises RunError, on every rank, if the weights do not fit the model's
    configuration: DeepSpeed itself would raise on rank 0 and let the others go on with garbage.
    """
    hf_config = AutoConfig.from_pretrained(config.model)
    check_architecture(config, hf_config)
    with torch.device("meta"):
        skeleton = AutoModelForCausalLM.from_config(hf_config)
    size_nvme_buffers(ds_config, max(parameter.numel() for parameter in skeleton.parameters()), world.size)
    live = HfDeepSpeedConfig(ds_config)
    options = {"dtype": DTYPES[config.precision], "attn_implementation": ATTENTION_NAME}
    if config.from_scratch:
        torch.manual_seed(config.seed)
        model = AutoModelForCausalLM.from_config(hf_config, **options)
    else:
        check_weights(skeleton, read_weight_shapes(config.model), config.model)
        model = AutoModelForCausalLM.from_pretrained(config.model, config=hf_config, **options)
    assert all(hasattr(parameter, "ds_id") for parameter in model.parameters()), (
        "the model is not partitioned"
    )
    if config.activation_checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
    model.train()
    return PackedCausalLM(model, live)


def size_nvme_buffers(ds_config: dict[str, Any], largest_numel: int, world_size: int) -> None:
    """Give parameters offloaded to NVMe buffers of the size they need, unless the file names one.

    A buffer holds one rank's partition of a parameter; one that is too small is an assertion deep in DeepSpeed, and
    there are dozens of them, so one that is too large is memory lost.
    """
    offload = ds_config["zero_optimization"].get("offload_param") or {}
    if offload.get("device") == "nvme":
        offload.setdefault("buffer_size", -(-largest_numel // world_size))


def check_architecture(config: RunConfig, hf_config: PretrainedConfig) -> None:
    """Refuse models that the packed attention is not right for."""
    if hf_config.model_type not in SUPPORTED_MODEL_TYPES:
        raise RunError(
            f"{config.model}: packed attention is not proved for this type of model: "
            f"got {hf_config.model_type}; expected one of {', '.join(SUPPORTED_MODEL_TYPES)}"
        )
    window = getattr(hf_config, "sliding_window", None)
    longest = getattr(hf_config, "max_position_embeddings", None)
    if window is not None and (longest is None or window < longest):
        raise RunError(
            f"{config.model}: sliding-window attention is not supported: got sliding_window {window} in "
            "config.json; expected none; set it to null there if the model attends to whole documents"
        )


def read_weight_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor in a model folder, from the safetensors headers alone."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise RunError(
            f"{folder}: no weights: expected *.safetensors files; save the model with safetensors, or set "
            "from_scratch: true to start from random weights"
        )
    shapes: dict[str, tuple[int, ...]] = {}
    for file in files:
        with file.open("rb") as stream:
            size = struct.unpack("<Q", stream.read(8).ljust(8, b"\0"))[0]
            if size > file.stat().st_size - 8:
                raise RunError(f"{file}: not a whole safetensors file; fetch it again")
            header = json.loads(stream.read(size))
        shapes.update(
            (name, tuple(entry["shape"])) for name, entry in header.items() if name != "__metadata__"
        )
    return shapes


def check_weights(model: PreTrainedModel, shapes: dict[str, tuple[int, ...]], folder: Path) -> None:
    """Compare the weights of a folder with what the model's configuration asks for, by name and shape.

    Raises RunError with every weight that is missing or has another shape.
    """
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)  # tied parameters have several names
    tied = set(getattr(model, "all_tied_weights_keys", None) or ())
    if tied:
        tied |= set(model.all_tied_weights_keys.values())
    wanted = {name: tuple(p.shape) for name, p in model.named_parameters(remove_duplicate=False)}
    prefix = f"{model.base_model_prefix}."
    mistakes = []
    tied_found = any(name in shapes for name in tied)
    for aliases in names.values():
        candidates = [*aliases, *(alias.removeprefix(prefix) for alias in aliases)]
        found = next((name for name in candidates if name in shapes), None)
        if found is None:
            if not (tied_found and any(alias in tied for alias in aliases)):
                mistakes.append(f"{aliases[0]} is missing; config.json expects {list(wanted[aliases[0]])}")
        elif shapes[found] != wanted[aliases[0]]:
            expected = list(wanted[aliases[0]])
            mistakes.append(f"{found} has shape {list(shapes[found])}; config.json expects {expected}")
    if mistakes:
        shown = "\n  ".join(
            mistakes[:20] + ([f"and {len(mistakes) - 20} more"] if len(mistakes) > 20 else [])
        )
        raise RunError(f"{folder}: the weights do not fit config.json:\n  {shown}")


@torch.no_grad()
def check_documents_apart(engine: deepspeed.DeepSpeedEngine, *, vocab_size: int) -> None:
    """Change one document of a pack and see that the logits of the others stay as they were, to the last bit.

    The leak that this would show is silent otherwise: training goes on, on documents that see each other. Every
    rank must call it. Raises RunError.
    """
    lengths = (5, 7, 4)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(vocab_size, (1, sum(lengths)), generator=generator)
    changed = ids.clone()
    changed[0, 5:12] = (changed[0, 5:12] + 1) % vocab_size
    logits = [_row_logits(engine, row, lengths) for row in (ids, changed)]
    others = torch.tensor([*range(5), *range(12, 16)], device=logits[0].device)
    leak = (logits[0] - logits[1])[others].abs().max().item()
    moved = (logits[0] - logits[1])[5:12].abs().max().item()
    if leak != 0.0 or moved == 0.0:
        raise RunError(
            "self-test of packed attention: changing one document of a pack moved the others' logits by "
            f"{leak:g} (expected 0) and its own by {moved:g} (expected more); "
            "this model cannot be trained on packs"
        )


def _row_logits(
    engine: deepspeed.DeepSpeedEngine, ids: torch.Tensor, lengths: tuple[int, ...]
) -> torch.Tensor:
    none = torch.zeros(0, dtype=torch.int64)
    positions = torch.cat([torch.arange(length) for length in lengths])[None]
    batch = Batch(ids, positions, lengths, none, none, none).to(engine.device)
    engine.eval()
    logits: torch.Tensor = engine(batch, output="logits").float()
    engine.train()
    return logits
