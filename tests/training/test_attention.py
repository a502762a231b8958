"""Attention on a CPU, and what the GPU's kernel is given by both torch versions; the kernel itself needs a GPU."""

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention.varlen import varlen_attn

from training.attention import packed_attention, takes_groups, varlen_attention

LENGTHS = (5, 1, 9)
OFFSETS = torch.tensor([0, 5, 6, 15], dtype=torch.int32)


def reference(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cu_seq_q: torch.Tensor,
    cu_seq_k: torch.Tensor,
    max_q: int,
    max_k: int,
    scale: float | None,
    window_size: tuple[int, int],
) -> torch.Tensor:
    """Attend as the kernel documents it: [T, heads, head_dim], the last query of a row sees all of its keys."""
    assert cu_seq_q.dtype == cu_seq_k.dtype == torch.int32
    assert max_q == cu_seq_q.diff().max()
    assert max_k == cu_seq_k.diff().max()
    assert window_size == (-1, 0)
    rows = []
    for (a, b), (c, d) in zip(
        cu_seq_q.unfold(0, 2, 1).tolist(), cu_seq_k.unfold(0, 2, 1).tolist(), strict=True
    ):
        q, k, v = (x.transpose(0, 1) for x in (query[a:b], key[c:d], value[c:d]))
        seen = torch.ones(b - a, d - c, dtype=torch.bool).tril((d - c) - (b - a))
        rows.append(F.scaled_dot_product_attention(q, k, v, attn_mask=seen, scale=scale).transpose(0, 1))
    return torch.cat(rows)


def as_in_torch_211(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *places: Any, return_aux: Any = None,
    scale: float | None = None, window_size: tuple[int, int] = (-1, -1),
) -> torch.Tensor:  # fmt: skip
    assert query.shape[1] == key.shape[1], "torch 2.11 has no groups"
    return reference(query, key, value, *places, scale, window_size)


def as_in_torch_213(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *places: Any, return_aux: Any = None,
    scale: float | None = None, window_size: tuple[int, int] = (-1, -1), enable_gqa: bool = False,
) -> torch.Tensor:  # fmt: skip
    assert enable_gqa or query.shape[1] == key.shape[1]
    repeats = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1)
    return reference(query, key, value, *places, scale, window_size)


@pytest.mark.parametrize("kernel", [as_in_torch_211, as_in_torch_213])
@pytest.mark.parametrize("kv_heads", [2, 4])
@pytest.mark.parametrize("num_before", [0, 3])
def test_the_kernel_is_given_what_makes_it_attend_as_on_a_cpu(
    kernel: Callable[..., torch.Tensor], kv_heads: int, num_before: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", kernel)
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(1, 4, sum(LENGTHS), 8, generator=generator)
    key, value = torch.randn(2, 1, kv_heads, sum(LENGTHS), 8, generator=generator)
    prefix = torch.randn(1, 2, kv_heads, num_before, 8, generator=generator) if num_before else None
    module = torch.nn.Module()
    module.layer_idx = 0  # type: ignore[assignment]
    expected, _ = packed_attention(
        module, query, key, value, None, document_lengths=LENGTHS, document_offsets=OFFSETS, prefix=prefix
    )
    if prefix is not None:
        pairs = zip((key, value), prefix[0], strict=True)
        key, value = (
            torch.cat([piece for own in x.split(LENGTHS, 2) for piece in (before[None], own)], 2)
            for x, before in pairs
        )
    key_offsets = OFFSETS + num_before * torch.arange(4, dtype=torch.int32)
    attended = varlen_attention(query, key, value, OFFSETS, key_offsets, max(LENGTHS), num_before, None)
    torch.testing.assert_close(attended, expected)


@pytest.mark.parametrize("num_before", [0, 3])
def test_a_cpu_attends_to_16_bits_in_float32(num_before: int) -> None:
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(1, 4, sum(LENGTHS), 8, generator=generator).bfloat16()
    key, value = torch.randn(2, 1, 2, sum(LENGTHS), 8, generator=generator).bfloat16()
    prefix = torch.randn(1, 2, 2, num_before, 8, generator=generator).bfloat16() if num_before else None
    module = torch.nn.Module()
    module.layer_idx = 0  # type: ignore[assignment]
    attended, _ = packed_attention(
        module, query, key, value, None, document_lengths=LENGTHS, document_offsets=OFFSETS, prefix=prefix
    )
    wide, _ = packed_attention(
        module,
        query.float(),
        key.float(),
        value.float(),
        None,
        document_lengths=LENGTHS,
        document_offsets=OFFSETS,
        prefix=None if prefix is None else prefix.float(),
    )
    assert attended.dtype == torch.bfloat16
    assert attended.is_contiguous()
    assert torch.equal(attended, wide.bfloat16())


def test_the_installed_torch_takes_our_arguments() -> None:
    known = inspect.signature(varlen_attn).parameters
    assert {"scale", "window_size"} <= set(known)
    assert takes_groups(varlen_attn) == ("enable_gqa" in known)
    assert not takes_groups(as_in_torch_211)
