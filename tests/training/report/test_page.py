"""`shardtune report` on folders as runs leave them."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from data_tools.errors import RunError
from tests.training.small_run import copy_small_run, make_small_run
from training.config import load_run_config
from training.events import record_event
from training.launch import check, find_devices
from training.metrics import MetricsLog
from training.report.page import write_report
from training.run_folder import RunFolder


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_small_run(tmp_path_factory.mktemp("report") / "made")


@pytest.fixture
def run(made: Path, tmp_path: Path) -> RunFolder:
    """Return a run that was prepared, started twice and failed, with what it measured."""
    config = load_run_config(copy_small_run(made, tmp_path / "copy"))
    shards, ds_config = check(config, find_devices(config))
    folder = RunFolder(config.run_folder)
    with folder.hold():
        folder.prepare(config, ds_config, shards_fingerprint=shards.fingerprint)
    for first, last in ((0, 4), (3, 8)):
        record_event(folder.path, "started", host="alpha", nodes=1, ranks=2, job=7)
        record_event(folder.path, "training", step=first, num_steps=9, world=2, reached=first)
        log = MetricsLog(folder.path, resume_step=first, tensorboard=False)
        for step in range(first + 1, last + 1):
            log.write(
                step,
                {
                    "train/loss": 3.0 / step,
                    "train/lr": 1e-3,
                    "train/grad_norm": 1.0 if step != 6 else float("inf"),
                    "time/step_seconds": 2.0,
                    "speed/tokens_per_second": 500.0,
                    "speed/teraflops_per_second": 0.01,
                    "memory/host_gib": 0.5,
                    "validation/loss": 4.0 / step,
                    "validation/token_accuracy": 0.25,
                },
            )
        log.close()
    record_event(folder.path, "failed", rank=1, host="alpha", error="<script>alert(1)</script> & so on")
    folder.write_state("failed")
    return folder


class Text(HTMLParser):
    """The text of a page, its tags, and whether each is closed."""

    VOID = ("meta",)

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text = ""
        self.tags: set[str] = set()
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += f"{data} "


def test_the_page_tells_the_run_and_needs_nothing_from_outside(run: RunFolder) -> None:
    path = write_report(run.path, None)
    assert path == run.path / "report.html"
    page = path.read_text()
    read = Text(page)
    assert read.open == []
    assert "script" not in read.tags
    assert re.findall(r"(?:src|href)=[\"'](?!#)|url\(|@import", page) == []
    for words in ("loss", "gradient norm, before clipping", "Plan against measured", "cut off, or going on"):
        assert words in read.text, words
    assert "<script>alert(1)</script> & so on" in read.text  # as text: there is no such tag
    assert "learning rate" in read.text
    assert "max_bad_steps" in read.text  # its settings
    assert "pyarrow" in read.text  # the versions


def test_the_tables_hold_the_numbers_of_the_files(run: RunFolder) -> None:
    text = " ".join(Text(write_report(run.path, run.path / "other.html").read_text()).text.split())
    index = json.loads((load_run_config(run.config_path).shards / "index.json").read_text())
    source = index["sources"][0]
    licence = "not stated; the dataset was published under CC BY-NC 4.0"
    counts = f"{source['rows']} {source['conversations']} {source['kept']}"
    assert f"{source['name']} {source['family']} {source['format']} {licence} {counts}" in text
    assert "validation 4 0.5 (step 8) 0.5 25.0%" in text
    assert re.search(r"steps \S+ 8 ", text)
    assert "host of a node, resident with mapped files, rank 0 × ranks (GiB)" in text


def test_a_run_whose_shards_are_gone_has_a_report_all_the_same(run: RunFolder) -> None:
    (load_run_config(run.config_path).shards / "index.json").unlink()
    text = Text(write_report(run.path, None).read_text()).text
    assert "The shards are not where they were" in text
    assert "There is no plan" in text


def test_a_run_that_has_not_begun_has_a_report(run: RunFolder) -> None:
    for name in ("metrics.jsonl", "events.jsonl", "state"):
        (run.path / name).unlink()
    text = Text(write_report(run.path, None).read_text()).text
    for words in ("not started", "No step was logged yet", "The run has not trained yet", "never started"):
        assert words in text, words


def test_mistakes_of_the_user(run: RunFolder, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no such folder; expected the folder of a run"):
        write_report(tmp_path / "none", None)
    with pytest.raises(RunError, match=r"--output: .*: is a folder; expected the name of a file"):
        write_report(run.path, tmp_path)
    with pytest.raises(RunError, match=r"--output: .*: there is no folder"):
        write_report(run.path, tmp_path / "no" / "report.html")
    (tmp_path / "run.yaml").write_text("name: mine\n")
    with pytest.raises(
        RunError, match=r"--output: .*run\.yaml: got a file that is not a report of shardtune"
    ):
        write_report(run.path, tmp_path / "run.yaml")
    assert (tmp_path / "run.yaml").read_text() == "name: mine\n"
    for _ in range(2):  # an earlier report gives way
        write_report(run.path, tmp_path / "report.html")
    with pytest.raises(RunError, match="expected the folder of an evaluation"):
        write_report(run.path, None, [tmp_path])
    run.environment_path.write_text("[1]")
    with pytest.raises(RunError, match=r"environment\.json: damaged: got list; expected a JSON object"):
        write_report(run.path, None)
