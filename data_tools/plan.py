"""One global plan over all tokenized parts: what is kept, in which split, in which pack.

Works on columns of numbers (about 50 bytes a conversation), never on token ids; only over-long documents are
looked into for their turn ends. The choices themselves are selection.py, overlong.py and packing.py.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from data_tools.errors import SourceError
from data_tools.fingerprints import hash_text
from data_tools.formats import get_format
from data_tools.overlong import Piece, cut_document
from data_tools.packing import pack
from data_tools.parts import PartFile
from data_tools.selection import (
    CUT_TO_NOTHING,
    DUPLICATE,
    FATES,
    LEFT_OUT,
    NO_TARGET,
    OVERLONG,
    Candidates,
    Rules,
    Selection,
    select,
)
from data_tools.settings import DataSettings
from data_tools.shard_index import SPLITS, SourceInfo, TaskInfo
from data_tools.sources import FILE_DAMAGE
from data_tools.tokenize import DonePart, part_path


@dataclass(frozen=True, slots=True)
class CutDocuments:
    """The over-long documents and their pieces.

    rows int64 [m] ascending; first int64 [m + 1] into the piece columns start, stop, lead, num_targets int64.
    """

    rows: NDArray[np.int64]
    first: NDArray[np.int64]
    start: NDArray[np.int64]
    stop: NDArray[np.int64]
    lead: NDArray[np.int64]
    num_targets: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Table:
    """Every tokenized conversation in canonical order; its number in here is its row id.

    part and part_row uint32 [n] say where it lies. `rejected`, `num_rows` and `escaped` are counts by source.
    """

    candidates: Candidates
    part: NDArray[np.uint32]
    part_row: NDArray[np.uint32]
    tokens: NDArray[np.uint32]
    targets: NDArray[np.uint32]
    cut: CutDocuments
    tasks: list[TaskInfo]
    rejected: list[Counter[str]]
    num_rows: list[int]
    escaped: list[int]


@dataclass(frozen=True, slots=True)
class SplitPlan:
    """The documents of one split, pack after pack: tokens start … stop of `row`, behind its first `lead`.

    starts int64 [num_packs + 1]: where each pack begins in the columns.
    """

    row: NDArray[np.uint32]
    start: NDArray[np.uint32]
    stop: NDArray[np.uint32]
    lead: NDArray[np.uint32]
    num_targets: NDArray[np.uint32]
    starts: NDArray[np.int64]

    @property
    def num_packs(self) -> int:
        """Return the number of packs."""
        return len(self.starts) - 1

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Return the tokens of each document as it lies in its pack."""
        return self.stop.astype(np.int64) - self.start + self.lead

    def per_pack(self, values: NDArray[Any]) -> NDArray[np.int64]:
        """Return the sum of a column over each pack."""
        sums = np.concatenate(([0], np.cumsum(values, dtype=np.int64)))
        return np.diff(sums[self.starts])


@dataclass(frozen=True, slots=True)
class RowTotals:
    """For each conversation, of one copy of it: uint32 [n] documents, repeated, cut, cut target tokens."""

    documents: NDArray[np.uint32]
    repeated: NDArray[np.uint32]
    cut: NDArray[np.uint32]
    cut_targets: NDArray[np.uint32]


@dataclass(frozen=True, slots=True)
class Plan:
    """All that is decided before the first shard is written. `splits` has no empty ones."""

    table: Table
    selection: Selection
    totals: RowTotals
    sources: list[SourceInfo]
    splits: dict[str, SplitPlan]


def make_plan(settings: DataSettings, parts: Sequence[DonePart], *, vocab_size: int) -> Plan:
    """Read the parts' columns and decide. Raises SettingsError for unseen_tasks that match nothing."""
    table = _read_table(settings, parts, vocab_size)
    rules = Rules(
        seed=settings.seed,
        dedup=settings.dedup == "exact",
        validation=settings.splits.validation,
        test=settings.splits.test,
        unseen_tasks=settings.splits.unseen_tasks,
        weights=tuple(source.weight for source in settings.sources),
        max_per_task=tuple(source.max_per_task or 0 for source in settings.sources),
    )
    selection = select(table.candidates, table.tasks, rules)
    keys = np.array([hash_text(str(settings.seed), "window", part.fingerprint) for part in parts], np.uint64)
    splits = {
        name: _plan_split(table, selection, number, keys, settings)
        for number, name in enumerate(SPLITS)
        if bool(((selection.fate == 0) & (selection.split == number)).any())
    }
    totals = _total_rows(table, selection)
    return Plan(table, selection, totals, _account(settings, table, selection, totals), splits)


