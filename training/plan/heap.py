"""What the heap of a process on CPUs holds: blocks in use, and holes between them that stay with the process.

torch asks for blocks with posix_memalign. glibc before 2.38 finds a hole for one of n bytes only if it has n + 96, so
what is freed never serves the next block of its size: the heap grows although it has room. Only blocks below HEAP_BLOCK
make it grow; larger ones are taken from it where a hole is wide enough, and are mapped by themselves elsewhere.

The numbers below were fitted to 23 shapes of runs, and tried on others: see docs/plan.md.
"""

from collections.abc import Collection

from training.plan.job import Memory

PER_BYTE_IN_USE = 1.4  # of the heap, at the moment at which most of it is in use
PER_BYTE_PASSING = 0.4  # what comes and goes within layers leaves holes behind in each of them
PER_SMALL_BYTE = (
    3  # where larger blocks find holes, they make the heap so many times as large as small ones alone
)

IN_USE = 0.65  # of the heap at a moment, at most: a larger block that finds no hole is mapped by itself


def heap_size(moments: Collection[Memory], passing: Memory) -> int:
    """Return the bytes that the heap grows to in a step; passing: what the backward makes and frees, of all layers."""

    def grown(in_use: int, passing: int) -> float:
        return PER_BYTE_IN_USE * in_use + PER_BYTE_PASSING * passing

    of_small = grown(max(moment.small for moment in moments), passing.small)
    of_all = grown(max(moment.in_heap for moment in moments), passing.in_heap)
    return round(min(PER_SMALL_BYTE * of_small, of_all))


def free_in_heap(moment: Memory, size: int) -> int:
    """Return how much of a heap of `size` bytes is free at a moment."""
    return size - min(moment.in_heap, round(size * IN_USE))
