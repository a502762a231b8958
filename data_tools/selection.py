"""The plan's choices, pure: dedup, unseen tasks, caps, splits, weights.

Every choice that looks random is a hash of content and seed: it stays the same when files are cut, ordered or
processed otherwise, and mostly when rows are added.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import numpy as np
from numpy.typing import NDArray

from data_tools.errors import SettingsError
from data_tools.fingerprints import UINT64_RANGE, hash_text, mix
from data_tools.settings import did_you_mean
from data_tools.shard_index import SPLITS, TaskInfo

# What became of a tokenized conversation; from LEFT_OUT on the reasons by which one is left out.
KEPT = "kept"
DUPLICATE = "duplicate"
FATES = (
    KEPT,
    DUPLICATE,
    "no target token",
    "over-long",
    "no target token within seq_len",
    "more than max_per_task",
    "shares a group with an unseen task",
    "weight below 1",
)
LEFT_OUT = 2
NO_TARGET, OVERLONG, CUT_TO_NOTHING, CAPPED, UNSEEN_GROUP, UNDERWEIGHT = range(LEFT_OUT, len(FATES))
TRAIN, VALIDATION, TEST, UNSEEN = range(len(SPLITS))


@dataclass(frozen=True, slots=True)
class Candidates:
    """The tokenized conversations as columns, in canonical order: source, file, row.

    content uint64 [n, 2]: hash of the normalised content; group uint64 [n]: hash of the explicit group, or of
    the content; source uint16 [n]; task uint32 [n]; fate uint8 [n]: KEPT, or why it cannot be used at all.
    """

    content: NDArray[np.uint64]
    group: NDArray[np.uint64]
    source: NDArray[np.uint16]
    task: NDArray[np.uint32]
    fate: NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Rules:
    """The settings that choose. weights and caps (0 = none) are one for each source."""

    seed: int
    dedup: bool
    validation: float
    test: float
    unseen_tasks: tuple[str, ...] | float
    weights: tuple[float, ...]
    max_per_task: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Selection:
    """fate uint8 [n] indexes FATES; where kept, split uint8 [n] indexes SPLITS and copies uint32 [n] > 0."""

    fate: NDArray[np.uint8]
    split: NDArray[np.uint8]
    copies: NDArray[np.uint32]


def select(candidates: Candidates, tasks: Sequence[TaskInfo], rules: Rules) -> Selection:
    """Decide for every conversation. Raises SettingsError for a name in unseen_tasks that matches no task."""
    unseen_tasks = choose_unseen(tasks, rules.unseen_tasks, seed=rules.seed)
    fate = candidates.fate.copy()
    if rules.dedup:
        usable = np.flatnonzero(fate == 0)
        fate[usable[find_duplicates(candidates.content[usable])]] = FATES.index(DUPLICATE)
    drawn = mix(candidates.content[:, 0], seed=rules.seed, use="rows")
    fate[over_cap(candidates, fate == 0, drawn, rules.max_per_task)] = CAPPED

    component = join_groups(candidates.content, candidates.group)
    split = draw_splits(component, seed=rules.seed, validation=rules.validation, test=rules.test)
    unseen = unseen_tasks[candidates.task]
    split[unseen] = UNSEEN
    shared = np.isin(component, np.unique(component[unseen & (fate == 0)]))
    fate[(fate == 0) & shared & ~unseen] = UNSEEN_GROUP

    copies = np.zeros(len(fate), np.uint32)
    copies[fate == 0] = 1
    for source, weight in enumerate(rules.weights):
        rows = np.flatnonzero((fate == 0) & (split == TRAIN) & (candidates.source == source))
        copies[rows] = count_copies(drawn[rows], weight)
    fate[(fate == 0) & (copies == 0)] = UNDERWEIGHT
    return Selection(fate, split, copies)


def find_duplicates(content: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Return which rows repeat the content of an earlier row. content uint64 [n, 2]."""
    order = np.lexsort((content[:, 1], content[:, 0]))  # stable: the first of equals stays first
    ordered = content[order]
    result = np.zeros(len(content), bool)
    result[order[1:]] = (ordered[1:] == ordered[:-1]).all(axis=1)
    return result


