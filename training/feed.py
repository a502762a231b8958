"""What each step takes, worked out and made ready by a thread while the step before it runs.

Plans and batches follow from the run's settings alone, so it makes no difference when they are made. The thread is a
few items ahead, no more: memory stays small, and a run that ends early has read little for nothing.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import Generic, Self, TypeVar

from deepspeed.accelerator import get_accelerator

from data_tools.shards import Shards, Split
from training.config import RunConfig, end_of_run
from training.data import (
    Batch,
    PackOrder,
    Slot,
    make_batch,
    num_step_targets,
    pack_cost,
    rank_share,
    step_slots,
)
from training.distributed import World
from training.ledger import extend_ledger
from training.standing import Standing

Item = TypeVar("Item")
ITEMS_AHEAD = 3


@dataclass(frozen=True, slots=True)
class StepPlan:
    """What a step takes. slots: of all ranks. micro_batches: this rank's. num_targets: of all ranks.

    consumed, ledger: the packs of the run up to and with this step, and the hash of their rows (see ledger.py).
    """

    slots: list[Slot]
    micro_batches: list[list[Slot]]
    num_targets: int
    consumed: int
    ledger: str


def plan_step(
    split: Split,
    order: PackOrder,
    world: World,
    *,
    packs_per_step: int,
    micro_packs: int,
    consumed: int,
    end: int | None = None,
    ledger: str = "",
) -> StepPlan:
    """Return what the step takes that follows after `consumed` packs of a run; `end` as in `step_slots`."""
    slots = step_slots(order, consumed=consumed, packs_per_step=packs_per_step, end=end)
    costs = [pack_cost(split, slot.pack) for slot in slots]
    return StepPlan(
        slots=slots,
        micro_batches=rank_share(
            slots, costs, micro_packs=micro_packs, rank=world.data_rank, world_size=world.data_size
        ),
        num_targets=num_step_targets(slots, split),
        consumed=consumed + sum(slot.weighs for slot in slots),  # all but the fillers of a run's last step
        ledger=extend_ledger(ledger, split, slots),
    )


class Ahead(Iterator[Item], Generic[Item]):
    """An iterator that a thread runs a few items ahead, in a `with`; what it raises is raised where it is due."""

    def __init__(self, items: Iterator[Item]) -> None:
        self._items = items
        self._taken: deque[Future[Item]] = deque()
        device = get_accelerator().current_device()
        # Each thread has a current device of its own, which pinned memory belongs to.
        self._thread = ThreadPoolExecutor(
            max_workers=1,
            thread_name_prefix="ahead",
            initializer=lambda: get_accelerator().set_device(device),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._thread.shutdown(wait=True, cancel_futures=True)

    def __next__(self) -> Item:
        while len(self._taken) <= ITEMS_AHEAD:
            self._taken.append(self._thread.submit(next, self._items))
        return self._taken.popleft().result()


def make_batches(split: Split, micro_batches: Iterable[list[Slot]]) -> Iterator[Batch]:
    """Yield the batch of each micro-batch, in pinned memory where there is a GPU."""
    on_gpu = get_accelerator().device_name() != "cpu"
    for slots in micro_batches:
        batch = make_batch(split, slots)
        yield batch.pinned() if on_gpu else batch


def plan_steps(
    split: Split,
    order: PackOrder,
    world: World,
    *,
    num_steps: int,
    packs_per_step: int,
    micro_packs: int,
    consumed: int,
    end: int | None,
    ledger: str,
) -> Iterator[StepPlan]:
    """Yield the plans of the next `num_steps` steps of a run that stands at `consumed` and `ledger`."""
    for _ in range(num_steps):
        plan = plan_step(
            split,
            order,
            world,
            packs_per_step=packs_per_step,
            micro_packs=micro_packs,
            consumed=consumed,
            end=end,
            ledger=ledger,
        )
        consumed, ledger = plan.consumed, plan.ledger
        yield plan


class Feed:
    """The plans of a run's steps and their batches, in a `with`: each plan is followed by its batches."""

    def __init__(self, split: Split, plans: Iterator[StepPlan]) -> None:
        self._items: Ahead[StepPlan | Batch] = Ahead(_in_turn(split, plans))

    def __enter__(self) -> Self:
        self._items.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._items.__exit__(kind, error, trace)

    def next_plan(self) -> StepPlan:
        """Return the plan of the next step, all batches of the one before being taken."""
        plan = next(self._items)
        assert isinstance(plan, StepPlan)
        return plan

    def batches(self, plan: StepPlan) -> Iterator[Batch]:
        """Yield this rank's batches of the plan that was returned last."""
        for _ in plan.micro_batches:
            batch = next(self._items)
            assert isinstance(batch, Batch)
            yield batch


def feed_of_run(
    config: RunConfig, shards: Shards, standing: Standing, world: World, *, num_steps: int
) -> Feed:
    """Return the feed of a run from where it stands to its last step, `num_steps`."""
    split = shards.splits["train"]
    plans = plan_steps(
        split,
        PackOrder(fingerprint=shards.fingerprint, seed=config.seed, num_packs=split.num_packs),
        world,
        num_steps=num_steps - standing.step,
        packs_per_step=config.batch.packs_per_step,
        micro_packs=config.batch.packs_per_forward,
        consumed=standing.consumed,
        end=end_of_run(config, split.num_packs),
        ledger=standing.ledger,
    )
    return Feed(split, plans)


def _in_turn(split: Split, plans: Iterator[StepPlan]) -> Iterator[StepPlan | Batch]:
    for plan in plans:
        yield plan
        yield from make_batches(split, plan.micro_batches)
