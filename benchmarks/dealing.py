"""How long ranks wait for each other's packs: `python benchmarks/dealing.py SHARDS [--ranks 2 8 64] [--output FILE]`.

The ranks of ZeRO-3 gather each layer together, so a micro-batch takes as long as the slowest rank's. Of the train
split's packs, in the order that a run takes them, it says for each number of ranks how much more than the mean the
slowest rank has to do, over all micro-steps: with packs dealt in the order of the sequence, and as `rank_share` deals
them. Once by Σ length² alone, and once by the operations of a whole model (by default of 7B parameters).
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data_tools.shards import open_shards
from training.data import PackOrder, Slot, pack_cost, rank_share, step_slots

Costs = NDArray[np.float64]
Dealing = Callable[
    [list[Slot], list[int], int], list[list[Slot]]
]  # slots, costs, ranks -> the slots of each rank


def in_order(slots: list[Slot], costs: list[int], ranks: int) -> list[list[Slot]]:
    """Deal each rank a run of neighbouring slots."""
    each = len(slots) // ranks
    return [slots[rank * each : (rank + 1) * each] for rank in range(ranks)]


def by_cost(slots: list[Slot], costs: list[int], ranks: int) -> list[list[Slot]]:
    """Deal as the trainer does."""
    return [
        [group[0] for group in rank_share(slots, costs, micro_packs=1, rank=rank, world_size=ranks)]
        for rank in range(ranks)
    ]


def waiting(
    order: PackOrder, squares: list[int], cost: Costs, deal: Dealing, *, ranks: int, packs: int, steps: int
) -> float:
    """Return Σ over micro-steps of the slowest rank's cost, over that of the mean; 1 is no waiting at all."""
    slowest = mean = 0.0
    for step in range(steps):
        slots = step_slots(order, consumed=step * packs, packs_per_step=packs, end=None)
        shares = deal(slots, [squares[slot.pack] for slot in slots], ranks)
        costs = cost[[[slot.pack for slot in share] for share in shares]]  # [ranks, micro-steps]
        slowest += costs.max(0).sum()
        mean += costs.mean(0).sum()
    return slowest / mean


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("shards", type=Path)
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 8, 64])
    parser.add_argument("--micro-steps", type=int, default=8, help="micro-batches of a rank in a step")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--parameters", type=float, default=6.74e9)
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--width", type=int, default=4096)
    parser.add_argument("--output", type=Path, help="a JSON file for the figures")
    options = parser.parse_args()
    shards = open_shards(options.shards)
    split = shards.splits["train"]
    order = PackOrder(fingerprint=shards.fingerprint, seed=17, num_packs=split.num_packs)
    squares = [pack_cost(split, pack) for pack in range(split.num_packs)]
    attention = np.array(squares, np.float64)
    model = 6 * options.parameters * split.tokens + 6 * options.layers * options.width * attention
    found = []
    print(f"{split.num_packs} packs of up to {shards.seq_len} tokens, {options.micro_steps} a rank and step")
    print("the slowest rank, over the mean       in order    dealt")
    for ranks in options.ranks:
        for what, cost in (("sum of length^2", attention), ("whole model", model)):
            row = {
                name: waiting(
                    order,
                    squares,
                    cost,
                    deal,
                    ranks=ranks,
                    packs=ranks * options.micro_steps,
                    steps=options.steps,
                )
                for name, deal in (("in_order", in_order), ("dealt", by_cost))
            }
            found.append({"ranks": ranks, "cost": what, **row})
            print(f"{ranks:4} ranks  {what:20} {row['in_order']:12.3f} {row['dealt']:8.3f}")
    if options.output:
        options.output.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
