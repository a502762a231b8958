"""The command line: quick help, one report and exit code 2 for a mistake of the user's."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.training.small_run import copy_small_run, make_small_run

COMMANDS = ("formats", "convert", "tokenize", "pack", "preview", "verify", "train", "export")


def shardtune(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "training.cli", *arguments], cwd=ROOT, capture_output=True, text=True
    )


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_small_run(tmp_path_factory.mktemp("small") / "made")


def test_help_is_quick_and_lists_every_command() -> None:
    seconds = []
    for _ in range(5):
        began = time.perf_counter()
        result = shardtune("--help")
        seconds.append(time.perf_counter() - began)
        assert result.returncode == 0
    assert all(f" {command} " in result.stdout for command in COMMANDS)
    assert min(seconds) < 0.5  # the best of five: other work on the machine is not ours


def test_what_runs_on_a_login_node_imports_no_torch() -> None:
    modules = (
        "training.cli training.config training.ds_config training.launch training.run_folder training.ops"
    )
    code = (
        f"import sys, importlib; [importlib.import_module(name) for name in {modules.split()}]; "
        "print([name for name in ('torch', 'transformers', 'deepspeed', 'pyarrow') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert result.stdout.strip() == "[]", result.stderr


def test_every_command_has_help() -> None:
    for command in COMMANDS:
        assert shardtune(command, "--help").returncode == 0


def test_a_users_mistake_is_one_report_without_a_traceback(made: Path) -> None:
    for arguments, message in (
        (("train", str(made), "optim.lrr=1", "seed=-1"), "optim.lrr: unknown key; did you mean 'lr'?"),
        (("train", str(made.with_name("run.yml"))), "no such file; did you mean 'run.yaml'?"),
        (("train", str(made), f"deepspeed={made}"), "run.yaml:1: is not JSON"),
        (("train", str(made), "batch.packs_per_step=5"), "got 5 packs for 2 ranks"),
        (("train", str(made), f"runs={made}"), "run.yaml/small: cannot be made: Not a directory"),
        (("export", str(made.parent), "--output", str(made.parent / "out")), "not a run folder"),
    ):
        result = shardtune(*arguments)
        assert result.returncode == 2
        assert message in result.stderr
        assert "Traceback" not in result.stderr
        assert result.stdout == ""
    assert not (made.parent / "runs").exists()


def test_print_prepares_the_run_and_gives_its_line(made: Path, tmp_path: Path) -> None:
    run = copy_small_run(made, tmp_path / "copy")
    result = shardtune("train", str(run), "--print", "steps=7")
    assert result.returncode == 0, result.stderr
    folder = run.parent / "runs/small"
    assert "deepspeed.launcher.launch" in result.stdout
    assert result.stdout.rstrip().endswith(f"--module training.train {folder}/config.yaml")
    assert "steps: 7" in (folder / "config.yaml").read_text()
    assert not (folder / "lease.json").exists()


def test_what_the_machine_refuses_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "rows.json").write_text('[{"instruction": "Say hello.", "input": "", "output": "Hello."}]')
    (tmp_path / "data.yaml").write_text(
        "{output: o, tokenizer: t, seq_len: 8, sources: [{path: rows.json, format: alpaca}]}"
    )
    command = [sys.executable, "-m", "training.cli", "convert", str(tmp_path / "data.yaml")]
    done = subprocess.run(
        [*command, "--output", str(tmp_path / "file" / "rows.jsonl")], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