def check_reject_rate(settings: DataSettings, plan: Plan) -> None:
    """Raise SourceError with a line for each source that made nothing, or of which too much was rejected.

    A damaged file is too much at any rate below 1: it counts as one reject, and nobody knows how many rows it had.
    """
    problems = []
    for source in plan.sources:
        damage = sorted(FILE_DAMAGE & source.rejected.keys())
        if damage and settings.max_reject_rate < 1:
            problems.append(
                f"source {source.name}: a file is damaged: {', '.join(damage)}; rows of it are lost; do: fetch the "
                "file named in rejects.jsonl again, or take what is left with max_reject_rate: 1"
            )
            continue
        num_rejected = sum(source.rejected.values())
        if num_rejected > settings.max_reject_rate * source.conversations:
            reason, count = Counter(source.rejected).most_common(1)[0]
            problems.append(
                f"source {source.name}: too many conversations were rejected: got {num_rejected} of "
                f"{source.conversations} ({num_rejected / source.conversations:.1%}), most often {reason!r} "
                f"({count}); expected at most {settings.max_reject_rate:.1%}; do: look into rejects.jsonl in "
                "the output folder, mend the rows or the format, or raise max_reject_rate"
            )
        elif not source.conversations:
            problems.append(f"source {source.name}: no rows: its files hold none; do: check its path")
    if problems:
        raise SourceError("\n".join(problems))


def _read_table(settings: DataSettings, parts: Sequence[DonePart], vocab_size: int) -> Table:
    reader = _TableReader(settings)
    for number, part in enumerate(parts):
        reader.add(number, part, PartFile(part_path(settings, part.fingerprint), vocab_size=vocab_size))
    return reader.table()


_COLUMNS = {
    "content": np.uint64,
    "group": np.uint64,
    "source": np.uint16,
    "task": np.uint32,
    "fate": np.uint8,
    "part": np.uint32,
    "part_row": np.uint32,
    "tokens": np.uint32,
    "targets": np.uint32,
}


class _TableReader:
    """Collects the columns of one part after the other."""

    def __init__(self, settings: DataSettings) -> None:
        num_sources = len(settings.sources)
        self._settings = settings
        self._columns: dict[str, list[NDArray[Any]]] = {name: [] for name in _COLUMNS}
        self._cut: list[tuple[int, list[Piece]]] = []
        self._tasks: dict[tuple[int, str], int] = {}
        self._infos: list[TaskInfo] = []
        self._rejected: list[Counter[str]] = [Counter() for _ in range(num_sources)]
        self._num_rows, self._escaped = [0] * num_sources, [0] * num_sources
        self._num_read = 0

    def add(self, number: int, part: DonePart, file: PartFile) -> None:
        """Take in one part; `number` is its place in the list of parts."""
        reasons = file.texts("reason").combine_chunks()
        is_good = pc.equal(reasons, "")
        for counted in pc.value_counts(reasons.filter(pc.invert(is_good))).to_pylist():
            self._rejected[part.source][counted["values"]] += counted["counts"]
        self._num_rows[part.source] += int(file.column("first_of_row").sum(dtype=np.int64))
        self._escaped[part.source] += int(file.column("num_escaped").sum(dtype=np.int64))

        good = np.flatnonzero(is_good.to_numpy(zero_copy_only=False))
        content, group = file.content()[good], file.column("group")[good]
        tokens, targets = file.column("num_tokens")[good], file.column("num_targets")[good]
        values = {
            "content": content,
            "group": np.where(group == 0, content[:, 0], group),
            "source": np.full(len(good), part.source),
            "task": self._number_tasks(part.source, file)[good],
            "fate": self._cut_overlong(file, good, tokens, targets),
            "part": np.full(len(good), number),
            "part_row": good,
            "tokens": tokens,
            "targets": targets,
        }
        for name, dtype in _COLUMNS.items():
            self._columns[name].append(values[name].astype(dtype))
        self._num_read += len(good)

    def _cut_overlong(
        self, file: PartFile, good: NDArray[np.int64], tokens: NDArray[Any], targets: NDArray[Any]
    ) -> NDArray[np.uint8]:
        """Cut the over-long documents of a part and return the fate of every document as far as known."""
        how, seq_len = self._settings.overlong, self._settings.seq_len
        fate = np.where(targets == 0, NO_TARGET, 0).astype(np.uint8)
        for index in np.flatnonzero((tokens > seq_len) & (targets > 0)).tolist():
            row = int(good[index])
            pieces = cut_document(
                file.values("targets", row) != 0,
                file.values("turn_ends", row),
                int(file.column_value("num_system_tokens", row)),
                seq_len=seq_len,
                how=how,
            )
            self._cut.append((self._num_read + index, pieces))
            if not pieces:
                fate[index] = OVERLONG if how == "drop" else CUT_TO_NOTHING
        return fate

    def _number_tasks(self, source: int, file: PartFile) -> NDArray[np.int64]:
        """Return the task number of every row of a part; new tasks get the next numbers."""
        encoded = file.texts("task").combine_chunks().dictionary_encode()
        local = encoded.indices.to_numpy()
        names = encoded.dictionary.to_pylist()
        reasons, numbers = file.texts("reason"), np.zeros(len(names), np.int64)
        good = np.flatnonzero(pc.equal(reasons, "").to_numpy(zero_copy_only=False))
        seen, first = np.unique(local[good], return_index=True)
        for position in np.argsort(first).tolist():  # in order of appearance
            name, row = names[seen[position]], int(good[first[position]])
            key = (source, name)
            if key not in self._tasks:
                self._tasks[key] = len(self._infos)
                category = file.texts("category")[row].as_py() or None
                family = file.texts("family")[row].as_py()
                self._infos.append(TaskInfo(name, self._settings.sources[source].name, category, family))
            numbers[seen[position]] = self._tasks[key]
        of_rows: NDArray[np.int64] = numbers[local]
        return of_rows

    def table(self) -> Table:
        """Return all that was taken in."""
        empty = {"content": np.empty((0, 2), np.uint64)}
        joined: dict[str, NDArray[Any]] = {}
        for name, dtype in _COLUMNS.items():
            joined[name] = np.concatenate([empty.get(name, np.empty(0, dtype)), *self._columns.pop(name)])
        names = ("content", "group", "source", "task", "fate")
        return Table(
            candidates=Candidates(**{name: joined.pop(name) for name in names}),
            **joined,
            cut=_as_columns(self._cut),
            tasks=self._infos,
            rejected=self._rejected,
            num_rows=self._num_rows,
            escaped=self._escaped,
        )


