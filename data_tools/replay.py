"""Replay: packs of an earlier folder's train split, copied into the new one against forgetting.

Whole packs are drawn by hash, none twice. Left out are packs with a document of a task that is unseen now, or with
one that stands, token for token, in a held-out split of the new folder. What lies in the packs that are drawn is
accounted for under sources named replay/NAME, a row for each conversation, as it lies there.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_tools.errors import SettingsError, ShardError
from data_tools.fingerprints import mix
from data_tools.parts import PartFile
from data_tools.selection import choose_unseen
from data_tools.settings import DataSettings
from data_tools.shard_index import SourceInfo, TaskInfo
from data_tools.shards import Pack, Shards, open_shards
from data_tools.split_plan import DOCUMENT_COLUMNS, SplitPlan
from data_tools.table import Table
from data_tools.tokenize import DonePart, part_path

PREFIX = "replay/"
OPEN_PARTS = 256


@dataclass(frozen=True, slots=True)
class ReplayRows:
    """The conversations of the drawn packs, ordered as in the earlier folder: columns [m].

    old uint64: their row ids there; source uint16 and task uint32: in the new index; documents, tokens and targets
    uint32: what of them lies in the drawn packs.
    """

    old: NDArray[np.uint64]
    source: NDArray[np.uint16]
    task: NDArray[np.uint32]
    documents: NDArray[np.uint32]
    tokens: NDArray[np.uint32]
    targets: NDArray[np.uint32]


@dataclass(frozen=True, slots=True)
class Replay:
    """The earlier folder, the packs that are drawn from it, and what they hold."""

    shards: Shards
    packs: SplitPlan
    rows: ReplayRows
    sources: list[SourceInfo]
    tasks: list[TaskInfo]


def open_replay(settings: DataSettings, tokenizer_fingerprint: str) -> Shards | None:
    """Open the folder that the settings replay, or return None where they name none.

    Raises ShardError or SettingsError for a folder that is not sealed, is the output itself, was made with another
    tokenizer or template or longer packs, or has no train split.
    """
    if settings.replay is None:
        return None
    folder = settings.replay.shards
    if folder.resolve() == settings.output.resolve():
        raise SettingsError(f"replay.shards: {folder}: is the output itself; expected an earlier folder")
    try:
        shards = open_shards(folder)
    except ShardError as error:
        raise ShardError(f"replay.shards: {error}") from error
    problem = ""
    if shards.index.tokenizer.fingerprint != tokenizer_fingerprint:
        problem = "made with another tokenizer or chat template; do: pack it again with this one"
    elif shards.seq_len > settings.seq_len:
        problem = f"its packs are too long: got seq_len {shards.seq_len}; expected at most {settings.seq_len}"
    elif "train" not in shards.splits:
        problem = "has no train split"
    if problem:
        raise SettingsError(f"replay.shards: {folder}: {problem}")
    return shards


def plan_replay(
    settings: DataSettings,
    parts: Sequence[DonePart],
    shards: Shards,
    table: Table,
    splits: Mapping[str, SplitPlan],
    *,
    vocab_size: int,
) -> Replay:
    """Draw the packs that make up their share of the train split beside those of `splits`.

    Raises SettingsError where the earlier folder has too few packs, or a source is named like a replayed one.
    """
    assert settings.replay is not None
    share = settings.replay.share
    wanted = max(1, round(splits["train"].num_packs * share / (1 - share)))
    held_out = _hash_held_out(settings, parts, table, splits, vocab_size=vocab_size)
    unseen = choose_unseen_again(shards.tasks, table.tasks, settings)
    drawn: dict[int, Pack] = {}
    split = shards.splits["train"]
    order = np.argsort(
        mix(np.arange(split.num_packs, dtype=np.uint64), seed=settings.seed, use="replay"), kind="stable"
    )
    for number in order.tolist():
        if len(drawn) == wanted:
            break
        found = split.pack(number)
        if not unseen[found.task_ids].any() and not (held_out and held_out & set(hash_documents(found))):
            drawn[number] = found
    if len(drawn) < wanted:
        most = len(drawn) / (len(drawn) + splits["train"].num_packs)
        raise SettingsError(
            f"replay.share: too large: got {share}, which takes {wanted} packs; expected at most {most:.4f}: "
            f"{settings.replay.shards} has {split.num_packs}, and {len(drawn)} of them share nothing with the "
            "held-out splits; do: lower the share"
        )
    return _collect(shards, drawn, settings, num_tasks=len(table.tasks), first_row=len(table.tokens))


def choose_unseen_again(
    old: Sequence[TaskInfo], new: Sequence[TaskInfo], settings: DataSettings
) -> NDArray[np.bool_]:
    """Return which of the earlier folder's tasks have the name of one that is unseen now."""
    chosen = choose_unseen(new, settings.splits.unseen_tasks, seed=settings.seed)
    names = {task.name for task, is_unseen in zip(new, chosen, strict=True) if is_unseen}
    return np.array([task.name in names for task in old], bool)


def hash_documents(pack: Pack) -> Iterator[bytes]:
    """Yield a hash of the token ids of each document of a pack."""
    ends = np.cumsum(pack.seq_lengths)
    for begin, end in zip((ends - pack.seq_lengths).tolist(), ends.tolist(), strict=True):
        yield _hash_ids(pack.input_ids[begin:end])


def _hash_ids(*ids: NDArray[Any]) -> bytes:
    return hashlib.blake2b(b"".join(piece.tobytes() for piece in ids), digest_size=8).digest()


