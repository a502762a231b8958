"""`shardtune eval` on a tiny model and real shard folders, through the command that a user would type."""

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM
from typer.testing import CliRunner

from data_tools.chat import ChatTokenizer
from data_tools.errors import RunError, ShardtuneError
from data_tools.pack import pack
from data_tools.settings import load_data_settings
from data_tools.shards import open_shards
from tests.training.small_run import make_small_run
from training.cli import app
from training.evaluation.compare import compare, distinct_names, make_matrix
from training.evaluation.questions import closed_answers, read_questions
from training.evaluation.recover import ConversationReader
from training.evaluation.results import read_results


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `model`, whose model says what it likes, and `shards` with a test split."""
    folder = make_small_run(tmp_path_factory.mktemp("eval")).parent
    pack(load_data_settings(folder / "data.yaml", [f"output={folder}/shards", "splits.test=0.3"]), workers=1)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder / "model"))
    model.save_pretrained(folder / "model")
    return folder


def shardtune(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run `shardtune eval` in this process, which has loaded torch already, and say what a shell would see of it."""
    result = CliRunner().invoke(app, ["eval", *map(str, arguments)])
    error = result.exception
    if error is not None and not isinstance(error, ShardtuneError | SystemExit):
        raise error
    code = error.exit_code if isinstance(error, ShardtuneError) else result.exit_code
    return subprocess.CompletedProcess([], code, result.stdout, "" if error is None else str(error))


def test_results_tables_page_and_tensorboard(project: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    for name in ("report.html", "results.md"):  # whoever reads the old file reads on in it
        (tmp_path / "out" / name).write_text("old")
        (tmp_path / name).hardlink_to(tmp_path / "out" / name)
    made = shardtune(
        *(project / "model", project / "shards", "--max-new-tokens", 8, "--output", tmp_path / "out"),
        *("--tensorboard", tmp_path / "board", "--step", 7),
    )
    assert made.returncode == 0, made.stderr
    results = read_results(tmp_path / "out")
    whole = results.group("all", "all")
    assert whole is not None
    assert whole.documents == whole.answers == results.about["documents"] > 30
    assert {group.kind for group in results.groups} == {"all", "family", "source"}
    for score in whole.scores.values():
        assert score.low is not None
        assert score.high is not None
        assert score.low <= score.value <= score.high
    assert "| alpaca |" in (tmp_path / "out" / "results.md").read_text()
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count("What is") >= whole.answers
    assert list((tmp_path / "board").glob("events*"))
    assert [(tmp_path / name).read_text() for name in ("report.html", "results.md")] == ["old", "old"]

    loss = plain_loss(project)
    assert whole.scores["loss"].value == pytest.approx(loss, abs=1e-5)


def test_several_splits_together_and_each_alone(project: Path, tmp_path: Path) -> None:
    splits = ("--split", "test", "--split", "validation")
    made = shardtune(
        *(
            project / "model",
            project / "shards",
            *splits,
            "--max-new-tokens",
            4,
            "--output",
            tmp_path / "out",
        ),
    )
    assert made.returncode == 0, made.stderr
    results = read_results(tmp_path / "out")
    assert results.about["split"] == "test+validation"
    whole, *parts = [group for group in results.groups if group.kind in ("all", "split")]
    assert [part.name for part in parts] == ["test", "validation"]
    assert whole.documents == sum(part.documents for part in parts)
    assert parts[0].scores["loss"].value == pytest.approx(plain_loss(project), abs=1e-5)
    assert "| split | documents |" in (tmp_path / "out" / "results.md").read_text()
    assert "validation" in made.stdout


def plain_loss(project: Path) -> float:
    """Return the mean loss of the test split's targets, one document at a time, by plain transformers."""
    model = AutoModelForCausalLM.from_pretrained(project / "model", dtype=torch.float32)
    tokenizer = ChatTokenizer.load(project / "model", None)
    total = count = 0.0
    for question in read_questions(open_shards(project / "shards"), ["test"], tokenizer):
        ids = torch.tensor(question.ids.tolist())[None]
        labels = ids.masked_fill(~torch.tensor(question.targets.tolist()), -100)
        with torch.no_grad():
            total += float(model(input_ids=ids, labels=labels).loss) * int(question.targets.sum())
        count += int(question.targets.sum())
    return total / count


def test_killed_in_the_middle_it_goes_on_to_the_same_result(project: Path, tmp_path: Path) -> None:
    arguments = [project / "model", project / "shards", "--max-new-tokens", 60, "--batch-size", 2]
    arguments += ["--temperature", 1.0]
    assert shardtune(*arguments, "--output", tmp_path / "unbroken").returncode == 0
    command = [
        sys.executable,
        "-m",
        "training.cli",
        "eval",
        *map(str, arguments),
        "--output",
        tmp_path / "killed",
    ]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    answers = tmp_path / "killed" / "answers.jsonl"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not (
        answers.exists() and len(answers.read_text().splitlines()) > 4
    ):
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "killed" / "results.json").exists()
    with answers.open("a") as file:
        file.write('{"number": 1, "ans')  # as a kill in the middle of a line leaves it
    assert shardtune(*arguments, "--output", tmp_path / "killed").returncode == 0
    for name in ("results.json", "scored.jsonl"):
        assert (tmp_path / "killed" / name).read_text() == (tmp_path / "unbroken" / name).read_text()


