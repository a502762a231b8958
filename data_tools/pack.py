"""From settings to a sealed shard folder: tokenize what is missing, plan, write, seal.

Nothing written here depends on paths, time or the number of workers. The seal (`index.json`) comes off before
anything in the folder changes and goes on last.
"""

import logging
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from data_tools.chat import ChatTokenizer
from data_tools.errors import ShardError, SourceError
from data_tools.fingerprints import fingerprint, hash_file
from data_tools.parts import PartFile
from data_tools.plan import Plan, SplitPlan, check_reject_rate, make_plan
from data_tools.rows import write_rows
from data_tools.settings import DataSettings
from data_tools.shard_index import (
    FORMAT,
    REJECTS_NAME,
    ROWS_NAME,
    SPLITS,
    TOKENIZER_FOLDER,
    VERSION,
    FileInfo,
    Index,
    SplitInfo,
    TokenizerInfo,
    compute_fingerprint,
    read_index,
    sync_folder,
    unseal,
    write_index,
)
from data_tools.shards import PackBatch, id_type, open_shards, packs_per_batch, packs_per_file, write_shard
from data_tools.tokenize import DonePart, load_tokenizer, map_jobs, part_path, tokenize

logger = logging.getLogger(__name__)

ALGORITHM = 1  # goes up when the same input and settings give other shards than before
OPEN_PARTS = 256  # mapped at a time by a writer: below the usual limit of open files
_OURS = re.compile(rf"({'|'.join(SPLITS)})-\d{{5}}\.arrow|{ROWS_NAME}|{REJECTS_NAME}|index\.json\.partial")


@dataclass(frozen=True, slots=True)
class Packed:
    """What `pack` did: the index (in a dry run without files), and whether the folder was there already."""

    index: Index
    plan: Plan | None


def pack(settings: DataSettings, *, workers: int = 1, dry_run: bool = False) -> Packed:
    """Make the shard folder that the settings ask for; in a dry run only the plan.

    A sealed folder made from the same inputs and settings is left as it is (`plan` is None then). Raises
    SourceError, with the rejects kept in the folder, where a source has too many of them.
    """
    tokenizer = load_tokenizer(settings)
    parts = tokenize(settings, tokenizer, workers=workers)
    described = describe_settings(settings, parts)
    recipe = fingerprint(
        {
            "algorithm": ALGORITHM,
            "settings": described,
            "tokenizer": tokenizer.fingerprint,
            "parts": [[part.source, part.fingerprint] for part in parts],
        }
    )
    if not dry_run and (found := _find_sealed(settings.output, recipe)) is not None:
        return Packed(found, None)

    plan = make_plan(settings, parts, vocab_size=tokenizer.vocab_size)
    index = _make_index(settings, described, recipe, tokenizer, plan)
    try:
        check_reject_rate(settings, plan)
    except SourceError:
        if not dry_run:
            # The report goes where the seal would vouch for other content.
            unseal(settings.output)
            _write_rejects(settings, parts, tokenizer.vocab_size)
        raise
    if "train" not in plan.splits:
        made = sum(source.conversations for source in plan.sources)
        raise SourceError(
            f"{settings.output}: nothing is left to train on: got {made} conversations, none of them kept in "
            "the train split; do: check `splits` and the sources"
        )
    if dry_run:
        return Packed(index, plan)
    return Packed(_write(settings, parts, tokenizer, plan, index, workers=workers), plan)


def describe_settings(settings: DataSettings, parts: Sequence[DonePart]) -> dict[str, Any]:
    """Return the settings for the index: paths are replaced by the names of the files below them."""
    described = settings.model_dump(mode="json", exclude={"output", "tokenizer"})
    if settings.chat_template and settings.chat_template.endswith(".jinja"):
        described["chat_template"] = Path(settings.chat_template).name
    for number, source in enumerate(described["sources"]):
        names = (part.name for part in parts if part.source == number)
        source["path"] = list(dict.fromkeys(names))
    return described


