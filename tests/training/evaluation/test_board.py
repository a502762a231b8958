"""Evaluations as TensorBoard reads them back."""

import json
import re
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugin_util import markdown_to_safe_html

from training.evaluation.board import MOST_CHARACTERS, samples_table, write_tensorboard
from training.evaluation.results import Group, Results, write_results
from training.evaluation.scores import Interval

NASTY = "a | b **c** <b>d</b> `e`\n\n# f\n[g](h) 1 < 2 &amp; \\| _i_ 你好"


def line(number: int, exact: float, rouge: float, **more: Any) -> dict[str, Any]:
    scores = {"exact_match": exact, "rougeL": rouge}
    made = {
        "number": number,
        "prompt": f"prompt {number}",
        "references": ["right"],
        "answer": f"answer {number}",
    }
    return made | {"scores": scores} | more


def cells(markdown: str) -> list[list[str]]:
    """Return the text in each cell of a table as TensorBoard's page shows it."""
    page = markdown_to_safe_html(markdown)
    rows = re.findall(r"<tr>(.*?)</tr>", page, re.DOTALL)
    found = [re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", row, re.DOTALL) for row in rows]
    return [[unescape(re.sub(r"<br ?/?>", "\n", cell)) for cell in row] for row in found]


def test_texts_are_shown_as_they_are() -> None:
    shown = cells(samples_table([line(0, 0.0, 0.0, prompt=NASTY, answer=NASTY, references=[NASTY])]))
    assert shown[1][1] == shown[1][2] == shown[1][3] == NASTY
    (row,) = cells(samples_table([line(0, 0.0, 0.0, answer="x" * 5000)]))[1:]
    assert row[3] == "x" * MOST_CHARACTERS + " …"


def test_the_worst_and_the_best_in_an_order_of_their_own() -> None:
    lines = [line(n, float(n > 11), n / 20) for n in range(15)]
    shown = cells(samples_table(lines))
    assert [(row[0], row[1]) for row in shown[1:]] == [
        *(("worst", f"prompt {n}") for n in range(5)),
        *(("best", f"prompt {n}") for n in range(10, 15)),
    ]
    assert samples_table(lines[::-1]) == samples_table(lines)
    assert [row[0] for row in cells(samples_table(lines[:7]))[1:]] == ["worst"] * 5 + ["best"] * 2


@pytest.mark.parametrize("answered", [True, False])
def test_scores_and_samples_are_read_back(tmp_path: Path, answered: bool) -> None:
    def group(kind: str, name: str) -> Group:
        return Group(kind, name, 1, 1, {"exact_match": Interval(0.5)}, [])

    groups = [group("all", "all"), group("split", "test"), group("split", "validation"), group("task", "t1")]
    write_results(Results({"split": "test+validation", "shards": "s", "model": "m"}, groups), tmp_path)
    written = line(0, 0.0, 0.25) if answered else line(0, 0.0, 0.25, answer=None, scores={"loss": 1.0})
    (tmp_path / "scored.jsonl").write_text(json.dumps(written) + "\n")
    write_tensorboard(tmp_path, tmp_path / "board", step=7)
    board = EventAccumulator(str(tmp_path / "board")).Reload()
    assert sorted(board.Tags()["scalars"]) == [
        "eval_test+validation/exact_match",
        "eval_test+validation/task_t1_exact_match",
        "eval_test/exact_match",
        "eval_validation/exact_match",
    ]
    assert [(point.step, point.value) for point in board.Scalars("eval_test/exact_match")] == [(7, 0.5)]
    texts = [tag for tag in board.Tags()["tensors"] if tag.endswith("/samples/text_summary")]
    assert texts == (["eval_test+validation/samples/text_summary"] if answered else [])
    if answered:
        (event,) = board.Tensors(texts[0])
        assert event.step == 7
        assert cells(event.tensor_proto.string_val[0].decode())[1][3] == "answer 0"
