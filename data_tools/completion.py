"""Packing by exact completion, for lengths that best fit packs badly: many alike, few short ones; pure.

Best fit places the short documents last and then finds gaps that are a little shorter than any of them. Here
each pack is begun with the longest documents left and ended with the two whose lengths fill it best.
"""

from collections import Counter

import numpy as np
from numpy.typing import NDArray


def complete_packs(lengths: NDArray[np.integer], capacity: int) -> NDArray[np.int64]:
    """Return the bin of each item, lengths [n] from 1 to `capacity`.

    Works on counts by length: a combination of lengths that is found once is used as often as the counts
    allow, so the number of steps grows with the distinct lengths. Example: capacity 1024, many of the lengths
    300 and 50 … 90: 3 x 300 leave 124, which 50 + 74 fill.
    """
    order = np.argsort(lengths, kind="stable")
    counts = np.bincount(lengths, minlength=capacity + 1)
    next_item = np.concatenate(([0], np.cumsum(counts)[:-1]))  # of each length, as a place in `order`
    bins = np.empty(len(lengths), np.int64)
    num_bins, longest = 0, capacity
    while True:
        while longest > 0 and counts[longest] == 0:
            longest -= 1
        if longest == 0:
            return bins
        combination = _combine(counts.copy(), longest, capacity)
        times = min(int(counts[length]) // number for length, number in combination.items())
        for length, number in combination.items():
            begin, end = next_item[length], next_item[length] + times * number
            bins[order[begin:end]] = np.repeat(np.arange(num_bins, num_bins + times), number)
            next_item[length] = end
            counts[length] -= times * number
        num_bins += times


def _combine(counts: NDArray[np.int64], longest: int, capacity: int) -> Counter[int]:
    """Return how many items of which length make one pack; `counts` is used up on the way."""
    combination: Counter[int] = Counter()
    room = capacity
    length = longest
    while room > 0:
        length = min(length, room)
        while length > 0 and counts[length] == 0:
            length -= 1
        if length == 0:
            break
        fitting = room // length
        pair = _best_pair(counts, room) if fitting <= 2 and combination else (0, 0)
        if sum(pair) == room or (fitting == 1 and combination):
            for part in filter(None, pair):
                combination[part] += 1
                counts[part] -= 1
                room -= part
            continue
        number = max(1, min(int(counts[length]), fitting - 2))
        combination[length] += number
        counts[length] -= number
        room -= number * length
    return combination


def _best_pair(counts: NDArray[np.int64], room: int) -> tuple[int, int]:
    """Return the one or two lengths (0 = none) whose sum comes nearest to `room`."""
    lengths = np.arange(room + 1)
    present = counts[: room + 1] > 0
    nearest = np.maximum.accumulate(np.where(present, lengths, 0))  # the longest present up to each length
    first = lengths[present]
    second = nearest[room - first]
    alone = (second == first) & (counts[first] < 2)
    second = np.where(alone, nearest[first - 1], second)
    best = len(first) - 1 - int(np.argmax((first + second)[::-1]))
    return int(first[best]), int(second[best])
