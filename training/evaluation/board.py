"""Evaluations in TensorBoard: the scores of all groups, and a table of the worst and the best answers."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from training.evaluation.results import Results, read_results, read_scored, table

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

NUM_SAMPLES = 5  # of the worst answers, and of the best
MOST_CHARACTERS = 600  # of a text in the table


def write_tensorboard(evaluation: Path, folder: Path, *, step: int) -> None:
    """Add an evaluation's folder to a TensorBoard folder, such as that of the run, at a step. Raises RunError."""
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(folder)) as board:
        add_evaluation(board, evaluation, step=step)


def add_evaluation(board: "SummaryWriter", evaluation: Path, *, step: int) -> None:
    """Add scores, as `eval_test/task_NAME_exact_match`, and `eval_test/samples` to an open TensorBoard folder."""
    results = read_results(evaluation)
    _add_scores(board, results, step=step)
    answered = [line for line in read_scored(evaluation) if line["answer"] is not None]
    if answered:
        board.add_text(f"eval_{results.about['split']}/samples", samples_table(answered), step)


def _add_scores(board: "SummaryWriter", results: Results, *, step: int) -> None:
    for group in results.groups:
        split = group.name if group.kind == "split" else results.about["split"]
        place = "" if group.kind in ("all", "split") else f"{group.kind}_{group.name}_"
        for key, score in group.scores.items():
            board.add_scalar(f"eval_{split}/{place}{key}", score.value, step)


def samples_table(answered: Sequence[Mapping[str, Any]]) -> str:
    """Return the worst and the best of answered questions, by exact match, then ROUGE-L, as a Markdown table."""
    order = sorted(
        answered, key=lambda line: (line["scores"]["exact_match"], line["scores"]["rougeL"], line["number"])
    )
    worst = order[:NUM_SAMPLES]
    best = order[NUM_SAMPLES:][-NUM_SAMPLES:]
    rows = [["", "prompt", "right answers", "the model's answer", "ROUGE-L"]]
    for name, lines in (("worst", worst), ("best", best)):
        for line in lines:
            right = "<hr>".join(map(_cell, line["references"]))
            score = f"{line['scores']['rougeL']:.2f}"
            rows.append([name, _cell(line["prompt"]), right, _cell(line["answer"]), score])
    return "\n".join(table(rows))


def _cell(text: str) -> str:
    """Return a text as Markdown that shows it as it is: no mark-up in it counts, and its lines stay lines."""
    short = text if len(text) <= MOST_CHARACTERS else f"{text[:MOST_CHARACTERS]} …"
    plain = re.sub(r"[!-/:-@\[-`{-~]", lambda match: f"&#{ord(match[0])};", short)
    return "<br>".join(plain.splitlines())
