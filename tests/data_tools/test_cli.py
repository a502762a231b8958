"""The data commands as a user runs them: real processes, exit codes, files."""

import filecmp
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.data_tools.small_data import write_corpus, write_settings


def run(*arguments: str | Path, cwd: Path, code: int = 0) -> subprocess.CompletedProcess[str]:
    """Run a data command in a folder and check its exit code."""
    done = subprocess.run(
        [sys.executable, "-m", "data_tools.cli", *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUTF8": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == code, done.stderr or done.stdout
    return done


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    write_corpus(tmp_path)
    return tmp_path


def test_from_raw_files_to_verified_shards(corpus: Path) -> None:
    planned = run("pack", "data.yaml", "--dry-run", cwd=corpus)
    assert "the train split by family, source and task" in planned.stdout
    assert "dry run: no shards were written" in planned.stdout
    assert not (corpus / "shards" / "index.json").exists()

    run("tokenize", "data.yaml", "--task", "1", "--num-tasks", "2", cwd=corpus)
    packed = run("pack", "data.yaml", "--workers", "2", cwd=corpus)
    assert "alpaca: 62 conversations made = 60 kept + 1 rejected + 1 duplicates + 0 left out" in packed.stdout
    assert "target tokens × repeats =" in packed.stdout
    assert "fill %" in packed.stdout
    assert "sealed" in packed.stdout

    verified = run("verify", "shards", cwd=corpus)
    assert verified.stdout.splitlines()[-1] == "shards is whole"
    assert "total: 182 conversations made = 180 kept" in verified.stdout

    again = run("pack", "data.yaml", cwd=corpus)
    assert "is there already" in again.stdout

    shown = run("preview", "shards", "--num", "1", "--split", "validation", cwd=corpus)
    assert "=== validation pack 0 of" in shown.stdout
    assert "⟦" in shown.stdout


def test_one_and_two_workers_write_the_same_bytes(corpus: Path) -> None:
    run("pack", "data.yaml", cwd=corpus)
    run("pack", corpus / "data.yaml", "output=two", "--workers", "2", cwd=corpus)
    one, two = corpus / "shards", corpus / "two"
    names = sorted(path.relative_to(one).as_posix() for path in one.rglob("*") if path.is_file())
    assert len(names) > 10
    assert filecmp.cmpfiles(one, two, names, shallow=False) == (names, [], [])


def test_one_flipped_byte_is_found_and_named(corpus: Path) -> None:
    run("pack", "data.yaml", cwd=corpus)
    path = corpus / "shards" / "train-00000.arrow"
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 0x10
    path.write_bytes(content)
    found = run("verify", "shards", cwd=corpus, code=2)
    assert "train-00000.arrow" in found.stdout.splitlines()
    assert "shards/train-00000.arrow: damaged: got SHA-256" in found.stderr


def test_too_many_rejects(corpus: Path) -> None:
    (corpus / "raw" / "alpaca.json").write_text(json.dumps([{"instruction": "no output"}] * 3))
    failed = run("pack", "data.yaml", cwd=corpus, code=2)
    assert failed.stderr.startswith("source alpaca: too many conversations were rejected: got 3 of 3")
    assert len((corpus / "shards" / "rejects.jsonl").read_text().splitlines()) == 3


def test_the_users_mistakes_are_one_report_without_a_traceback(corpus: Path) -> None:
    write_settings(corpus, seqlen=5, dedup="fuzzy")
    failed = run("pack", "data.yaml", cwd=corpus, code=2)
    assert "seqlen" in failed.stderr
    assert "dedup" in failed.stderr
    assert "Traceback" not in failed.stderr
    missing = run("verify", "nowhere", cwd=corpus, code=2)
    assert missing.stderr.strip() == (
        "nowhere: no such shard folder; do: make it with `shardtune pack DATA.yaml`"
    )


def test_formats_are_listed_and_explained(tmp_path: Path) -> None:
    assert "oasst_tree" in run("formats", cwd=tmp_path).stdout
    assert "instruction" in run("formats", "alpaca", cwd=tmp_path).stdout
    assert "did you mean 'alpaca'?" in run("formats", "alpacca", cwd=tmp_path, code=2).stderr


def test_convert_and_preview_of_settings(corpus: Path) -> None:
    done = run("convert", "data.yaml", "--output", "out.jsonl", cwd=corpus)
    assert "alpaca: 61 conversations, 1 rejected" in done.stdout
    assert len((corpus / "out.jsonl").read_text().splitlines()) == 181
    shown = run("preview", "data.yaml", "train_on=last_assistant", "--num", "2", cwd=corpus)
    assert "⟦Ada came to visit 0.<|im_end|>⟧" in shown.stdout


def test_help_loads_nothing_heavy(tmp_path: Path) -> None:
    code = (
        "import sys, data_tools.cli\n"
        "heavy = {'torch', 'transformers', 'pyarrow', 'numpy', 'tokenizers', 'pydantic'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
    assert "pack" in run("--help", cwd=tmp_path).stdout


def test_packing_loads_no_torch(corpus: Path) -> None:
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from data_tools.pack import pack\n"
        "from data_tools.settings import load_data_settings\n"
        "pack(load_data_settings(Path('data.yaml')))\n"
        "assert 'torch' not in sys.modules"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", code], cwd=corpus, env=env, check=True)
