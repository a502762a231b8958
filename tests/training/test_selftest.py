"""`shardtune selftest`: by the real command on a whole project, and how its table is made."""

import math
import subprocess
from pathlib import Path

import pytest

from tests.training.harness import Project, environment, shardtune
from training.config import load_run_config
from training.launch import Devices
from training.selftest import (
    FAILED,
    TOLERANCES,
    Row,
    compare,
    furthest,
    other_devices,
    other_offload,
    print_rows,
    shape,
    small_run,
    to_other_ranks,
    too_little_memory,
)

CHECKS = (
    "packed = unpacked",
    "2 x 1 x 2 = 2 x 2 x 1",
    "2 x 1 x 2 = 1 x 1 x 4",
    "offload on = off",
    "save + load = unbroken",
    "export = engine",
)


def run_selftest(project: Project, *overrides: str) -> "subprocess.CompletedProcess[str]":
    run_yaml = project.write_run("unbroken", {"steps": 10, "epochs": None})
    return subprocess.run(
        shardtune("selftest", run_yaml, *overrides),
        env=environment() | {"COLUMNS": "160"},
        cwd=project.folder,
        capture_output=True,
        text=True,
        timeout=600,
    )


def listing(folder: Path) -> set[tuple[str, int]]:
    return {(str(path), path.stat().st_mtime_ns) for path in folder.rglob("*")}


def test_on_a_whole_project_nothing_differs_and_nothing_is_left_behind(tiny: Project) -> None:
    tiny.write_run("unbroken", {"steps": 10})
    (tiny.folder / "runs").mkdir(exist_ok=True)
    before = listing(tiny.folder / "runs")
    done = run_selftest(tiny)
    assert done.returncode == 0, done.stdout + done.stderr
    for check in CHECKS:
        assert check in done.stdout, done.stdout
    assert FAILED not in done.stdout
    assert "not run" not in done.stdout
    assert listing(tiny.folder / "runs") == before


