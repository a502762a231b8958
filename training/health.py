"""Steps that were skipped because their loss or gradient was not finite: counted, and traced to the rows in them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow.parquet as pq
import torch

from data_tools.errors import RunError
from data_tools.shard_index import ROWS_NAME
from data_tools.shards import Shards
from training.data import Slot
from training.distributed import all_sum

# A step of a large run holds thousands of rows; these many are named.
MAX_ROWS = 20


@dataclass(frozen=True, slots=True)
class Health:
    """The skipped steps of a run: all of them, and those at its end without one that was applied between."""

    skipped_steps: int = 0
    skipped_in_a_row: int = 0

    def after(self, *, applied: bool, rescaled: bool = False) -> "Health":
        """Return the counts after one more step; one that was `rescaled` is skipped, and no sign of anything bad."""
        if applied:
            return Health(self.skipped_steps, 0)
        return Health(self.skipped_steps + 1, self.skipped_in_a_row + (not rescaled))


def suspect_packs(
    micro_losses: Sequence[torch.Tensor], micro_batches: Sequence[Sequence[Slot]], slots: Sequence[Slot]
) -> list[int]:
    """Return the packs of a skipped step to look at first; every rank must call it, and gets the same.

    Those in micro-batches whose own loss is not finite, on whatever rank; all packs of the step if there are none.
    """
    first = slots[0].position
    marks = torch.zeros(len(slots))
    for loss, members in zip(micro_losses, micro_batches, strict=True):
        if not math.isfinite(float(loss)):
            marks[[slot.position - first for slot in members]] = 1.0
    marked = [slot.pack for slot, mark in zip(slots, all_sum(marks).tolist(), strict=True) if mark]
    return marked or [slot.pack for slot in slots]


def name_rows(shards: Shards, packs: Sequence[int]) -> list[str]:
    """Return `source: file:line` of the conversations in packs of the train split, as rows.parquet has them.

    At most MAX_ROWS of them, and then how many there are beside these.
    """
    ids = dict.fromkeys(int(row) for pack in packs for row in shards.splits["train"].pack(pack).row_ids)
    shown = list(ids)[:MAX_ROWS]
    table = pq.read_table(
        shards.folder / ROWS_NAME,
        columns=["row_id", "source", "origin"],
        filters=[("row_id", "in", shown)],
    )
    names = {row["row_id"]: f"{row['source']}: {row['origin']}" for row in table.to_pylist()}
    more = len(ids) - len(shown)
    return [names[row] for row in shown] + ([f"and {more} more"] if more else [])


def describe_skip(step: int, loss: float, rows: Sequence[str]) -> str:
    """Return what happened in a skipped step, and the rows to look at, one a line."""
    what = "the gradient's norm is not finite" if math.isfinite(loss) else f"the loss is {loss}"
    return f"step {step} was skipped: {what}; rows in it:\n" + "\n".join(f"  {row}" for row in rows)


def too_many_skipped(num_skipped: int, skip: str) -> RunError:
    """Return the error that ends a run after so many skipped steps in a row; `skip` describes the last one."""
    return RunError(
        f"max_bad_steps: {num_skipped} steps in a row had a loss or a gradient that is not finite; the run is saved "
        "with the weights from before them; started again it goes on with the packs that follow; look at the rows, "
        f"or start a new run with a lower optim.lr; the last one: {skip}"
    )
