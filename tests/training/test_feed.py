"""The thread that makes plans and batches ready."""

import threading
from collections.abc import Iterator

import pytest
import torch

from data_tools.errors import ShardError
from data_tools.shards import Split, open_shards
from tests.training.small_run import make_small_run
from training.data import PackOrder, make_batch, num_step_targets, step_slots
from training.distributed import World
from training.feed import ITEMS_AHEAD, Ahead, Feed, StepPlan, plan_steps
from training.ledger import BEGINNING, extend_ledger

PACKS_PER_STEP, NUM_STEPS = 4, 5


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> Split:
    run = make_small_run(tmp_path_factory.mktemp("small") / "made")
    return open_shards(run.parent / "shards").splits["train"]


def plans(split: Split, *, rank: int, size: int, end: int | None = None) -> Iterator[StepPlan]:
    return plan_steps(
        split,
        PackOrder(fingerprint="f", seed=1, num_packs=split.num_packs),
        World(rank, size, rank),
        num_steps=NUM_STEPS,
        packs_per_step=PACKS_PER_STEP,
        micro_packs=1,
        consumed=0,
        end=end,
        ledger=BEGINNING,
    )


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("ahead")]


def test_a_feed_gives_the_packs_of_each_step_in_the_order_of_the_run(split: Split) -> None:
    order = PackOrder(fingerprint="f", seed=1, num_packs=split.num_packs)
    ledger, end = BEGINNING, PACKS_PER_STEP * NUM_STEPS - 1
    with Feed(split, plans(split, rank=1, size=2, end=end)) as feed:
        for step in range(NUM_STEPS):
            plan = feed.next_plan()
            slots = step_slots(order, consumed=4 * step, packs_per_step=PACKS_PER_STEP, end=end)
            ledger = extend_ledger(ledger, split, slots)
            assert (plan.slots, plan.ledger) == (slots, ledger)
            assert plan.consumed == min(4 * step + 4, end)
            assert plan.num_targets == num_step_targets(slots, split)
            assert len(plan.micro_batches) == 2
            for batch, share in zip(feed.batches(plan), plan.micro_batches, strict=True):
                expected = make_batch(split, share)
                assert torch.equal(batch.input_ids, expected.input_ids)
                assert torch.equal(batch.labels, expected.labels)
                assert batch.position == share[0].position
        assert len(threads()) == 1
    assert threads() == []


def test_ledger_and_order_are_those_of_any_number_of_ranks(split: Split) -> None:
    alone, *shared = (
        [*plans(split, rank=rank, size=size)] for rank, size in ((0, 1), (0, 2), (1, 2), (3, 4))
    )
    for other in shared:
        for plan, expected in zip(other, alone, strict=True):
            assert (plan.slots, plan.ledger, plan.num_targets) == (
                expected.slots,
                expected.ledger,
                expected.num_targets,
            )
            assert all(group in expected.micro_batches for group in plan.micro_batches)


def test_a_run_that_ends_early_leaves_no_thread_and_has_read_no_more_than_a_few_items_ahead() -> None:
    made: list[int] = []

    def count() -> Iterator[int]:
        for number in range(1000):
            made.append(number)
            yield number

    with Ahead(count()) as numbers:
        assert [next(numbers) for _ in range(5)] == [0, 1, 2, 3, 4]
    assert threads() == []
    assert len(made) <= 5 + ITEMS_AHEAD


def test_what_goes_wrong_in_the_thread_is_raised_where_it_is_due() -> None:
    def items() -> Iterator[int]:
        yield 1
        yield 2
        raise ShardError("train-00000.arrow: damaged")

    with Ahead(items()) as numbers:
        assert [next(numbers), next(numbers)] == [1, 2]
        with pytest.raises(ShardError, match="damaged"):
            next(numbers)
    assert threads() == []


def test_an_iterator_that_ends_ends() -> None:
    with Ahead(iter("abcdef")) as letters:
        assert list(letters) == list("abcdef")
