"""The plan's choices: duplicates, groups, unseen tasks, caps, weights."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_tools.errors import SettingsError
from data_tools.selection import (
    CAPPED,
    FATES,
    TRAIN,
    UNDERWEIGHT,
    UNSEEN,
    UNSEEN_GROUP,
    VALIDATION,
    Candidates,
    Rules,
    choose_unseen,
    count_copies,
    find_duplicates,
    join_groups,
    select,
)
from data_tools.shard_index import TaskInfo

RULES = Rules(
    seed=17, dedup=True, validation=0.1, test=0.1, unseen_tasks=(), weights=(1.0,), max_per_task=(0,)
)
DUPLICATE = FATES.index("duplicate")


def make(
    content: Sequence[int],
    *,
    group: Sequence[int] | None = None,
    task: Sequence[int] | None = None,
    source: Sequence[int] | None = None,
) -> Candidates:
    count = len(content)
    halves = np.array([(value, value * 7) for value in content], np.uint64).reshape(-1, 2)
    return Candidates(
        content=halves,
        group=np.array(group if group is not None else content, np.uint64),
        source=np.array(source or [0] * count, np.uint16),
        task=np.array(task or [0] * count, np.uint32),
        fate=np.zeros(count, np.uint8),
    )


def task_names(*names: str, family: str = "multi_task") -> list[TaskInfo]:
    return [TaskInfo(name, "tasks", None, family) for name in names]


def test_the_first_of_equal_contents_is_kept() -> None:
    rows = make([5, 3, 5, 5, 3, 9])
    assert find_duplicates(rows.content).tolist() == [False, False, True, True, True, False]
    selection = select(rows, task_names("a"), RULES)
    assert (selection.fate == DUPLICATE).tolist() == [False, False, True, True, True, False]


def test_without_dedup_equal_contents_are_kept_in_one_split() -> None:
    rows = make(list(range(500)) * 2)
    selection = select(rows, task_names("a"), replace(RULES, dedup=False))
    assert (selection.fate == 0).all()
    assert np.array_equal(selection.split[:500], selection.split[500:])


def test_a_row_that_cannot_be_used_does_not_make_a_duplicate_of_the_next() -> None:
    rows = make([5, 5])
    rows.fate[0] = FATES.index("no target token")
    assert select(rows, task_names("a"), RULES).fate.tolist() == [FATES.index("no target token"), 0]


@given(st.lists(st.tuples(st.integers(0, 12), st.integers(100, 112)), min_size=1, max_size=60))
def test_groups_and_equal_contents_join(rows: list[tuple[int, int]]) -> None:
    table = make([content for content, _ in rows], group=[group for _, group in rows])
    labels = join_groups(table.content, table.group).tolist()
    # The same by brute force: repeat until nothing changes.
    expected = [group for _, group in rows]
    for _ in rows:
        for i, (content, group) in enumerate(rows):
            same = [j for j, other in enumerate(rows) if other[0] == content or other[1] == group]
            smallest = min(expected[j] for j in same)
            for j in same:
                expected[j] = smallest
            assert expected[i] == smallest
    assert labels == expected


def test_splits_have_their_shares_and_do_not_move_when_rows_are_added() -> None:
    many = make(list(range(1, 20_001)))
    selection = select(many, task_names("a"), RULES)
    assert 0.09 < (selection.split == VALIDATION).mean() < 0.11
    assert 0.78 < (selection.split == TRAIN).mean() < 0.82
    fewer = select(make(list(range(1, 10_001))), task_names("a"), RULES)
    assert np.array_equal(fewer.split, selection.split[:10_000])
    other_seed = select(many, task_names("a"), replace(RULES, seed=18))
    assert not np.array_equal(other_seed.split, selection.split)


def test_unseen_tasks_are_held_out_whole_and_nothing_of_their_groups_is_trained_on() -> None:
    rows = make(list(range(1, 7)), group=[100, 101, 102, 100, 104, 105], task=[0, 0, 0, 1, 1, 2])
    rules = replace(RULES, validation=0.0, test=0.0, unseen_tasks=("held_*",))
    selection = select(rows, task_names("seen", "held_out", "other"), rules)
    assert selection.split[3:5].tolist() == [UNSEEN, UNSEEN]
    assert selection.fate.tolist() == [UNSEEN_GROUP, 0, 0, 0, 0, 0]
    assert selection.split[[1, 2, 5]].tolist() == [TRAIN] * 3


def test_a_share_of_unseen_tasks_takes_multi_task_names_only() -> None:
    tasks = task_names(*(f"task{i}" for i in range(40))) + task_names("chat", "", family="multi_turn")
    chosen = choose_unseen(tasks, 0.1, seed=17)
    assert chosen.sum() == 4
    assert not chosen[40:].any()
    assert choose_unseen(tasks[:3], 0.01, seed=17).sum() == 1
    assert choose_unseen(tasks, (), seed=17).sum() == 0


@pytest.mark.parametrize("pattern", ["task_sumarize", "nothing*"])
def test_an_unseen_task_that_is_not_there(pattern: str) -> None:
    with pytest.raises(SettingsError, match=r"splits\.unseen_tasks: no such task: got") as caught:
        choose_unseen(task_names("task_summarize", "task_translate"), (pattern,), seed=17)
    assert ("did you mean 'task_summarize'?" in str(caught.value)) == (pattern == "task_sumarize")


def test_a_cap_is_for_each_task_of_its_source() -> None:
    count = 300
    rows = make(
        list(range(1, count + 1)),
        task=[i % 3 for i in range(count)],
        source=[0 if i % 3 < 2 else 1 for i in range(count)],
    )
    tasks = task_names("a", "b", "c")
    selection = select(rows, tasks, replace(RULES, weights=(1.0, 1.0), max_per_task=(30, 0)))
    kept = selection.fate == 0
    assert [int(kept[rows.task == task].sum()) for task in range(3)] == [30, 30, 100]
    assert set(selection.fate[~kept].tolist()) == {CAPPED}


@pytest.mark.parametrize(("weight", "total"), [(0.5, 50), (1.0, 100), (2.0, 200), (2.25, 225), (0.004, 0)])
def test_weights_give_exact_totals(weight: float, total: int) -> None:
    drawn = np.random.default_rng(0).integers(0, 2**63, 100).astype(np.uint64)
    copies = count_copies(drawn, weight)
    assert copies.sum() == total
    assert copies.max() - copies.min() <= 1


def test_weights_are_for_the_train_split_only() -> None:
    selection = select(make(list(range(1, 2001))), task_names("a"), replace(RULES, weights=(0.5,)))
    train = selection.split == TRAIN
    assert (selection.fate[~train] == 0).all()
    assert (selection.copies[~train] == 1).all()
    assert (selection.fate[train] == UNDERWEIGHT).sum() == train.sum() - round(train.sum() / 2)
