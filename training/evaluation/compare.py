"""Evaluations side by side: two with a paired test, or many as a matrix of checkpoints and tasks."""

import json
import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from data_tools.errors import RunError
from training.evaluation.results import KINDS, SCORED_FILE, Group, Results, read_results, read_scored
from training.evaluation.scores import Interval, paired_difference

LOWER_IS_BETTER = ("loss", "perplexity")
BEGIN_BYTES = 200
# How a file begins that `write_matrix` has written.
MATRIX_BEGINS = {
    ".md": re.compile(rb"# \S+ by checkpoint\n\n\|"),
    ".json": re.compile(rb'\{\n "metric": "[^"]*",\n "columns": \['),
}


@dataclass(frozen=True, slots=True)
class Change:
    """How one score of a group changes from A to B over the documents that both have answered. p: of a paired test."""

    kind: str
    name: str
    answers: int
    a: float
    b: float
    difference: Interval
    p: float


def compare(a: Path, b: Path, *, metric: str, seed: int) -> list[Change]:
    """Return the change of `metric` in each group, all documents first. Raises RunError."""
    first, second = read_results(a), read_results(b)
    for key in ("shards_fingerprint", "split"):
        if first.about[key] != second.about[key]:
            raise RunError(
                f"{a} and {b}: measured on other questions: {key} is {first.about[key]} and {second.about[key]}; "
                "expected two evaluations of one split of the same shards"
            )
    scored = [_read_scored(folder, metric) for folder in (a, b)]
    changes = []
    for group in first.groups:
        numbers = [
            n for n, (places, _) in scored[0].items() if (group.kind, group.name) in places and n in scored[1]
        ]
        if numbers:
            values = [[some[n][1] for n in numbers] for some in scored]
            difference, p = paired_difference(*values, seed=seed)
            means = [math.fsum(some) / len(some) for some in values]
            changes.append(Change(group.kind, group.name, len(numbers), means[0], means[1], difference, p))
    return changes


def _read_scored(folder: Path, metric: str) -> dict[int, tuple[set[tuple[str, str]], float]]:
    """Return of each answered question the groups that it is in and its score."""
    lines = read_scored(folder)
    found = {}
    for line in lines:
        if metric in line["scores"]:
            places = {(kind, name) for kind, name in zip(KINDS, line["groups"], strict=True) if name}
            found[int(line["number"])] = (places, float(line["scores"][metric]))
    if not found:
        known = sorted({key for line in lines for key in line["scores"]})
        raise RunError(
            f"--metric: {folder / SCORED_FILE}: got {metric!r}; expected one of {', '.join(known) or 'none at all'}"
        )
    return found


def change_table(changes: Sequence[Change], a: Path, b: Path, *, metric: str) -> Table:
    """Return changes as a table for the terminal; a star marks p < 0.05."""
    table = Table(title=f"{metric}, mean of documents: A = {a}, B = {b}", title_justify="left")
    for name in ("", "group", "answers", "A", "B", "B - A [95 %]", "p"):
        table.add_column(name, justify="left" if name in ("", "group") else "right", overflow="fold")
    for change in changes:
        low, high = change.difference.low or 0.0, change.difference.high or 0.0
        table.add_row(
            change.kind,
            change.name,
            f"{change.answers:,}",
            f"{change.a:.3f}",
            f"{change.b:.3f}",
            f"{change.difference.value:+.3f} [{low:+.3f}, {high:+.3f}]",
            f"{change.p:.3f}{' *' if change.p < 0.05 else ''}",
        )
    return table


@dataclass(frozen=True, slots=True)
class Matrix:
    """A score of several evaluations: a row a group, a column an evaluation, and what was lost since the best one."""

    metric: str
    columns: list[str]
    rows: list[tuple[str, str, list[float | None]]]

    def forgotten(self, values: Sequence[float | None]) -> float | None:
        """Return how much worse the last evaluation is than the best before it; None where there are not two."""
        *before, last = values
        known = [value for value in before if value is not None]
        if last is None or not known:
            return None
        return last - min(known) if self.metric in LOWER_IS_BETTER else max(known) - last