def _find_sealed(folder: Path, recipe: str) -> Index | None:
    """Return the index of a folder that is sealed, undamaged in its sizes, and made from this recipe."""
    try:
        return open_shards(folder).index if read_index(folder).recipe == recipe else None
    except ShardError:
        return None


def _make_index(
    settings: DataSettings, described: dict[str, Any], recipe: str, tokenizer: ChatTokenizer, plan: Plan
) -> Index:
    """Return the index as far as the plan knows it: without files and fingerprint."""
    step = packs_per_file(settings.seq_len)
    splits = {
        name: SplitInfo(
            documents=len(split.row),
            files={
                f"{name}-{number:05}.arrow": min(step, split.num_packs - start)
                for number, start in enumerate(range(0, split.num_packs, step))
            },
            tokens=split.per_pack(split.lengths).tolist(),
            target_tokens=split.per_pack(split.num_targets).tolist(),
        )
        for name, split in plan.splits.items()
    }
    return Index(
        format=FORMAT,
        version=VERSION,
        kind="causal",
        fingerprint="",
        recipe=recipe,
        seq_len=settings.seq_len,
        tokenizer=TokenizerInfo(tokenizer.fingerprint, tokenizer.vocab_size),
        sources=plan.sources,
        tasks=plan.table.tasks,
        splits=splits,
        files={},
        settings=described,
    )


def _write(
    settings: DataSettings,
    parts: Sequence[DonePart],
    tokenizer: ChatTokenizer,
    plan: Plan,
    index: Index,
    *,
    workers: int,
) -> Index:
    folder = settings.output
    unseal(folder)
    for path in folder.iterdir():
        if _OURS.fullmatch(path.name.removesuffix(".partial")):
            path.unlink()
    jobs = list(_shard_jobs(plan, index))
    work = partial(
        _write_shard_job,
        folder=folder,
        parts=[part_path(settings, part.fingerprint) for part in parts],
        seq_len=settings.seq_len,
        vocab_size=tokenizer.vocab_size,
    )
    infos = map_jobs(work, jobs, workers=workers, what="write")
    files = {job.name: info for job, info in zip(jobs, infos, strict=True)}
    files[ROWS_NAME] = write_rows(folder / ROWS_NAME, settings, parts, plan, vocab_size=tokenizer.vocab_size)
    files[REJECTS_NAME] = _write_rejects(settings, parts, tokenizer.vocab_size)
    files.update(_save_tokenizer(folder, tokenizer))
    sealed = replace(index, files=files)
    sealed = replace(sealed, fingerprint=compute_fingerprint(sealed))
    write_index(folder, sealed)
    return sealed


@dataclass(frozen=True, slots=True)
class ShardJob:
    """One shard file to write: its documents' places in the parts, pack after pack."""

    name: str
    documents: SplitPlan
    part: NDArray[np.uint32]
    part_row: NDArray[np.uint32]
    source: NDArray[np.uint16]
    task: NDArray[np.uint32]


def _shard_jobs(plan: Plan, index: Index) -> Iterator[ShardJob]:
    for name, split in plan.splits.items():
        first = 0
        for file, num_packs in index.splits[name].files.items():
            documents = _slice(split, first, first + num_packs)
            rows = documents.row
            yield ShardJob(
                name=file,
                documents=documents,
                part=plan.table.part[rows],
                part_row=plan.table.part_row[rows],
                source=plan.table.candidates.source[rows],
                task=plan.table.candidates.task[rows],
            )
            first += num_packs


def _slice(split: SplitPlan, first: int, stop: int) -> SplitPlan:
    """Return the packs first … stop of a split."""
    begin, end = split.starts[first], split.starts[stop]
    names = ("row", "start", "stop", "lead", "num_targets")
    columns = {name: getattr(split, name)[begin:end] for name in names}
    return SplitPlan(**columns, starts=split.starts[first : stop + 1] - begin)