def _hash_held_out(
    settings: DataSettings,
    parts: Sequence[DonePart],
    table: Table,
    splits: Mapping[str, SplitPlan],
    *,
    vocab_size: int,
) -> frozenset[bytes]:
    """Return the hashes of all documents in splits that are not trained on."""

    def open_part(number: int) -> PartFile:
        return PartFile(part_path(settings, parts[number].fingerprint), vocab_size=vocab_size)

    cached = lru_cache(OPEN_PARTS)(open_part)
    hashes = set()
    for name, split in splits.items():
        if name == "train":
            continue
        for row, start, stop, lead in zip(split.row, split.start, split.stop, split.lead, strict=True):
            ids = cached(int(table.part[row])).values("input_ids", int(table.part_row[row]))
            hashes.add(_hash_ids(ids[:lead], ids[start:stop]))
    return frozenset(hashes)


def _collect(
    shards: Shards, drawn: Mapping[int, Pack], settings: DataSettings, *, num_tasks: int, first_row: int
) -> Replay:
    """Account for the drawn packs."""
    packs = list(drawn.values())
    lengths = np.concatenate([pack.seq_lengths for pack in packs]).astype(np.int64)
    ends = np.cumsum(lengths)
    sums = np.concatenate(([0], np.cumsum(np.concatenate([pack.targets for pack in packs]), dtype=np.int64)))
    targets = sums[ends] - sums[ends - lengths]
    old, first, row = np.unique(
        np.concatenate([pack.row_ids for pack in packs]), return_index=True, return_inverse=True
    )
    tasks, of_rows = np.unique(np.concatenate([pack.task_ids for pack in packs])[first], return_inverse=True)
    infos = [shards.tasks[task] for task in tasks.tolist()]
    names = {task.source for task in infos}
    sources = [source for source in shards.sources if source.name in names]
    place = {source.name: len(settings.sources) + number for number, source in enumerate(sources)}
    rows = ReplayRows(
        old=old,
        source=np.array([place[task.source] for task in infos], np.uint16)[of_rows],
        task=(of_rows + num_tasks).astype(np.uint32),
        documents=np.bincount(row).astype(np.uint32),
        tokens=np.bincount(row, lengths).astype(np.uint32),
        targets=np.bincount(row, targets).astype(np.uint32),
    )
    zeros = np.zeros(len(row), np.uint32)
    columns = SplitPlan(
        row=(first_row + row).astype(np.uint32),
        start=zeros,
        stop=lengths.astype(np.uint32),
        lead=zeros,
        num_targets=targets.astype(np.uint32),
        starts=np.cumsum([0, *(len(pack.seq_lengths) for pack in packs)]),
        replayed=np.array(list(drawn), np.int64),
    )
    _refuse_same_names(settings, sources)
    return Replay(
        shards=shards,
        packs=columns,
        rows=rows,
        sources=[_account(source, rows, place[source.name]) for source in sources],
        tasks=[replace(task, source=PREFIX + task.source) for task in infos],
    )


def _refuse_same_names(settings: DataSettings, sources: Sequence[SourceInfo]) -> None:
    replayed = {PREFIX + source.name for source in sources}
    for source in settings.sources:
        if source.name in replayed:
            raise SettingsError(
                f"sources: got a source named {source.name!r}, which is also the name of a replayed one; give it "
                "another `name`"
            )


def _account(source: SourceInfo, rows: ReplayRows, number: int) -> SourceInfo:
    """Return the account of one replayed source: all that was read of it is kept and packed as it lies."""
    mine = rows.source == number
    num_rows, tokens, targets = int(mine.sum()), int(rows.tokens[mine].sum()), int(rows.targets[mine].sum())
    return SourceInfo(
        name=PREFIX + source.name,
        family=source.family,
        format=source.format,
        rows=num_rows,
        conversations=num_rows,
        kept=num_rows,
        rejected={},
        duplicates=0,
        left_out={},
        documents=int(rows.documents[mine].sum()),
        tokens=tokens,
        repeated_tokens=0,
        packed_tokens=tokens,
        cut_tokens=0,
        target_tokens=targets,
        packed_target_tokens=targets,
        cut_target_tokens=0,
        escaped=0,
        license=source.license,
    )


def interleave(split: SplitPlan, packs: SplitPlan, *, seed: int) -> SplitPlan:
    """Return the packs of both, those of `packs` at drawn places; each keep their own order."""
    num_packs = split.num_packs + packs.num_packs
    draws = mix(np.arange(num_packs, dtype=np.uint64), seed=seed, use="replay places")
    is_replayed = np.zeros(num_packs, bool)
    is_replayed[np.argsort(draws, kind="stable")[: packs.num_packs]] = True
    pack_order = np.empty(num_packs, np.int64)
    pack_order[~is_replayed] = np.arange(split.num_packs)
    pack_order[is_replayed] = np.arange(split.num_packs, num_packs)

    starts = np.concatenate((split.starts, packs.starts[1:] + split.starts[-1]))
    counts = np.diff(starts)[pack_order]
    new_starts = np.concatenate(([0], np.cumsum(counts)))
    order = np.arange(new_starts[-1]) + np.repeat(starts[:-1][pack_order] - new_starts[:-1], counts)
    columns = {
        name: np.concatenate((getattr(split, name), getattr(packs, name)))[order] for name in DOCUMENT_COLUMNS
    }
    replayed = np.concatenate((split.replayed, packs.replayed))[pack_order]
    return SplitPlan(**columns, starts=new_starts, replayed=replayed)
