"""The results of an evaluation: scores by split, family, source, category and task, as JSON and as a table."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pydantic

from data_tools.chat import ChatTokenizer
from data_tools.errors import RunError
from training.evaluation.forced import Forced
from training.evaluation.places import FILE_NAME
from training.evaluation.questions import Question
from training.evaluation.scores import (
    ClassScore,
    Interval,
    class_scores,
    corpus_scores,
    macro_f1,
    mean_interval,
    normalise,
    ratio_interval,
    score_answer,
)

SCORED_FILE = "scored.jsonl"
KINDS = ("all", "split", "family", "source", "category", "task")
PER_ANSWER = ("exact_match", "rouge1", "rouge2", "rougeL")
# What the table shows of each group, and how.
COLUMNS = (
    ("loss", "loss", "{:.3f}"),
    ("perplexity", "ppl", "{:.2f}"),
    ("token_accuracy", "tokens right", "{:.1%}"),
    ("exact_match", "exact", "{:.1%}"),
    ("rouge1", "ROUGE-1", "{:.3f}"),
    ("rouge2", "ROUGE-2", "{:.3f}"),
    ("rougeL", "ROUGE-L", "{:.3f}"),
    ("bleu", "BLEU", "{:.1f}"),
    ("chrf", "chrF", "{:.1f}"),
    ("macro_f1", "macro F1", "{:.3f}"),
)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a model made of one question. answer and scores are None and empty where none was generated."""

    question: Question
    forced: Forced | None
    answer: str | None
    scores: dict[str, float]


@dataclass(frozen=True, slots=True)
class Group:
    """The scores of one group of documents, such as a task. answers: how many of them have a generated answer."""

    kind: str
    name: str
    documents: int
    answers: int
    scores: dict[str, Interval]
    classes: list[ClassScore]


@dataclass(frozen=True, slots=True)
class Results:
    """An evaluation. about: the model, the shards, the split and how answers were drawn."""

    about: dict[str, Any]
    groups: list[Group]

    def group(self, kind: str, name: str) -> Group | None:
        """Return one of the groups, if there is such."""
        return next((group for group in self.groups if (group.kind, group.name) == (kind, name)), None)


def make_outcomes(
    questions: Sequence[Question], forced: Sequence[Forced | None], answers: Mapping[int, str]
) -> list[Outcome]:
    """Put together what is known of each question, and score its answer."""
    return [
        Outcome(
            question,
            known,
            answers.get(question.number),
            score_answer(answers[question.number], question.references) if question.number in answers else {},
        )
        for question, known in zip(questions, forced, strict=True)
    ]


def group_names(question: Question) -> tuple[str, ...]:
    """Return the name of the group of each kind that a question is in; empty where there is none."""
    return ("all", question.split, question.family, question.source, question.category, question.task)


def group_outcomes(
    outcomes: Sequence[Outcome], classes: Mapping[str, tuple[str, ...]], *, seed: int
) -> list[Group]:
    """Return the scores of all documents together, and of each split, family, source, category and task."""
    one_split = len({outcome.question.split for outcome in outcomes}) == 1
    members: dict[tuple[str, str], list[Outcome]] = {}
    for outcome in outcomes:
        for kind, name in zip(KINDS, group_names(outcome.question), strict=True):
            if name and not (kind == "split" and one_split):  # of which "all" says the same
                members.setdefault((kind, name), []).append(outcome)
    order = sorted(members, key=lambda place: (KINDS.index(place[0]), place[1]))
    return [_group(kind, name, members[kind, name], classes, seed=seed) for kind, name in order]


def _group(
    kind: str, name: str, outcomes: list[Outcome], classes: Mapping[str, tuple[str, ...]], *, seed: int
) -> Group:
    answered = [outcome for outcome in outcomes if outcome.answer is not None]
    scores = dict(_forced_scores(outcomes, seed=seed))
    told: list[ClassScore] = []
    if answered:
        answers = [outcome.answer or "" for outcome in answered]
        scores |= {
            key: mean_interval([outcome.scores[key] for outcome in answered], seed=seed) for key in PER_ANSWER
        }
        scores |= corpus_scores(answers, [outcome.question.references for outcome in answered], seed=seed)
        if kind == "task" and name in classes:
            rights = [normalise(outcome.question.references[0]) for outcome in answered]
            told = class_scores(answers, rights, classes[name])
            scores["accuracy"] = scores["exact_match"]
            scores["macro_f1"] = Interval(macro_f1(told))
    return Group(kind, name, len(outcomes), len(answered), scores, told)


def _forced_scores(outcomes: Sequence[Outcome], *, seed: int) -> Iterator[tuple[str, Interval]]:
    known = [outcome.forced for outcome in outcomes if outcome.forced is not None and outcome.forced.tokens]
    if known:
        tokens = [float(forced.tokens) for forced in known]
        loss = ratio_interval([forced.loss for forced in known], tokens, seed=seed)
        yield "loss", loss
        yield "perplexity", Interval(_perplexity(loss.value), _perplexity(loss.low), _perplexity(loss.high))
        yield "token_accuracy", ratio_interval([float(forced.hits) for forced in known], tokens, seed=seed)