def make_matrix(folders: Sequence[Path], *, metric: str) -> Matrix:
    """Return the forgetting matrix of evaluations, in the order in which they were trained. Raises RunError."""
    results = [read_results(folder) for folder in folders]
    places = dict.fromkeys((group.kind, group.name) for found in results for group in found.groups)
    order = sorted(places, key=lambda place: (KINDS.index(place[0]), place[1]))
    rows = [(kind, name, [_value(found, kind, name, metric) for found in results]) for kind, name in order]
    if all(value is None for _, _, values in rows for value in values):
        raise RunError(
            f"--metric: no evaluation has it: got {metric!r}; expected one such as exact_match or loss"
        )
    return Matrix(metric, distinct_names(folders), rows)


def distinct_names(paths: Sequence[Path]) -> list[str]:
    """Return of each path what tells it from the others: runs/a/test and runs/b/test are a and b."""
    parts = [list(path.absolute().parts) for path in paths]
    for end in (0, -1):
        while all(len(some) > 1 for some in parts) and len({some[end] for some in parts}) == 1:
            for some in parts:
                del some[end]
    return ["/".join(some) for some in parts]


def _value(results: Results, kind: str, name: str, metric: str) -> float | None:
    group: Group | None = results.group(kind, name)
    score = group.scores.get(metric) if group else None
    return score.value if score else None


def matrix_markdown(matrix: Matrix) -> str:
    """Return a matrix as a Markdown table; the last column says what the last evaluation has lost."""
    rows = [
        ["", "group", *matrix.columns, "forgotten"],
        ["---", "---", *("---:" for _ in range(len(matrix.columns) + 1))],
    ]
    for kind, name, values in matrix.rows:
        rows.append([kind, name, *map(_shown, values), _shown(matrix.forgotten(values))])
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join([f"# {matrix.metric} by checkpoint", "", *lines]) + "\n"


def _shown(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def print_comparison(folders: Sequence[Path], *, metric: str, seed: int, console: Console) -> None:
    """Print how `metric` changes between two evaluations, group by group. Raises RunError."""
    if len(folders) != 2:
        raise RunError(f"--compare: got {len(folders)} folders; expected two that shardtune eval has written")
    a, b = folders
    console.print(change_table(compare(a, b, metric=metric, seed=seed), a, b, metric=metric))


def _check_matrix_file(path: Path) -> None:
    """Raise RunError if a matrix may not be written there: a file that is not an earlier one stays as it is."""
    if path.suffix not in MATRIX_BEGINS:
        raise RunError(
            f"--matrix: {path}: got {path.suffix or 'no suffix'}; expected a file named .md or .json"
        )
    if path.is_dir():
        raise RunError(f"--matrix: {path}: is a folder; expected the name of a file such as matrix.md")
    if path.exists():
        with path.open("rb") as file:
            begin = file.read(BEGIN_BYTES)
        if not MATRIX_BEGINS[path.suffix].match(begin):
            raise RunError(
                f"--matrix: {path}: got a file that is not a matrix of shardtune eval; expected such a one, or none; "
                "do: name another file, or remove it"
            )


def write_matrix(folders: Sequence[Path], path: Path, *, metric: str, console: Console) -> None:
    """Write the forgetting matrix of evaluations as Markdown, or as JSON if `path` says so. Raises RunError."""
    if len(folders) < 2:
        raise RunError(
            f"--matrix: got {len(folders)} folders; expected two or more that shardtune eval has written"
        )
    _check_matrix_file(path)
    made = make_matrix(folders, metric=metric)
    text = (
        json.dumps(asdict(made), indent=1, ensure_ascii=False) + "\n"
        if path.suffix == ".json"
        else matrix_markdown(made)
    )
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)
    console.print(f"wrote {path}: {len(made.rows)} groups x {len(made.columns)} evaluations")
