"""What `pack` prints: the account of each source, the splits, the equations, and the mixture of a plan."""

from collections import Counter
from collections.abc import Iterator

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from data_tools.conservation import equations
from data_tools.plan import Plan
from data_tools.shard_index import Index, SourceInfo

FILE_WIDTH = 160  # of tables in a file or pipe, where there is no terminal to ask
TOP_REASONS = 3
TOP_TASKS = 20


def make_console() -> Console:
    """Return a console on stdout; what is not a terminal gets plain text in wide lines."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=FILE_WIDTH)


def print_index(index: Index, console: Console) -> None:
    """Print sources, splits and equations of an index, sealed or planned."""
    console.print(source_table(index.sources))
    console.print(split_table(index))
    for equation in equations(index.sources):
        console.print(Text(equation.text), soft_wrap=True)


def source_table(sources: list[SourceInfo]) -> Table:
    """Return the account of each source, rejects and what was left out with their most frequent reasons."""
    table = Table(title="sources")
    table.add_column("source")
    for name in ("rows", "conversations", "kept", "rejected", "duplicates", "left out", "escaped"):
        table.add_column(name, justify="right")
    table.add_column("why")
    for source in sources:
        reasons = Counter(source.rejected) + Counter(source.left_out)
        why = ", ".join(f"{reason}: {count:,}" for reason, count in reasons.most_common(TOP_REASONS))
        counts = (
            source.rows,
            source.conversations,
            source.kept,
            sum(source.rejected.values()),
            source.duplicates,
            sum(source.left_out.values()),
            source.escaped,
        )
        table.add_row(Text(source.name), *(f"{count:,}" for count in counts), Text(why))
    return table


def split_table(index: Index) -> Table:
    """Return documents, packs, tokens, target tokens and fill of each split."""
    table = Table(title=f"splits, packs of {index.seq_len:,} tokens")
    table.add_column("split")
    for name in ("documents", "packs", "tokens", "target tokens", "fill %"):
        table.add_column(name, justify="right")
    for name, split in index.splits.items():
        tokens, num_packs = sum(split.tokens), len(split.tokens)
        counts = (split.documents, num_packs, tokens, sum(split.target_tokens))
        fill = 100 * tokens / (num_packs * index.seq_len)
        table.add_row(name, *(f"{count:,}" for count in counts), f"{fill:.2f}")
    return table


def mixture_table(plan: Plan) -> Table:
    """Return what the train split is made of: family, source, and the tasks with most target tokens."""
    table = Table(title="the train split by family, source and task")
    table.add_column("")
    table.add_column("name")
    for name in ("documents", "tokens", "target tokens", "share of targets %"):
        table.add_column(name, justify="right")
    counts = _count_train(plan)
    total = max(1, int(counts[2].sum()))
    for kind, name, members in _mixture_lines(plan, counts):
        documents, tokens, targets = (int(column[members].sum()) for column in counts)
        share = f"{100 * targets / total:.2f}"
        table.add_row(kind, Text(name), f"{documents:,}", f"{tokens:,}", f"{targets:,}", share)
    return table


def _count_train(plan: Plan) -> np.ndarray[tuple[int, int], np.dtype[np.int64]]:
    """Return documents, tokens and target tokens of each task in the train split, int64 [3, tasks]."""
    tasks = plan.table.tasks
    split = plan.splits["train"]
    of_document = plan.table.candidates.task[split.row]
    columns = (np.ones(len(of_document)), split.lengths, split.num_targets)
    sums = [np.bincount(of_document, column, len(tasks)) for column in columns]
    return np.array(sums).astype(np.int64)


def _mixture_lines(
    plan: Plan, counts: np.ndarray[tuple[int, int], np.dtype[np.int64]]
) -> Iterator[tuple[str, str, list[int]]]:
    """Yield kind, name and the numbers of the tasks that belong to it."""
    tasks = plan.table.tasks
    family = {source.name: source.family for source in plan.sources}
    for name in dict.fromkeys(family.values()):
        yield "family", name, [i for i, task in enumerate(tasks) if family[task.source] == name]
    for source in plan.sources:
        yield "source", source.name, [i for i, task in enumerate(tasks) if task.source == source.name]
    named = [i for i in np.argsort(-counts[2], kind="stable").tolist() if tasks[i].name and counts[0][i]]
    for i in named[:TOP_TASKS]:
        yield "task", f"{tasks[i].source}/{tasks[i].name}", [i]
    if len(named) > TOP_TASKS:
        yield "task", f"{len(named) - TOP_TASKS} more", named[TOP_TASKS:]