def _perplexity(loss: float | None) -> float:
    return math.exp(min(700.0, loss or 0.0))  # beyond e^700 there are no floats


def write_results(results: Results, folder: Path) -> Path:
    """Write results.json and results.md; return the first."""
    path = folder / FILE_NAME
    texts = {
        path.with_suffix(".md"): markdown(results),
        path: json.dumps(asdict(results), indent=1, ensure_ascii=False) + "\n",
    }
    for file, text in texts.items():
        partial = file.with_name(f"{file.name}.partial")
        partial.write_text(text, encoding="utf-8")
        partial.replace(file)
    return path


def write_scored(outcomes: Sequence[Outcome], tokenizer: ChatTokenizer, folder: Path) -> None:
    """Write what became of each question, one a line: its groups in the order of `KINDS`, its answer and scores.

    `tokenizer` is that of the shards, in whose tokens the questions are.
    """
    partial = folder / f"{SCORED_FILE}.partial"
    with partial.open("w", encoding="utf-8") as file:
        for outcome in outcomes:
            scores = dict(outcome.scores)
            if outcome.forced is not None and outcome.forced.tokens:
                scores["loss"] = outcome.forced.loss / outcome.forced.tokens
            line = {
                "number": outcome.question.number,
                "origin": outcome.question.origin,
                "groups": group_names(outcome.question),
                "prompt": shown_prompt(outcome.question, tokenizer),
                "references": outcome.question.references,
                "answer": outcome.answer,
                "scores": scores,
            }
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
    partial.replace(folder / SCORED_FILE)


def shown_prompt(question: Question, tokenizer: ChatTokenizer) -> str | None:
    """Return the text before a question's last answer, as the chat template of the shards writes it."""
    return (
        None if question.prompt_length is None else tokenizer.decode(question.ids[: question.prompt_length])
    )


def read_scored(folder: Path) -> list[dict[str, Any]]:
    """Read what `write_scored` wrote. Raises RunError."""
    file = folder / SCORED_FILE
    try:
        return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError) as error:
        raise RunError(f"{file}: cannot be read: {error}; expected the folder of an evaluation") from None


_RESULTS_TYPE = pydantic.TypeAdapter(Results)


def read_results(path: Path) -> Results:
    """Read what `write_results` wrote into a folder. Raises RunError."""
    file = path / FILE_NAME if path.is_dir() else path
    try:
        return _RESULTS_TYPE.validate_json(file.read_bytes())
    except OSError as error:
        raise RunError(f"{file}: {error.strerror}; expected the folder of an evaluation") from None
    except pydantic.ValidationError as error:
        raise RunError(f"{file}: not the results of an evaluation: {error.errors()[0]['msg']}") from None


def markdown(results: Results) -> str:
    """Return the results as a Markdown document: what was measured, and a table for each kind of group."""
    lines = [
        f"# {results.about['split']} of {results.about['shards']}, answered by {results.about['model']}",
        "",
    ]
    lines += [f"- {key}: {value}" for key, value in results.about.items()]
    for kind in KINDS:
        groups = [group for group in results.groups if group.kind == kind]
        if groups:
            lines += ["", *table(table_cells(groups, kind))]
    for group in results.groups:
        if group.classes:
            lines += ["", f"Classes of {group.name}:", "", *table(class_cells(group.classes))]
    return "\n".join(lines) + "\n"


def table(cells: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a Markdown table from its head and its rows."""
    head, *rows = cells
    ruled = [head, ["---", *("---:" for _ in head[1:])], *rows]
    return [
        "| " + " | ".join(" ".join(cell.replace("|", "\\|").split()) for cell in row) + " |" for row in ruled
    ]


def table_cells(groups: Sequence[Group], kind: str) -> list[list[str]]:
    """Return the head and the rows of a table of groups, each score with its confidence interval."""
    shown = [column for column in COLUMNS if any(column[0] in group.scores for group in groups)]
    rows = [[kind, "documents", "answers", *(title for _, title, _ in shown)]]
    for group in groups:
        scores = [format_interval(group.scores.get(key), form) for key, _, form in shown]
        rows.append([group.name, f"{group.documents:,}", f"{group.answers:,}", *scores])
    return rows


def class_cells(classes: Sequence[ClassScore]) -> list[list[str]]:
    """Return the head and the rows of a table of classes."""
    rows = [["class", "precision", "recall", "F1", "answers of it"]]
    for one in classes:
        rows.append(
            [one.name, *(f"{value:.3f}" for value in (one.precision, one.recall, one.f1)), f"{one.support:,}"]
        )
    return rows


def format_interval(score: Interval | None, form: str) -> str:
    """Return a score and its interval as `0.512 [0.43, 0.60]`; a dash where there is none."""
    if score is None:
        return "–"
    value = form.format(score.value)
    if score.low is None or score.high is None:
        return value
    return f"{value} [{form.format(score.low)}, {form.format(score.high)}]"