def _as_columns(cut: list[tuple[int, list[Piece]]]) -> CutDocuments:
    pieces = [(p.start, p.stop, p.lead, p.num_targets) for _, of_row in cut for p in of_row]
    columns = np.array(pieces, np.int64).reshape(-1, 4).T
    return CutDocuments(
        np.array([row for row, _ in cut], np.int64),
        np.cumsum([0, *(len(of_row) for _, of_row in cut)]),
        *columns,
    )


def _total_rows(table: Table, selection: Selection) -> RowTotals:
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


def _plan_split(
    table: Table, selection: Selection, split: int, part_keys: NDArray[np.uint64], settings: DataSettings
) -> SplitPlan:
    """Lay out one split: documents in the order of their parts' keys, windows of them packed."""
    rows = np.flatnonzero((selection.fate == 0) & (selection.split == split))
    rows = rows[np.argsort(part_keys[table.part[rows]], kind="stable")]
    rows = np.repeat(rows, selection.copies[rows])
    at = np.searchsorted(table.cut.rows, rows)
    is_cut = np.zeros(len(rows), bool)
    inside = at < len(table.cut.rows)
    is_cut[inside] = table.cut.rows[at[inside]] == rows[inside]

    counts = np.ones(len(rows), np.int64)
    counts[is_cut] = np.diff(table.cut.first)[at[is_cut]]
    row = np.repeat(rows, counts)
    nth = np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts, counts)
    from_cut = np.repeat(is_cut, counts)
    piece = np.repeat(table.cut.first[at * is_cut], counts)[from_cut] + nth[from_cut]
    columns = {
        "start": np.zeros(len(row), np.uint32),
        "stop": table.tokens[row],
        "lead": np.zeros(len(row), np.uint32),
        "num_targets": table.targets[row],
    }
    for name, values in columns.items():
        values[from_cut] = getattr(table.cut, name)[piece]
    lengths = columns["stop"].astype(np.int64) - columns["start"] + columns["lead"]
    packing = pack(lengths, settings.seq_len, seed=settings.seed)
    packed = {name: values[packing.items] for name, values in columns.items()}
    return SplitPlan(row=row[packing.items].astype(np.uint32), starts=packing.starts, **packed)


def _account(
    settings: DataSettings, table: Table, selection: Selection, totals: RowTotals
) -> list[SourceInfo]:
    num_sources = len(settings.sources)
    source = table.candidates.source
    fates = np.bincount(
        source * len(FATES) + selection.fate.astype(np.int64), minlength=num_sources * len(FATES)
    )
    fates = fates.reshape(num_sources, len(FATES))

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
            duplicates=int(fates[i, FATES.index(DUPLICATE)]),
            left_out={FATES[f]: int(fates[i, f]) for f in range(LEFT_OUT, len(FATES)) if fates[i, f]},
            documents=documents[i],
            tokens=tokens[i],
            repeated_tokens=repeated[i],
            packed_tokens=tokens[i] + repeated[i] - cut[i],
            cut_tokens=cut[i],
            target_tokens=targets[i],
            packed_target_tokens=targets[i] - cut_targets[i],
            cut_target_tokens=cut_targets[i],
            escaped=table.escaped[i],
        )
        for i in range(num_sources)
    ]