def join_groups(content: NDArray[np.uint64], group: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return a label for each row, equal for rows that must stay in one split.

    Rows belong together if they share their group or their content, directly or over other rows. The label is
    the smallest group hash among them, so it does not depend on the order of the rows.
    """
    order = np.lexsort((content[:, 1], content[:, 0]))
    ordered = content[order]
    equal = np.flatnonzero((ordered[1:] == ordered[:-1]).all(axis=1))
    names, numbers = np.unique(group, return_inverse=True)
    left, right = numbers[order[equal]], numbers[order[equal + 1]]
    linked = left != right
    left, right = left[linked], right[linked]
    labels = np.arange(len(names))
    while len(left):  # each round takes over the smaller label of a pair, then follows labels of labels
        before = labels.copy()
        smaller = np.minimum(labels[left], labels[right])
        np.minimum.at(labels, labels[left], smaller)
        np.minimum.at(labels, labels[right], smaller)
        labels = labels[labels]
        if np.array_equal(labels, before):
            break
    return names[labels][numbers]


def draw_splits(
    component: NDArray[np.uint64], *, seed: int, validation: float, test: float
) -> NDArray[np.uint8]:
    """Return train, validation or test for each row, by hash of its component."""
    share = mix(component, seed=seed, use="split") / UINT64_RANGE
    split = np.full(len(component), TRAIN, np.uint8)
    split[share < validation + test] = TEST
    split[share < validation] = VALIDATION
    return split


def choose_unseen(
    tasks: Sequence[TaskInfo], rule: tuple[str, ...] | float, *, seed: int
) -> NDArray[np.bool_]:
    """Return which tasks are held out whole.

    Names and globs match tasks of every source; a share takes that part of the multi-task names (rounded, at
    least one), by hash of the name. Raises SettingsError for a name that matches nothing.
    """
    if isinstance(rule, float | int):
        names = sorted(
            {task.name for task in tasks if task.family == "multi_task" and task.name},
            key=lambda name: (hash_text(str(seed), "unseen", name), name),
        )
        chosen = set(names[: max(1, round(rule * len(names)))] if rule > 0 else [])
        return np.array([task.name in chosen for task in tasks], bool)
    known = sorted({task.name for task in tasks if task.name})
    for pattern in rule:
        if not any(fnmatchcase(name, pattern) for name in known):
            hint = did_you_mean(pattern, known)
            raise SettingsError(
                f"splits.unseen_tasks: no such task: got {pattern!r}; expected a name or glob of one of "
                f"{len(known)} tasks{hint}"
            )
    matched = [bool(task.name) and any(fnmatchcase(task.name, pattern) for pattern in rule) for task in tasks]
    return np.array(matched, bool)


def over_cap(
    candidates: Candidates, usable: NDArray[np.bool_], drawn: NDArray[np.uint64], caps: Sequence[int]
) -> NDArray[np.int64]:
    """Return the rows beyond their source's cap for a task: the usable rows with the largest draws."""
    capped = np.array([cap > 0 for cap in caps], bool)
    rows = np.flatnonzero(usable & capped[candidates.source])
    rows = rows[np.lexsort((drawn[rows], candidates.task[rows]))]
    tasks = candidates.task[rows]
    begins = np.flatnonzero(np.diff(tasks, prepend=np.array([-1], np.int64)) != 0)
    rank = np.arange(len(rows)) - np.repeat(begins, np.diff(np.append(begins, len(rows))))
    limits = np.array(caps, np.int64)[candidates.source[rows]]
    beyond: NDArray[np.int64] = rows[rank >= limits]
    return beyond


def count_copies(drawn: NDArray[np.uint64], weight: float) -> NDArray[np.uint32]:
    """Return how often each row is taken so that together they are taken round(weight * rows) times.

    Every row is taken floor(weight) times; those with the smallest draws once more.
    """
    whole = int(weight)
    copies = np.full(len(drawn), whole, np.uint32)
    more = round((weight - whole) * len(drawn))
    copies[np.argsort(drawn, kind="stable")[:more]] += np.uint32(1)
    return copies
