"""What became of every conversation and token: the counts by row and by source, and too many rejects."""

import logging
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_tools.errors import FILTER, SourceError
from data_tools.formats import get_format
from data_tools.selection import DUPLICATE_FATES, LEFT_OUT, Selection
from data_tools.settings import DataSettings
from data_tools.shard_index import SourceInfo
from data_tools.sources import FILE_DAMAGE
from data_tools.table import Table

logger = logging.getLogger(__name__)

TOP_REASONS = 3


@dataclass(frozen=True, slots=True)
class RowTotals:
    """For each conversation, of one copy of it: uint32 [n] documents, repeated, cut, cut target tokens."""

    documents: NDArray[np.uint32]
    repeated: NDArray[np.uint32]
    cut: NDArray[np.uint32]
    cut_targets: NDArray[np.uint32]


def total_rows(table: Table, selection: Selection) -> RowTotals:
    """Count the pieces and cut tokens of every conversation."""
    num_rows = len(table.tokens)
    documents = (selection.fate == 0).astype(np.uint32)
    repeated, cut, cut_targets = (np.zeros(num_rows, np.uint32) for _ in range(3))
    overlong = table.cut
    rows, sizes = overlong.rows, np.diff(overlong.first)
    if len(rows):
        owner = np.repeat(np.arange(len(rows)), sizes)
        kept = np.bincount(owner, overlong.stop - overlong.start, len(rows)).astype(np.int64)
        kept_targets = np.bincount(owner, overlong.num_targets, len(rows)).astype(np.int64)
        documents[rows] *= sizes.astype(np.uint32)
        repeated[rows] = np.bincount(owner, overlong.lead, len(rows)).astype(np.int64)
        cut[rows] = table.tokens[rows] - kept
        cut_targets[rows] = table.targets[rows] - kept_targets
    return RowTotals(documents, repeated, cut, cut_targets)


def account(
    settings: DataSettings, table: Table, selection: Selection, totals: RowTotals
) -> list[SourceInfo]:
    """Return the account of each source of the settings."""
    num_sources, names = len(settings.sources), selection.fates
    source = table.candidates.source
    fates = np.bincount(
        source.astype(np.int64) * len(names) + selection.fate, minlength=num_sources * len(names)
    )
    fates = fates.reshape(num_sources, len(names))

    def total(values: NDArray[Any]) -> list[int]:
        # Weighted sums of bincount are doubles: exact below 2 ** 53 tokens.
        sums = np.bincount(source, values.astype(np.float64) * selection.copies, num_sources)
        return [int(value) for value in sums]

    tokens, repeated, cut = total(table.tokens), total(totals.repeated), total(totals.cut)
    targets, cut_targets = total(table.targets), total(totals.cut_targets)
    documents = total(totals.documents)
    return [
        SourceInfo(
            name=settings.sources[i].name,
            family=get_format(settings.sources[i].format).family,
            format=settings.sources[i].format,
            rows=table.num_rows[i],
            conversations=int(fates[i].sum()) + table.rejected[i].total(),
            kept=int(fates[i, 0]),
            rejected=dict(sorted(table.rejected[i].items())),
            duplicates=int(fates[i, list(DUPLICATE_FATES)].sum()),
            left_out={names[f]: int(fates[i, f]) for f in range(LEFT_OUT, len(names)) if fates[i, f]},
            documents=documents[i],
            tokens=tokens[i],
            repeated_tokens=repeated[i],
            packed_tokens=tokens[i] + repeated[i] - cut[i],
            cut_tokens=cut[i],
            target_tokens=targets[i],
            packed_target_tokens=targets[i] - cut_targets[i],
            cut_target_tokens=cut_targets[i],
            escaped=table.escaped[i],
            rewritten=table.rewritten[i],
            license=settings.sources[i].license,
        )
        for i in range(num_sources)
    ]


def check_reject_rate(settings: DataSettings, sources: Sequence[SourceInfo]) -> None:
    """Raise SourceError with a line for each source that made nothing, or of which too much was rejected.

    A damaged file is too much at any rate below 1: it counts as one reject, and nobody knows how many rows it had.
    What the filters reject is what was asked for and does not count.
    """
    problems = []
    for source in sources:
        damage = sorted(FILE_DAMAGE & source.rejected.keys())
        if damage and settings.max_reject_rate < 1:
            problems.append(
                f"source {source.name}: a file is damaged: {', '.join(damage)}; rows of it are lost; do: fetch the "
                "file named in rejects.jsonl again, or take what is left with max_reject_rate: 1"
            )
            continue
        counted = Counter({why: n for why, n in source.rejected.items() if not why.startswith(FILTER)})
        num_rejected = counted.total()
        if num_rejected > settings.max_reject_rate * source.conversations:
            reason, count = counted.most_common(1)[0]
            problems.append(
                f"source {source.name}: too many conversations were rejected: got {num_rejected} of "
                f"{source.conversations} ({num_rejected / source.conversations:.1%}), most often {reason!r} "
                f"({count}); expected at most {settings.max_reject_rate:.1%}; do: look into rejects.jsonl in "
                "the output folder, mend the rows or the format, or raise max_reject_rate"
            )
        elif not source.conversations:
            problems.append(f"source {source.name}: no rows: its files hold none; do: check its path")
        elif sum(source.rejected.values()) - num_rejected == source.conversations:
            reasons = ", ".join(source.rejected)
            logger.warning("source %s: every conversation is filtered out: %s", source.name, reasons)
    if problems:
        raise SourceError("\n".join(problems))


def check_not_empty(settings: DataSettings, sources: Sequence[SourceInfo], splits: Collection[str]) -> None:
    """Raise SourceError if there is nothing to train on, with what became of the conversations instead."""
    if "train" in splits:
        return
    made = sum(source.conversations for source in sources)
    why: Counter[str] = Counter()
    for source in sources:
        why.update(source.rejected)
        why.update(source.left_out)
    why["held out"] = sum(source.kept for source in sources)
    reasons = ", ".join(f"{reason}: {count}" for reason, count in why.most_common(TOP_REASONS) if count)
    raise SourceError(
        f"{settings.output}: nothing is left to train on: got {made} conversations, none of them kept in the train "
        f"split ({reasons}); do: check `splits`, `filters` and the sources, and rejects.jsonl in the output folder"
    )