@pytest.mark.slow
@pytest.mark.parametrize("ds_config", ["zero3", "zero3_offload_optimizer"])
def test_in_bf16_and_with_other_offload(tiny: Project, tmp_path: Path, ds_config: str) -> None:
    file = Path(__file__).resolve().parents[2] / "ds_configs" / f"{ds_config}.json"
    runs = tmp_path / "not" / "there"
    done = run_selftest(tiny, "precision=bf16", f"deepspeed={file}", f"runs={runs}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert not (tmp_path / "not").exists()


def test_a_run_that_cannot_be_trained_is_refused_as_by_train(tiny: Project, tmp_path: Path) -> None:
    done = run_selftest(tiny, f"model={tmp_path}", f"runs={tmp_path / 'runs'}")
    assert done.returncode == 2
    assert "has no config.json" in done.stderr
    assert not (tmp_path / "runs").exists()


def test_a_folder_that_cannot_be_made_is_said_in_one_line(tiny: Project, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = run_selftest(tiny, f"runs={tmp_path / 'file' / 'runs'}")
    assert done.returncode == 2
    assert f"runs: {tmp_path / 'file' / 'runs'}: cannot be written to" in done.stderr


def found(**changes: object) -> dict[str, object]:
    return {"losses": [3.0, 2.0], "grad_norms": [1.0, 1.0], "weights": 0.0, "unpacked": 0.0} | changes


def test_a_difference_beyond_rounding_fails(
    tiny: Project, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    config = load_run_config(tiny.write_run("compared", {"steps": 2}))
    results = {name: found() for name in ("run", "micro", "ranks", "offload", "resume")}
    two = Devices(("0", "1"), on_gpu=False)
    rows = compare(results, config, two, Devices(("0",), on_gpu=False), "")
    assert {row.verdict for row in rows} == {"ok"}

    del results["ranks"]  # a launch that has failed leaves nothing
    rows = compare(results, config, two, Devices(("0",), on_gpu=False), "")
    assert {row.name for row in rows if row.verdict == FAILED} == {"2 x 1 x 2 = 1 x 1 x 4"}

    results |= {
        "micro": found(losses=[3.0, 2.01]),
        "offload": {"name": "offload", "not_run": "there is no memory"},
        "resume": found(losses=[math.nextafter(2.0, 3.0)], grad_norms=[math.nan]),
    }
    rows = compare(results, config, two, None, "there is one GPU here")
    failed = [(row.name, row.measure) for row in rows if row.verdict == FAILED]
    assert failed == [
        ("2 x 1 x 2 = 2 x 2 x 1", "loss"),
        ("save + load = unbroken", "loss"),  # to the last bit, on CPU
        ("save + load = unbroken", "gradient norm"),
    ]
    assert [row.not_run for row in rows if row.verdict == "not run"] == [
        "there is one GPU here",
        "there is no memory",
    ]
    print_rows(rows, "selftest")
    assert "there is one GPU here" in capsys.readouterr().out


def test_the_largest_difference_is_relative_and_of_the_last_steps() -> None:
    assert furthest([9.0, 2.0, 4.0], [2.0, 5.0]) == pytest.approx(0.25)
    assert math.isnan(furthest([1.0, 1.0], [math.nan, 1.0]))
    assert Row("x", "loss", math.nan, 1.0).verdict == FAILED
    assert set(TOLERANCES) == {"fp32", "bf16", "fp16"}


def test_other_numbers_of_ranks() -> None:
    for count, other in ((1, 2), (2, 1), (3, 1), (8, 4)):
        devices = Devices(tuple(map(str, range(count))), on_gpu=False)
        got, reason = other_devices(devices)
        assert got is not None
        assert (got.num_ranks, reason) == (other, "")
        assert 2 * count % got.num_ranks == 0


def test_ranks_that_share_rows_share_them_in_the_selftest_too(tiny: Project, tmp_path: Path) -> None:
    batch = {"packs_per_step": 4, "sequence_parallel": 4}
    config = load_run_config(tiny.write_run("shared", {"steps": 2, "batch": batch}))
    small = small_run(config, tmp_path, num_ranks=8)
    assert small.batch.packs_per_step == 4
    assert shape(small, 8) == "(8 by 4) x 1 x 2"
    for others, expected in ((4, "(4 by 4) x 1 x 4"), (2, "(2 by 2) x 1 x 4"), (1, "1 x 1 x 4")):
        other = Devices(tuple(map(str, range(others))), on_gpu=False)
        assert shape(to_other_ranks(small, other), others) == expected


def test_the_offload_that_is_compared_is_the_other_one() -> None:
    on = {"zero_optimization": {"stage": 3, "offload_optimizer": {"device": "cpu"}}, "aio": {}}
    off = other_offload(on)
    assert off == {"zero_optimization": {"stage": 3}, "aio": {}}
    on_cpu = {"device": "cpu"}
    assert other_offload(off)["zero_optimization"] == {
        "stage": 3,
        "offload_optimizer": on_cpu,
        "offload_param": on_cpu,
    }
    assert "offload_optimizer" in on["zero_optimization"], "the argument stays as it was"


def test_too_little_memory_is_said_with_its_figures() -> None:
    sizes = {"precision": "bf16", "num_ranks": 2, "ranks_here": 1}
    assert too_little_memory(10**9, **sizes, available_bytes=2**35) == ""
    said = too_little_memory(10**10, **sizes, available_bytes=2**33)
    assert said == "without offload it takes about 101 GiB; free are 8 GiB"


def test_the_small_run_touches_no_key_that_the_model_depends_on(tiny: Project, tmp_path: Path) -> None:
    config = load_run_config(tiny.write_run("compared", {"steps": 2}))
    small = small_run(config, tmp_path, num_ranks=2)
    assert (small.model, small.shards, small.precision) == (config.model, config.shards, config.precision)
    assert small.optim.lr == config.optim.lr
    assert small.run_folder == tmp_path / "selftest"
