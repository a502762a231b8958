"""Attention that keeps the documents of a pack apart, and the test at a run's start that shows that it does.

It is our own registered function: PyTorch's varlen kernel on a GPU, SDPA document by document elsewhere (on a CPU in
float32). No mask is ever built, and no detection from positions has to guess where documents begin.
"""

import inspect
from collections.abc import Callable
from functools import cache
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface

from data_tools.errors import RunError
from training.data import Batch
from training.sequence_parallel import cut_row, join_pieces, trade_heads_for_pieces, trade_pieces_for_heads
from training.tuning.virtual import put_in_front

ATTENTION_NAME = "shardtune_packed"
SEQUENCE_ATTENTION_NAME = "shardtune_packed_sequence"


def packed_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    document_lengths: tuple[int, ...],
    document_offsets: torch.Tensor,
    prefix: torch.Tensor | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Attend causally within each document of one packed row.

    query [1, heads, T, head_dim], key and value [1, kv_heads, T, head_dim]; document_offsets int32
    [documents + 1]. prefix: keys and values [layers, 2, kv_heads, tokens, head_dim] that every document sees in front
    of it. Returns [1, T, heads, head_dim], as transformers' attention functions do.
    """
    assert attention_mask is None
    dtype, grouped = query.dtype, query.shape[1] != key.shape[1]
    if not query.is_cuda:
        # The CPU kernel's backward in 16 bits compiles its products anew for each length: three to ten times as slow.
        query, key, value = query.float(), key.float(), value.float()
    lengths = list(document_lengths)
    keys, values = torch.split(key, lengths, 2), torch.split(value, lengths, 2)
    key_offsets, num_before = document_offsets, 0
    if prefix is not None:
        own, num_before = prefix[module.layer_idx].to(key.dtype), prefix.shape[3]  # type: ignore[index]
        keys, values = put_in_front(own[0], keys), put_in_front(own[1], values)
        key, value = torch.cat(keys, 2), torch.cat(values, 2)
        key_offsets = document_offsets + num_before * torch.arange(
            len(document_offsets), dtype=torch.int32, device=document_offsets.device
        )
    if query.is_cuda and query.dtype != torch.float32 and dropout == 0.0:
        return varlen_attention(
            query, key, value, document_offsets, key_offsets, max(document_lengths), num_before, scaling
        ), None
    pieces = [
        F.scaled_dot_product_attention(
            q,
            k,
            v,
            # `is_causal` counts keys from the first one, as if the prefix were the document.
            attn_mask=_causal_after(num_before, q) if num_before else None,
            is_causal=not num_before,
            scale=scaling,
            dropout_p=dropout,
            enable_gqa=grouped,
        )
        for q, k, v in zip(torch.split(query, lengths, 2), keys, values, strict=True)
    ]
    return torch.cat(pieces, 2).to(dtype).transpose(1, 2).contiguous(), None


def varlen_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    offsets: torch.Tensor,
    key_offsets: torch.Tensor,
    longest: int,
    num_before: int,
    scaling: float | None,
) -> torch.Tensor:
    """Return what PyTorch's kernel for rows of several lengths gives, [1, T, heads, head_dim]."""
    from torch.nn.attention.varlen import varlen_attn

    grouped = query.shape[1] != key.shape[1]
    options: dict[str, Any] = {"enable_gqa": True} if takes_groups(varlen_attn) else {}
    if grouped and not options:
        repeats = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1)
    attended = varlen_attn(
        query[0].transpose(0, 1),
        key[0].transpose(0, 1),
        value[0].transpose(0, 1),
        offsets,
        key_offsets,
        longest,
        longest + num_before,
        scale=scaling,
        window_size=(-1, 0),  # everything before a token, nothing after it
        **options,
    )
    assert isinstance(attended, torch.Tensor)  # a pair only if its statistics are asked for
    return attended.unsqueeze(0)


@cache
def takes_groups(varlen_attn: Callable[..., Any]) -> bool:
    """Return whether the kernel's function takes fewer key than query heads: torch 2.13's does, 2.11's does not."""
    return "enable_gqa" in inspect.signature(varlen_attn).parameters


def _causal_after(num_before: int, query: torch.Tensor) -> torch.Tensor:
    """Return which keys each of a document's tokens sees, bool [length, num_before + length]."""
    length = query.shape[2]
    ones = torch.ones(length, num_before + length, dtype=torch.bool, device=query.device)
    return ones.tril(num_before)


def sequence_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    sequence_group: dist.ProcessGroup,
    document_lengths: tuple[int, ...],
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Do packed attention on a row that the ranks of a group share, each with a piece of `t` tokens.

    query [1, heads, t, head_dim], key and value [1, kv_heads, t, head_dim]; document_lengths and the rest of packed
    attention's options: of the whole row. Returns [1, t, heads, head_dim].
    """
    length = query.shape[2]
    query, key, value = trade_pieces_for_heads(
        query, key, value, sequence_group, num_tokens=sum(document_lengths)
    )
    attended, _ = packed_attention(
        module, query, key, value, attention_mask, document_lengths=document_lengths, **options
    )
    return trade_heads_for_pieces(attended, sequence_group, length=length), None


for name, function in ((ATTENTION_NAME, packed_attention), (SEQUENCE_ATTENTION_NAME, sequence_attention)):
    AttentionInterface.register(name, function)
    AttentionMaskInterface.register(name, lambda *_, **__: None)


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
    batch = Batch(ids, positions, lengths, none, none, none)
    group = engine.module.sequence_group
    if group is not None:
        batch = cut_row(batch, rank=group.rank(), size=group.size())
    engine.eval()
    logits: torch.Tensor = engine(batch.to(engine.device), output="logits").float()
    engine.train()
    return join_pieces(logits, group)
