"""The save protocol: killed at any point of it, refused by the disk, and which checkpoints stay."""

import json
import subprocess
import sys
import threading
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.training.crash_worker import save, slices_of
from training import checkpoint_write
from training.checkpoint_files import Progress, checkpoint_folder, finished_checkpoints
from training.checkpoint_write import (
    AbandonedError,
    Signals,
    partial_folder,
    prune,
    publish,
    remove_unfinished,
    write_part,
)

PROGRESS = Progress(2, 2, "f", 17, 2, 2, ("exp_avg",), (), {"w": (6,)}, {})


def test_killed_at_any_line_it_leaves_a_whole_checkpoint_or_the_one_before() -> None:
    command = [sys.executable, "-m", "tests.training.crash_worker"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    before, after = map(int, done.stdout.split())
    assert before > 50
    assert after > 10


def test_a_full_disk_is_told_as_the_system_tells_it(tmp_path: Path) -> None:
    final = checkpoint_folder(tmp_path, 2)
    partial = partial_folder(final)
    partial.mkdir()
    (partial / "rank-00001-of-00002.safetensors.partial").symlink_to("/dev/full")
    signals = Signals()
    with pytest.raises(OSError, match=r"No space left on device: .*rank-00001-of-00002"):
        write_part(final, slices_of(1, 2), 1, 2, signals)
    assert signals.read.is_set(), "training must not wait for what nobody reads any more"
    remove_unfinished(final)
    assert not list(tmp_path.iterdir())


def test_nothing_is_published_before_every_rank_has_written(tmp_path: Path) -> None:
    final, signals = checkpoint_folder(tmp_path, 2), Signals()
    write_part(final, slices_of(0, 2), 0, 2, signals)
    publisher = threading.Thread(target=publish, args=(final, PROGRESS, signals))
    publisher.start()
    publisher.join(4 * checkpoint_write.POLL_SECONDS)
    assert publisher.is_alive()
    assert finished_checkpoints(tmp_path) == []
    write_part(final, slices_of(1, 2), 1, 2, Signals())
    publisher.join(10)
    assert finished_checkpoints(tmp_path) == [final]


def test_a_save_that_is_given_up_ends_on_every_rank(tmp_path: Path) -> None:
    final, signals = checkpoint_folder(tmp_path, 2), Signals()
    signals.abandoned.set()
    with pytest.raises(AbandonedError):
        write_part(final, slices_of(0, 2), 0, 2, signals)
    with pytest.raises(AbandonedError):
        publish(final, PROGRESS, signals)
    assert finished_checkpoints(tmp_path) == []


def test_ranks_that_do_not_share_the_folder_are_found_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint_write, "VISIBLE_SECONDS", 0.1)
    final, signals = checkpoint_folder(tmp_path, 2), Signals()
    write_part(final, slices_of(0, 2), 0, 2, signals)
    signals.all_written.set()
    with pytest.raises(OSError, match=r"rank-00001-of-00002.*not seen by rank 0.*all nodes share"):
        publish(final, PROGRESS, signals)


@pytest.mark.parametrize(
    ("keep", "keep_every", "expected"),
    [(2, None, [6, 7]), (1, 3, [3, 6, 7]), (9, None, [1, 2, 3, 4, 5, 6, 7]), (2, 1, [1, 2, 3, 4, 5, 6, 7])],
)
def test_the_newest_and_every_nth_stay(
    tmp_path: Path, keep: int, keep_every: int | None, expected: list[int]
) -> None:
    for step in range(1, 8):
        folder = checkpoint_folder(tmp_path, step)
        folder.mkdir()
        (folder / "progress.json").write_text(json.dumps(asdict(replace(PROGRESS, step=step))))
        (folder / "DONE").touch()
    prune(tmp_path, keep=keep, keep_every=keep_every)
    assert [int(path.name[5:]) for path in finished_checkpoints(tmp_path)] == expected


def test_saving_the_same_step_again_replaces_what_a_killed_run_left(tmp_path: Path) -> None:
    save(tmp_path, 2)
    final = checkpoint_folder(tmp_path, 2)
    (final / "DONE").unlink()
    (final / "rubbish").touch()
    save(tmp_path, 2)
    assert finished_checkpoints(tmp_path) == [final]
    assert not (final / "rubbish").exists()
