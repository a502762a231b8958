"""From settings to a sealed shard folder: tokenize what is missing, plan, write, seal.

Nothing written here depends on paths, time or the number of workers. The seal (`index.json`) comes off before
anything in the folder changes and goes on last.
"""

import logging
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from data_tools.accounts import check_not_empty, check_reject_rate
from data_tools.chat import ChatTokenizer
from data_tools.cleaning.annotate import Annotations, annotate
from data_tools.errors import ShardError, SourceError
from data_tools.fingerprints import fingerprint, hash_file
from data_tools.formats import make_adapter
from data_tools.output_lock import lock_output
from data_tools.plan import Plan, make_plan
from data_tools.replay import open_replay
from data_tools.rows import write_rejects, write_rows
from data_tools.settings import DataSettings
from data_tools.shard_index import (
    FORMAT,
    OWN_NAMES,
    REJECTS_NAME,
    ROWS_NAME,
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
from data_tools.shard_jobs import shard_jobs, write_job
from data_tools.shards import Shards, open_shards, packs_per_file
from data_tools.sources import list_files
from data_tools.tokenize import PARTS_FOLDER, DonePart, load_tokenizer, part_path, tokenize
from data_tools.workers import map_jobs

logger = logging.getLogger(__name__)

# What of the settings is no part of what makes the shards.
NOT_DESCRIBED: dict[str, Any] = {"output": True, "tokenizer": True, "sources": {"__all__": {"license"}}}
ALGORITHM = 3  # goes up when the same input and settings give other shards than before


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
    earlier = open_replay(settings, tokenizer.fingerprint)
    parts = tokenize(settings, tokenizer, workers=workers)
    annotations = annotate(settings, parts, workers=workers)
    described = describe_settings(settings, parts, earlier)
    recipe = fingerprint(
        {
            "algorithm": ALGORITHM,
            "settings": described,
            "tokenizer": tokenizer.fingerprint,
            "parts": [[part.source, part.fingerprint] for part in parts],
            "annotations": annotations.identities,
        }
    )
    if not dry_run and (found := _find_sealed(settings.output, recipe)) is not None:
        return Packed(_with_licenses(settings, found), None)

    plan = make_plan(settings, parts, annotations, vocab_size=tokenizer.vocab_size, earlier=earlier)
    index = _make_index(settings, described, recipe, tokenizer, plan)
    try:
        check_reject_rate(settings, plan.sources)
        check_not_empty(settings, plan.sources, plan.splits)
    except SourceError:
        if not dry_run:
            # The report goes where the seal would vouch for other content.
            with lock_output(settings.output / PARTS_FOLDER):
                unseal(settings.output)
                write_rejects(settings, parts, annotations, vocab_size=tokenizer.vocab_size)
        raise
    if dry_run:
        return Packed(index, plan)
    with lock_output(settings.output / PARTS_FOLDER):
        return Packed(_write(settings, parts, annotations, tokenizer, plan, index, workers=workers), plan)


def describe_settings(
    settings: DataSettings, parts: Sequence[DonePart], earlier: Shards | None = None
) -> dict[str, Any]:
    """Return the settings for the index: paths are replaced by the names of the files below them.

    A folder that is replayed is named by its fingerprint. Licences stand with the accounts of the sources.
    """
    described = settings.model_dump(mode="json", exclude=NOT_DESCRIBED)
    if settings.chat_template and settings.chat_template.endswith(".jinja"):
        described["chat_template"] = Path(settings.chat_template).name
    for number, source in enumerate(described["sources"]):
        names = (part.name for part in parts if part.source == number)
        source["path"] = list(dict.fromkeys(names))
        source["options"] |= make_adapter(settings.sources[number], where=f"sources.{number}").file_names()
    if settings.decontaminate is not None:
        described["decontaminate"]["path"] = [path.name for path in list_files(settings.decontaminate.path)]
    if earlier is not None:
        described["replay"]["shards"] = earlier.fingerprint
    return described


def _find_sealed(folder: Path, recipe: str) -> Index | None:
    """Return the index of a folder that is sealed, undamaged in its sizes, and made from this recipe."""
    try:
        return open_shards(folder).index if read_index(folder).recipe == recipe else None
    except ShardError:
        return None


def _with_licenses(settings: DataSettings, index: Index) -> Index:
    """Return the index of a sealed folder with the licences as the settings have them now, written if they differ."""
    stated = [source.license for source in settings.sources]
    sources = [replace(info, license=text) for info, text in zip(index.sources, stated, strict=False)]
    sources += index.sources[len(stated) :]  # the replayed ones keep theirs
    if sources == index.sources:
        return index
    changed = replace(index, sources=sources)
    with lock_output(settings.output / PARTS_FOLDER):
        write_index(settings.output, changed)
    return changed


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
        tasks=plan.tasks,
        splits=splits,
        files={},
        settings=described,
    )


def _write(
    settings: DataSettings,
    parts: Sequence[DonePart],
    annotations: Annotations,
    tokenizer: ChatTokenizer,
    plan: Plan,
    index: Index,
    *,
    workers: int,
) -> Index:
    folder = settings.output
    unseal(folder)
    for path in folder.iterdir():
        if path.is_file() and OWN_NAMES.fullmatch(path.name.removesuffix(".partial")):
            path.unlink()
    jobs = list(shard_jobs(plan, index))
    work = partial(
        write_job,
        folder=folder,
        parts=[part_path(settings, part.fingerprint) for part in parts],
        replayed=plan.replay.shards.folder if plan.replay is not None else None,
        seq_len=settings.seq_len,
        vocab_size=tokenizer.vocab_size,
    )
    infos = map_jobs(work, jobs, workers=workers, what="write")
    files = {job.name: info for job, info in zip(jobs, infos, strict=True)}
    files[ROWS_NAME] = write_rows(settings, parts, annotations, plan, vocab_size=tokenizer.vocab_size)
    files[REJECTS_NAME] = write_rejects(settings, parts, annotations, vocab_size=tokenizer.vocab_size)
    files.update(_save_tokenizer(folder, tokenizer))
    sealed = replace(index, files=files)
    sealed = replace(sealed, fingerprint=compute_fingerprint(sealed))
    write_index(folder, sealed)
    return sealed


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
