"""The order of packs, how a step is shared out, and what a batch holds."""

from pathlib import Path
from random import Random
from types import SimpleNamespace

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from training.data import (
    PackOrder,
    Slot,
    epoch_permutation,
    eval_shares,
    make_batch,
    num_step_targets,
    pack_cost,
    rank_share,
    step_slots,
)


class FakeSplit:
    """Two packs in memory; the reader of real shards is tested with the shards."""

    target_tokens = np.array([3, 2])

    def pack(self, number: int) -> SimpleNamespace:
        ids = np.arange(10, 17) if number == 0 else np.arange(20, 24)
        targets = np.isin(ids, [11, 15, 16, 22, 23])
        lengths = [3, 4] if number == 0 else [4]
        return SimpleNamespace(
            input_ids=ids.astype(np.uint16),
            targets=targets,
            seq_lengths=np.array(lengths, np.int32),
            task_ids=np.array([5, 6] if number == 0 else [7], np.uint32),
        )


def test_the_order_is_the_same_for_ever() -> None:
    # Written down once: a change of the algorithm would make runs go on in another order.
    assert epoch_permutation("abc", 17, 0, 8).tolist() == [2, 3, 5, 4, 0, 7, 1, 6]


@given(st.integers(1, 300), st.integers(0, 2**40), st.integers(0, 50))
def test_each_epoch_holds_each_pack_once(num_packs: int, seed: int, epoch: int) -> None:
    assert sorted(epoch_permutation("f", seed, epoch, num_packs)) == list(range(num_packs))


def test_epochs_and_seeds_and_datasets_differ() -> None:
    orders = {
        tuple(epoch_permutation(name, seed, epoch, 50))
        for name in "ab"
        for seed in (1, 2)
        for epoch in (0, 1)
    }
    assert len(orders) == 8


def deal(slots: list[Slot], costs: list[int], *, micro_packs: int, world_size: int) -> list[list[list[Slot]]]:
    """Return the micro-batches of all ranks."""
    return [
        rank_share(slots, costs, micro_packs=micro_packs, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]


@given(
    accumulation=st.integers(1, 4),
    micro_packs=st.integers(1, 3),
    num_packs=st.integers(1, 40),
    costs=st.randoms(use_true_random=False),
)
def test_any_number_of_ranks_has_the_same_micro_batches_and_each_rank_as_many(
    accumulation: int, micro_packs: int, num_packs: int, costs: Random
) -> None:
    order = PackOrder(fingerprint="f", seed=1, num_packs=num_packs)
    slots = step_slots(order, consumed=7, packs_per_step=12 * micro_packs * accumulation, end=None)
    cost = [costs.randrange(5) for _ in slots]
    found = []
    for world_size in (1, 2, 3, 4, 6, 12):
        shares = deal(slots, cost, micro_packs=micro_packs, world_size=world_size)
        assert {len(share) for share in shares} == {12 * accumulation // world_size}
        groups = [group for share in shares for group in share]
        found.append(sorted([slot.position for slot in group] for group in groups))
    assert all(groups == found[0] for groups in found)
    assert [position for group in found[0] for position in group] == [slot.position for slot in slots]


@given(
    costs=st.lists(st.integers(1, 100), min_size=24, max_size=24), world_size=st.sampled_from((2, 3, 4, 6))
)
def test_no_other_dealing_waits_less(costs: list[int], world_size: int) -> None:
    slots = [Slot(position, position, True) for position in range(24)]
    shares = deal(slots, costs, micro_packs=1, world_size=world_size)
    rounds = [[costs[share[turn][0].position] for share in shares] for turn in range(24 // world_size)]
    # A round takes as long as its dearest micro-batch, and the k-th longest round at least as long as the k x ranks-th
    # dearest of all.
    assert sorted((max(costs) for costs in rounds), reverse=True) == sorted(costs, reverse=True)[::world_size]


def test_every_second_round_is_dealt_backwards() -> None:
    slots = [Slot(position, position, True) for position in range(4)]
    shares = deal(slots, [1, 9, 2, 8], micro_packs=1, world_size=2)
    assert [[group[0].position for group in share] for share in shares] == [[1, 0], [3, 2]]


def test_the_last_step_is_filled_up_with_packs_of_weight_0() -> None:
    order = PackOrder(fingerprint="f", seed=1, num_packs=3)
    slots = step_slots(order, consumed=4, packs_per_step=4, end=6)
    assert [slot.weighs for slot in slots] == [True, True, False, False]


@given(st.integers(1, 30), st.integers(1, 4), st.integers(1, 4))
def test_evaluation_sees_each_pack_once_and_ranks_go_in_step(num_packs: int, micro: int, world: int) -> None:
    shares = [
        list(eval_shares(num_packs, micro_packs=micro, rank=rank, world_size=world)) for rank in range(world)
    ]
    assert len({len(share) for share in shares}) == 1
    seen = [slot.pack for share in shares for group in share for slot in group if slot.weighs]
    assert sorted(seen) == list(range(num_packs))


def test_a_batch_lays_packs_end_to_end_with_restarting_positions() -> None:
    batch = make_batch(FakeSplit(), [Slot(0, 1, True), Slot(1, 0, True)])
    assert batch.input_ids.tolist() == [[20, 21, 22, 23, 10, 11, 12, 13, 14, 15, 16]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 0, 1, 2, 0, 1, 2, 3]]
    assert batch.document_lengths == (4, 3, 4)
    assert batch.labels.tolist() == [22, 23, 11, 15, 16]
    assert batch.input_ids[0, batch.predictors].tolist() == [21, 22, 10, 14, 15]
    assert batch.label_tasks.tolist() == [7, 7, 5, 6, 6]
    assert (batch.num_tokens, batch.num_squares) == (11, 4**2 + 3**2 + 4**2)
    assert [pack_cost(FakeSplit(), pack) for pack in (0, 1)] == [25, 16]
    assert make_batch(FakeSplit(), [Slot(6, 1, True), Slot(7, 0, True)]).position == 6


def test_a_filler_keeps_its_tokens_and_loses_its_targets() -> None:
    slots = [Slot(0, 1, False), Slot(1, 0, True)]
    batch = make_batch(FakeSplit(), slots)
    assert batch.num_tokens == 11
    assert batch.labels.tolist() == [11, 15, 16]
    assert num_step_targets(slots, FakeSplit()) == 3


def test_the_random_numbers_of_a_micro_batch_follow_from_its_position(tmp_path: Path) -> None:
    import torch

    from training.data import seed_random

    drawn = []
    for position in (0, 8, 0):
        seed_random(17, position)
        drawn.append(torch.rand(3).tolist())
    assert drawn[0] == drawn[2] != drawn[1]
