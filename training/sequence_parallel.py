"""Sequence parallelism, for rows too long for one rank: ranks share a row, and each computes a piece of it.

Only attention looks beyond a piece. Around it the ranks of a group exchange (Ulysses, Jacobs et al. 2023): each gives
away its piece of most heads for the whole row of a few, does packed attention on these, and exchanges back. Weights
and gradients are partitioned over all ranks of the run as ever. DeepSpeed's own exchange (0.19.8, deepspeed.sequence)
sends queries, keys and values one after the other, each copied twice; here they go together, and are copied once.
"""

from dataclasses import replace
from functools import cache
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F

from training.data import Batch
from training.distributed import TIMEOUT


@cache  # an engine after the other in one process needs no groups of its own
def sequence_group(size: int) -> dist.ProcessGroup | None:
    """Return the `size` neighbouring ranks that share a row with this one; None if it has its rows for itself.

    Every rank must call it. Neighbours are on one node as far as they can be, where the exchange is fast.
    """
    if size == 1:
        return None
    group: dist.ProcessGroup = dist.new_subgroups(size, timeout=TIMEOUT)[0]  # type: ignore[no-untyped-call]
    return group


def cut_row(batch: Batch, *, rank: int, size: int) -> Batch:
    """Return piece `rank` of a row that is cut into `size` pieces of equal length.

    input_ids and position_ids are the piece's, [1, ceil(T / size)], filled up with zeros behind the row's end; targets
    are those that the piece predicts. document_lengths stay those of the whole row. Example: a target at position 8 of
    16 belongs to piece 0 of 2, whose last output predicts it.
    """
    if size == 1:
        return batch
    length = -(-batch.num_tokens // size)
    start, stop = rank * length, (rank + 1) * length
    missing = size * length - batch.num_tokens
    inside = (batch.predictors >= start) & (batch.predictors < stop)
    return replace(
        batch,
        input_ids=F.pad(batch.input_ids, (0, missing))[:, start:stop],
        position_ids=F.pad(batch.position_ids, (0, missing))[:, start:stop],
        predictors=batch.predictors[inside] - start,
        labels=batch.labels[inside],
        label_tasks=batch.label_tasks[inside],
        piece=rank,
    )


def join_pieces(values: torch.Tensor, group: dist.ProcessGroup | None) -> torch.Tensor:
    """Return what the ranks of a group have for their pieces, one behind the other; pieces may differ in length.

    For tests and self-tests. Every rank of the group must call it, and gets the same, on its own device.
    """
    if group is None:
        return values
    pieces: list[torch.Tensor] = [values] * group.size()
    dist.all_gather_object(pieces, values.cpu(), group=group)
    return torch.cat(pieces).to(values.device)


def trade_pieces_for_heads(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, group: dist.ProcessGroup, *, num_tokens: int
) -> tuple[torch.Tensor, ...]:
    """Return queries, keys and values of this rank's heads for the whole row, [1, heads / size, num_tokens, head_dim].

    query [1, heads, t, head_dim], key and value [1, kv_heads, t, head_dim]: of this rank's piece.
    """
    size = group.size()
    if key.shape[1] < size:  # each goes to all the ranks whose queries look at it
        key, value = (states.repeat_interleave(size // key.shape[1], 1) for states in (key, value))
    heads = [states.shape[1] // size for states in (query, key, value)]
    # [size, t, one rank's heads of all three, head_dim]
    parts = torch.cat(
        [torch.unflatten(states[0], 0, (size, -1)).transpose(1, 2) for states in (query, key, value)], 2
    )
    row = _all_to_all(parts, group).flatten(0, 1)[:num_tokens]
    return tuple(states.transpose(0, 1)[None] for states in torch.split(row, heads, 1))


def trade_heads_for_pieces(attended: torch.Tensor, group: dist.ProcessGroup, *, length: int) -> torch.Tensor:
    """Return what all heads attended to for this rank's piece, [1, length, heads, head_dim].

    attended [1, T, heads / size, head_dim]: of this rank's heads.
    """
    size = group.size()
    filled = F.pad(attended[0], (0, 0, 0, 0, 0, size * length - attended.shape[1]))
    pieces = _all_to_all(torch.unflatten(filled, 0, (size, length)), group)
    return pieces.transpose(0, 1).flatten(1, 2)[None]


def _all_to_all(parts: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
    """Give part i of a tensor [size, …] to rank i of the group, and return the parts that come from all of them."""
    received: torch.Tensor = _AllToAll.apply(parts, group)  # type: ignore[no-untyped-call]
    return received


def _exchange(parts: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
    received = torch.empty(parts.shape, dtype=parts.dtype, device=parts.device)
    dist.all_to_all_single(received, parts.contiguous(), group=group)
    return received


class _AllToAll(torch.autograd.Function):
    """The exchange, with gradients: it undoes itself, so they take the same way."""

    @staticmethod
    def forward(ctx: Any, parts: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
        ctx.group = group
        return _exchange(parts, group)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        return _exchange(gradients[0], ctx.group), None