def _write_shard_job(
    job: ShardJob, *, folder: Path, parts: Sequence[Path], seq_len: int, vocab_size: int
) -> FileInfo:
    step = packs_per_batch(seq_len)
    open_part = lru_cache(OPEN_PARTS)(lambda number: PartFile(parts[number], vocab_size=vocab_size))
    batches = (
        _gather(job, first, min(first + step, job.documents.num_packs), open_part, vocab_size)
        for first in range(0, job.documents.num_packs, step)
    )
    return write_shard(folder / job.name, batches, vocab_size=vocab_size)


def _gather(job: ShardJob, first: int, stop: int, open_part: Any, vocab_size: int) -> PackBatch:
    """Copy the tokens of some packs out of the parts, reading each part in one go."""
    begin, end = int(job.documents.starts[first]), int(job.documents.starts[stop])
    documents = _slice(job.documents, first, stop)
    lengths = documents.lengths
    places = np.cumsum(lengths) - lengths
    input_ids = np.empty(int(lengths.sum()), id_type(vocab_size))
    targets = np.zeros(len(input_ids), bool)
    part, part_row = job.part[begin:end], job.part_row[begin:end]
    for i in np.lexsort((part_row, part)).tolist():
        file, row, place = open_part(int(part[i])), int(part_row[i]), int(places[i])
        lead, start, stop_at = int(documents.lead[i]), int(documents.start[i]), int(documents.stop[i])
        ids = file.values("input_ids", row)
        body = place + lead
        input_ids[place:body] = ids[:lead]
        input_ids[body : body + stop_at - start] = ids[start:stop_at]
        targets[body : body + stop_at - start] = file.values("targets", row)[start:stop_at]
        targets[place] = False  # nothing predicts a document's first token
    return PackBatch(
        tokens=documents.per_pack(lengths).astype(np.int32),
        documents=np.diff(documents.starts).astype(np.int32),
        input_ids=input_ids,
        targets=targets,
        seq_lengths=lengths.astype(np.int32),
        source_ids=job.source[begin:end],
        task_ids=job.task[begin:end],
        row_ids=documents.row.astype(np.uint64),
    )


def _write_rejects(settings: DataSettings, parts: Sequence[DonePart], vocab_size: int) -> FileInfo:
    """Write rejects.jsonl: one line for each rejected conversation or row, in canonical order."""
    path = settings.output / REJECTS_NAME
    partial_path = path.with_name(path.name + ".partial")
    names = ("origin", "reason", "detail")
    with partial_path.open("wb") as file:
        for part in parts:
            tokenized = PartFile(part_path(settings, part.fingerprint), vocab_size=vocab_size)
            for batch in tokenized.batches:
                columns = (batch.column(name).to_pylist() for name in names)
                for origin, reason, detail in zip(*columns, strict=True):
                    if reason:
                        source = settings.sources[part.source].name
                        line = {"origin": origin, "source": source, "reason": reason, "detail": detail}
                        file.write(orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE))
        file.flush()
        os.fsync(file.fileno())
    partial_path.replace(path)
    digest = hash_file(path)
    return FileInfo(path.stat().st_size, digest, digest)


def _save_tokenizer(folder: Path, tokenizer: ChatTokenizer) -> dict[str, FileInfo]:
    """Write the tokenizer's copy; without content hashes, since its text depends on transformers' version."""
    target = folder / TOKENIZER_FOLDER
    partial_folder = folder / f"{TOKENIZER_FOLDER}.partial"
    for stale in (target, partial_folder):
        if stale.exists():
            shutil.rmtree(stale)
    tokenizer.save(partial_folder)
    partial_folder.replace(target)
    files = {}
    for path in sorted(target.rglob("*")):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
            name = path.relative_to(folder).as_posix()
            files[name] = FileInfo(path.stat().st_size, hash_file(path))
    sync_folder(target)
    return files
