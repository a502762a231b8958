"""Packing: every item once, no pack too long, as few packs as plain best fit, full packs at scale."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from data_tools.completion import complete_packs, draw_packs
from data_tools.packing import best_fit_decreasing, pack


def lengths_for(capacity: int) -> st.SearchStrategy[list[int]]:
    return st.lists(st.integers(1, capacity), max_size=200)


cases = st.integers(1, 300).flatmap(lambda capacity: st.tuples(st.just(capacity), lengths_for(capacity)))


def plain_best_fit(lengths: list[int], capacity: int) -> int:
    """Return the number of bins that the textbook algorithm opens."""
    rooms: list[int] = []
    for length in sorted(lengths, reverse=True):
        fitting = [room for room in rooms if room >= length]
        if fitting:
            rooms[rooms.index(min(fitting))] -= length
        else:
            rooms.append(capacity - length)
    return len(rooms)


@given(cases)
def test_bulk_steps_open_as_many_bins_as_the_textbook_algorithm(case: tuple[int, list[int]]) -> None:
    capacity, lengths = case
    bins = best_fit_decreasing(np.array(lengths, np.int64), capacity)
    assert len(set(bins.tolist())) == plain_best_fit(lengths, capacity)
    fill = np.bincount(bins, lengths)
    assert fill.max(initial=0) <= capacity


@pytest.mark.parametrize("algorithm", [complete_packs, draw_packs])
@given(case=cases)
def test_completion_places_every_item_and_leaves_no_bin_empty(
    algorithm: Callable[..., NDArray[np.int64]], case: tuple[int, list[int]]
) -> None:
    capacity, lengths = case
    bins = algorithm(np.array(lengths, np.int64), capacity)
    assert set(bins.tolist()) == set(range(len(set(bins.tolist()))))
    assert np.bincount(bins, lengths).max(initial=0) <= capacity


def test_completion_fills_what_best_fit_leaves() -> None:
    lengths = np.array([300] * 9 + [80] * 3 + [44] * 3)
    assert np.bincount(complete_packs(lengths, 1024), lengths).tolist() == [1024] * 3
    alike = np.clip(np.random.default_rng(3).lognormal(4.5, 0.5, 50_000).astype(np.int64), 60, 1024)
    assert fill_of(alike, 1024)[0] >= 0.995
    bins = best_fit_decreasing(alike, 1024)
    assert alike.sum() / (1024 * (bins.max() + 1)) < 0.99


@given(cases, st.integers(1, 80), st.integers(0, 3))
@settings(deadline=None)
def test_every_item_lies_in_one_pack_for_any_window(
    case: tuple[int, list[int]], window: int, seed: int
) -> None:
    capacity, values = case
    lengths = np.array(values, np.int64)
    packing = pack(lengths, capacity, seed=seed, window=window)
    assert sorted(packing.items.tolist()) == list(range(len(values)))
    sizes = np.diff(packing.starts)
    assert packing.starts[0] == 0
    assert packing.starts[-1] == len(values)
    assert (sizes > 0).all()
    if len(values):
        assert np.add.reduceat(lengths[packing.items], packing.starts[:-1]).max() <= capacity


def fill_of(lengths: NDArray[np.int64], capacity: int, *, window: int = 2**20) -> tuple[float, int]:
    packing = pack(lengths, capacity, seed=17, window=window)
    return float(lengths.sum() / (packing.num_packs * capacity)), packing.num_packs


@pytest.mark.parametrize(
    ("mean_log", "spread", "capacity"),
    [(5.0, 0.8, 2048), (6.5, 0.8, 2048), (5.5, 1.2, 4096), (5.0, 0.5, 1024), (4.5, 0.5, 1024)],
)
def test_packs_are_full_from_a_thousand_on(mean_log: float, spread: float, capacity: int) -> None:
    drawn = np.random.default_rng(0).lognormal(mean_log, spread, 60_000)
    # None shorter than 40: a chat template alone takes that much.
    lengths = np.clip(drawn.astype(np.int64), 40, capacity)
    needed = int(np.searchsorted(np.cumsum(lengths), 1050 * capacity))
    fill, num_packs = fill_of(lengths[:needed], capacity)
    assert num_packs >= 1000
    assert fill >= 0.995


def test_narrow_bands_of_lengths_are_packed_full() -> None:
    rng = np.random.default_rng(0)
    bands = [rng.integers(low, high, 2000) for low, high in ((39, 47), (45, 76), (80, 93))]
    fill, num_packs = fill_of(np.concatenate(bands), 256)
    assert num_packs > 1000
    assert fill >= 0.995


def test_tails_of_windows_are_packed_together() -> None:
    lengths = np.clip(np.random.default_rng(1).lognormal(5.0, 0.8, 40_000).astype(np.int64), 8, 2048)
    packing = pack(lengths, 2048, seed=17, window=2_000)
    tokens = np.add.reduceat(lengths[packing.items], packing.starts[:-1])
    assert (tokens < 0.9 * 2048).sum() <= 1
    assert fill_of(lengths, 2048, window=2_000)[0] >= 0.995


def test_documents_that_cannot_share_a_pack_are_not_carried_for_ever() -> None:
    lengths = np.full(10_000, 700)
    packing = pack(lengths, 1024, seed=17, window=1_000)
    assert packing.num_packs == 10_000


def test_packs_of_long_documents_do_not_come_first() -> None:
    """An evaluation of the first packs alone sees all lengths."""
    lengths = np.concatenate((np.full(1_000, 1_000), np.full(10_000, 100)))
    packing = pack(lengths, 1_000, seed=17)
    num_documents = np.diff(packing.starts)
    assert 0.3 < (num_documents[:500] == 1).mean() < 0.7


def test_the_order_follows_the_seed() -> None:
    lengths = np.random.default_rng(2).integers(1, 100, 500)
    first, again, other = (pack(lengths, 128, seed=seed).items for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_too_long_an_item_is_our_own_mistake() -> None:
    with pytest.raises(AssertionError):
        pack(np.array([5]), 4, seed=0)
