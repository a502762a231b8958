"""Packing by exact completion, for lengths that best fit packs badly: many alike, few short ones; pure.

Best fit places the short documents last and then finds gaps that are a little shorter than any of them. Here
each pack is begun, with the longest documents left or with drawn ones, and ended with the two whose lengths fill
it best. Drawn ones keep the mixture of what is left as it was, which narrow bands of lengths need to the end.
"""

from collections import Counter

import numpy as np
from numpy.typing import NDArray

from data_tools.fingerprints import mix


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


def draw_packs(lengths: NDArray[np.integer], capacity: int) -> NDArray[np.int64]:
    """Return the bin of each item, lengths [n] from 1 to `capacity`; the same bins for the same lengths.

    Items are drawn into a bin until two others fill it exactly, or as well as they can where no third would fit.
    Example: capacity 256, a third each of 39 … 46, 45 … 75 and 80 … 92: 99.9 % full, where best fit gives 96.8 %.
    """
    supply = _Supply(lengths, capacity)
    bins = np.empty(len(lengths), np.int64)
    number = 0
    while supply.left:
        room = capacity
        while supply.left and room >= supply.shortest:
            drawn = supply.next_drawn()
            if room < capacity and (room <= 2 * supply.longest or drawn > room):
                pair = _best_pair(supply.counts, room)
                if sum(pair) == room or room < 3 * supply.shortest or drawn > room:
                    for part in filter(None, pair):
                        bins[supply.take(part)] = number
                    break
            bins[supply.take(drawn)] = number
            room -= drawn
        number += 1
    return bins


class _Supply:
    """Items by length, given out in a drawn order or by the length that is asked for."""

    def __init__(self, lengths: NDArray[np.integer], capacity: int) -> None:
        self.counts = np.bincount(lengths, minlength=capacity + 1)
        self.left = len(lengths)
        self._shortest, self._longest = 1, capacity
        self._items = np.argsort(lengths, kind="stable")
        self._next_item = np.concatenate(([0], np.cumsum(self.counts)[:-1]))  # of each length, in `_items`
        hashes = mix(np.arange(len(lengths), dtype=np.uint64), seed=0, use="packing")
        self._drawn = lengths[np.argsort(hashes, kind="stable")]
        self._place = 0
        self._taken = np.zeros(capacity + 1, np.int64)  # of each length, since `_place` passed one of it

    @property
    def shortest(self) -> int:
        """Return the shortest length left; one beyond all if nothing is left."""
        while self._shortest < len(self.counts) and self.counts[self._shortest] == 0:
            self._shortest += 1
        return self._shortest

    @property
    def longest(self) -> int:
        """Return the longest length left."""
        while self.counts[self._longest] == 0:
            self._longest -= 1
        return self._longest

    def next_drawn(self) -> int:
        """Return the next length in the drawn order that is still there."""
        while self._taken[self._drawn[self._place]] > 0:
            self._taken[self._drawn[self._place]] -= 1
            self._place += 1
        return int(self._drawn[self._place])

    def take(self, length: int) -> int:
        """Take an item of a length; return which. In the drawn order the next of this length is passed over."""
        item = int(self._items[self._next_item[length]])
        self._next_item[length] += 1
        self._taken[length] += 1
        self.counts[length] -= 1
        self.left -= 1
        return item


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
