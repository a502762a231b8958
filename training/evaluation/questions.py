"""The held-out conversations of one or more splits as questions: what a model is asked, and which answers are right."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from data_tools.chat import ChatTokenizer
from data_tools.errors import RunError
from data_tools.settings import did_you_mean
from data_tools.shard_index import ROWS_NAME, TaskInfo
from data_tools.shards import Shards
from training.evaluation.scores import normalise

# A task has a closed set of answers if its held-out conversations have at most so many different ones, and each is
# right for this many of them on average.
MOST_CLASSES, LEAST_PER_CLASS = 20, 3


@dataclass(frozen=True, slots=True)
class Question:
    """One document of a split, ids in the shards' tokenizer.

    ids int32 [T] and targets bool [T] are the whole document; prompt_length: the tokens before its last answer, None
    where there is no whole answer to compare with (raw text, a document that was cut). number: its place in the splits.
    """

    number: int
    ids: NDArray[np.int32]
    targets: NDArray[np.bool_]
    prompt_length: int | None
    references: tuple[str, ...]
    split: str
    family: str
    source: str
    task: str
    category: str
    language: str
    origin: str


def read_questions(shards: Shards, splits: Sequence[str], tokenizer: ChatTokenizer) -> list[Question]:
    """Return the documents of splits, each in the order of its packs. `tokenizer` is that of the shards.

    Raises RunError for a split that is absent or empty.
    """
    present = [name for name, found in shards.splits.items() if found.num_packs]
    for split in splits:
        if split not in present:
            raise RunError(
                f"--split: nothing to evaluate on in {shards.folder}: got {split!r}; expected one of "
                f"{', '.join(present)}{did_you_mean(split, present)}"
            )
    documents = [document for split in dict.fromkeys(splits) for document in _documents(shards, split)]
    known = _rows(shards, {document.row for document in documents})
    return [
        _question(number, document, shards.tasks[document.task], known[document.row], tokenizer)
        for number, document in enumerate(documents)
    ]


@dataclass(frozen=True, slots=True)
class _Document:
    """A document as it lies in its pack: views of the shard file."""

    ids: NDArray[np.unsignedinteger[Any]]
    targets: NDArray[np.bool_]
    split: str
    task: int
    row: int


def _documents(shards: Shards, split: str) -> Iterator[_Document]:
    for number in range(shards.splits[split].num_packs):
        pack = shards.splits[split].pack(number)
        ends = np.cumsum(pack.seq_lengths)
        for end, length, task, row in zip(ends, pack.seq_lengths, pack.task_ids, pack.row_ids, strict=True):
            tokens = slice(end - length, end)
            yield _Document(pack.input_ids[tokens], pack.targets[tokens], split, int(task), int(row))


@dataclass(frozen=True, slots=True)
class _Row:
    """What rows.parquet says of a conversation."""

    origin: str
    language: str
    references: tuple[str, ...]


def _rows(shards: Shards, wanted: set[int]) -> dict[int, _Row]:
    columns = ["row_id", "origin", "language", "references"]
    table = pq.read_table(
        shards.folder / ROWS_NAME, columns=columns, filters=[("row_id", "in", sorted(wanted))]
    )
    return {
        row["row_id"]: _Row(row["origin"] or "", row["language"] or "", tuple(row["references"] or ()))
        for row in table.to_pylist()
    }


def _question(
    number: int, document: _Document, task: TaskInfo, row: _Row, tokenizer: ChatTokenizer
) -> Question:
    start = (
        None
        if task.family == "text"
        else last_answer(document.ids, document.targets, tokenizer.stop_token_ids)
    )
    references = row.references
    if start is not None and not references:
        references = (tokenizer.decode_text(document.ids[start:][document.targets[start:]]).strip(),)
    return Question(
        number=number,
        ids=document.ids.astype(np.int32),
        targets=document.targets,
        prompt_length=start,
        references=references,
        split=document.split,
        family=task.family,
        source=task.source,
        task=task.name,
        category=task.category or "",
        language=row.language,
        origin=row.origin,
    )


def last_answer(
    ids: NDArray[np.integer[Any]], targets: NDArray[np.bool_], stop_token_ids: frozenset[int]
) -> int | None:
    """Return the token at which a document's last answer begins; None if it is not there to its end.

    An answer is a run of targets that a stop token ends. Where everything is a target, no run tells the answers apart.
    """
    stops = np.flatnonzero(targets & np.isin(ids, list(stop_token_ids)))
    last_target = np.flatnonzero(targets)[-1:]
    if not len(last_target) or not len(stops) or stops[-1] != last_target[0]:
        return None
    untrained = np.flatnonzero(~targets[: stops[-1]])
    earlier_stop = stops[-2] if len(stops) > 1 else -1
    start = int(max(untrained[-1], earlier_stop)) + 1
    # The first token of a document is never a target: a run that begins right behind it has no question.
    return start if start > 1 else None


def closed_answers(questions: Sequence[Question]) -> dict[str, tuple[str, ...]]:
    """Return the classes of each task that has a closed set of answers, by the task's name, sorted."""
    by_task: dict[str, list[str]] = {}
    for question in questions:
        if question.task and question.prompt_length is not None and len(question.references) == 1:
            by_task.setdefault(question.task, []).append(normalise(question.references[0]))
    return {
        task: tuple(sorted(set(answers)))
        for task, answers in by_task.items()
        if len(set(answers)) <= min(MOST_CLASSES, len(answers) // LEAST_PER_CLASS)
    }
