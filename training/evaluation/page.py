"""An evaluation as one HTML file: the tables, and a pager through prompt, right answers and answer, worst first."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from data_tools.chat import ChatTokenizer
from training.evaluation.results import KINDS, Outcome, Results, class_cells, shown_prompt, table_cells

TEMPLATES = Path(__file__).parent / "html"
MOST_SHOWN = 2000  # a browser takes a few megabytes of text with ease


def write_page(results: Results, outcomes: Sequence[Outcome], tokenizer: ChatTokenizer, path: Path) -> None:
    """Write the page of an evaluation; `tokenizer` is that of the shards, in whose tokens the questions are."""
    answered = [outcome for outcome in outcomes if outcome.answer is not None]
    worst = sorted(answered, key=_badness)[:MOST_SHOWN]
    tables = []
    for kind in KINDS:
        groups = [group for group in results.groups if group.kind == kind]
        if groups:
            head, *rows = table_cells(groups, kind)
            tables.append((kind, head, rows))
    environment = jinja2.Environment(loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True)
    # "<" would let a text end the element that the data stands in.
    data = json.dumps([_shown(one, tokenizer) for one in worst], ensure_ascii=False).replace("<", "\\u003c")
    page = environment.get_template("page.html.jinja").render(
        about=results.about,
        tables=tables,
        classes=[(group.name, class_cells(group.classes)) for group in results.groups if group.classes],
        shown=len(worst),
        total=len(answered),
        data=Markup(data),
    )
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(page, encoding="utf-8")
    partial.replace(path)


def _badness(outcome: Outcome) -> tuple[float, float, int]:
    scores = outcome.scores
    return scores["exact_match"], scores["rougeL"], outcome.question.number


def _shown(outcome: Outcome, tokenizer: ChatTokenizer) -> dict[str, Any]:
    question, scores = outcome.question, outcome.scores
    loss = (
        f"loss {outcome.forced.loss / outcome.forced.tokens:.2f}"
        if outcome.forced and outcome.forced.tokens
        else ""
    )
    return {
        "task": question.task,
        "source": question.source,
        "family": question.family,
        "language": question.language,
        "origin": question.origin,
        "prompt": shown_prompt(question, tokenizer),
        "references": question.references,
        "answer": outcome.answer,
        "exact": scores["exact_match"],
        "scores": " · ".join(filter(None, (f"ROUGE-L {scores['rougeL']:.2f}", loss))),
    }