def test_another_template_is_asked_in_its_own_words(project: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(project / "model", other, ignore=shutil.ignore_patterns("evaluation"))
    made = shardtune(
        other,
        project / "shards",
        "--chat-template",
        "vicuna",
        "--max-new-tokens",
        4,
        "--output",
        tmp_path / "o",
    )
    assert made.returncode == 0, made.stderr
    about = read_results(tmp_path / "o").about
    assert about["answers"] == about["documents"]

    settings = json.loads((other / "tokenizer_config.json").read_text())
    del settings["chat_template"]
    (other / "tokenizer_config.json").write_text(json.dumps(settings))
    for file in other.glob("*.jinja"):
        file.unlink()
    bare = shardtune(other, project / "shards", "--output", tmp_path / "b")
    assert bare.returncode == 2
    assert "chat_template: the tokenizer has none of its own" in bare.stderr
    assert "give --chat-template" in bare.stderr
    as_packed = ("--chat-template", "shards", "--max-new-tokens", 4)
    assert shardtune(other, project / "shards", *as_packed, "--output", tmp_path / "b").returncode == 0
    shardtune(project / "model", project / "shards", *as_packed[2:], "--output", tmp_path / "c")
    losses = [read_results(tmp_path / name).groups[0].scores["loss"].value for name in ("b", "c")]
    assert losses[0] == losses[1]


def test_conversations_are_recovered_from_their_tokens(project: Path) -> None:
    tokenizer = ChatTokenizer.load(project / "model", None)
    reader = ConversationReader(tokenizer)
    questions = read_questions(open_shards(project / "shards"), ["test"], tokenizer)
    for question in questions:
        messages = reader.read(question.ids)
        assert messages is not None
        assert messages[-1].content == question.references[0]
    assert reader.read(questions[0].ids[:-3]) is None


def test_a_closed_set_of_answers_is_told_by_its_size(project: Path) -> None:
    tokenizer = ChatTokenizer.load(project / "model", None)
    questions = read_questions(open_shards(project / "shards"), ["test"], tokenizer)
    assert closed_answers(questions) == {}  # they belong to no task


def test_two_evaluations_side_by_side(project: Path, tmp_path: Path) -> None:
    for name, tokens in (("a", 4), ("b", 8)):
        made = shardtune(
            project / "model", project / "shards", "--max-new-tokens", tokens, "--output", tmp_path / name
        )
        assert made.returncode == 0, made.stderr
    a, b = tmp_path / "a", tmp_path / "b"
    changes = compare(a, b, metric="loss", seed=1)
    assert [(change.difference.value, change.p) for change in changes] == [(0.0, 1.0)] * 3
    shown = shardtune("--compare", a, b, "--metric", "rougeL")
    assert shown.returncode == 0, shown.stderr
    assert "single_turn" in shown.stdout
    matrix = make_matrix([a, b, a], metric="chrf")
    assert matrix.columns == ["a", "b", "a"]
    assert matrix.rows[0][2][0] == matrix.rows[0][2][2]
    assert matrix.forgotten([50.0, 60.0, 45.0]) == 15.0
    assert shardtune("--matrix", tmp_path / "m.md", a, b).returncode == 0
    assert "forgotten" in (tmp_path / "m.md").read_text()
    for file in (tmp_path / "m.md", tmp_path / "m.json"):
        for _ in range(2):  # an earlier matrix gives way
            assert shardtune("--matrix", file, a, b).returncode == 0
        file.write_text("mine")
        refused = shardtune("--matrix", file, a, b)
        assert refused.returncode == 2
        assert "got a file that is not a matrix of shardtune eval" in refused.stderr
        assert file.read_text() == "mine"
    with pytest.raises(RunError, match="--metric: no evaluation has it"):
        make_matrix([a, b], metric="beauty")
    with pytest.raises(RunError, match="expected one of exact_match"):
        compare(a, b, metric="beauty", seed=1)


def test_columns_of_a_matrix_are_named_by_what_tells_them_apart() -> None:
    steps = [Path(f"runs/demo/evaluation/step-{step}/test") for step in (1, 2)]
    assert distinct_names(steps) == ["step-1", "step-2"]
    assert distinct_names([Path("x"), Path("x/y")]) == ["x", "x/y"]
    assert distinct_names([Path("x"), Path("x")]) == ["x", "x"]


def test_answers_of_another_way_of_drawing_are_not_mixed_in(project: Path, tmp_path: Path) -> None:
    arguments = (project / "model", project / "shards", "--output", tmp_path / "out", "--limit", 4)
    assert shardtune(*arguments, "--max-new-tokens", 4).returncode == 0
    again = shardtune(*arguments, "--max-new-tokens", 5)
    assert again.returncode == 2
    assert "answers.jsonl: holds answers of another model, split or way of drawing" in again.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["MODEL", "SHARDS", "--split", "unseen_tasks"], "--split: nothing to evaluate on"),
        (["MODEL", "SHARDS", "--split", "tset"], "did you mean 'test'?"),
        (["MODEL", "MODEL"], "pack"),
        (["SHARDS", "SHARDS"], "has no config.json"),
        (["MODEL"], "eval: got 1 paths; expected MODEL_DIR SHARDS"),
        (["MODEL", "SHARDS", "--limit", "0"], "--limit: got 0"),
        (["--compare", "MODEL"], "--compare: got 1 folders"),
        (["--compare", "MODEL", "SHARDS"], "expected the folder of an evaluation"),
        (["--matrix", "m.md", "MODEL"], "--matrix: got 1 folders"),
        (
            ["--matrix", "run.yaml", "MODEL", "MODEL"],
            "run.yaml: got .yaml; expected a file named .md or .json",
        ),
        (["--matrix", "m.md", "--compare", "MODEL", "MODEL"], "got --compare and --matrix; expected one"),
        (["MODEL", "SHARDS", "--metric", "loss"], "--metric: got loss without --compare or --matrix"),
        (["MODEL", "SHARDS", "--step", "3"], "--step: got 3 without --tensorboard"),
        (["MODEL", "SHARDS", "--tensorboard", "board"], "--step: missing; expected the step"),
        (["MODEL", "SHARDS", "--output", "RUN"], "is a run folder; expected a folder for results"),
    ],
)
def test_each_mistake_gets_one_line(project: Path, tmp_path: Path, arguments: list[str], said: str) -> None:
    places = {"MODEL": project / "model", "SHARDS": project / "shards", "RUN": tmp_path}
    (tmp_path / "config.yaml").touch()
    result = shardtune(*(places.get(argument, argument) for argument in arguments))
    assert result.returncode == 2
    assert said in result.stderr
    assert "\n" not in result.stderr
