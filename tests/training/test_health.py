"""Steps that are not finite: a weight is poisoned for real, and what the run does about it is read from its files."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file

from data_tools.shards import Shards, open_shards
from tests.conftest import ROOT
from tests.training.harness import Project
from training.checkpoint_files import CheckpointReader
from training.data import PackOrder
from training.health import MAX_ROWS, Health, describe_skip, name_rows
from training.status.report import read_status

PACKS_PER_STEP = 4
EMBEDDING = "model.embed_tokens.weight"


def poison(project: Project, name: str, token: int) -> str:
    """Make a copy of the model in which a token's embedding is infinite; return its path."""
    folder = project.folder / name
    shutil.copytree(project.model, folder)
    weights = load_file(folder / "model.safetensors")
    weights[EMBEDDING][token] = torch.inf
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return str(folder)


def find_rare_token(shards: Shards, *, num_steps: int) -> tuple[int, int, int, list[int]]:
    """Return a run's seed, a token that one of its steps alone meets, not the first; that step; and its packs with it.

    Not every seed has such a token.
    """
    split = shards.splits["train"]
    for seed in range(100):
        order = PackOrder(fingerprint=shards.fingerprint, seed=seed, num_packs=split.num_packs)
        met: dict[int, dict[int, list[int]]] = {}  # token -> step -> packs
        for position in range(num_steps * PACKS_PER_STEP):
            pack = order[position]
            for token in np.unique(split.pack(pack).input_ids).tolist():
                met.setdefault(token, {}).setdefault(1 + position // PACKS_PER_STEP, []).append(pack)
        for token, steps in sorted(met.items()):
            if len(steps) == 1 and 1 < min(steps) < num_steps - 1:
                return seed, token, min(steps), steps[min(steps)]
    raise AssertionError("no token is in one step alone")


def read_metrics(project: Project, name: str) -> list[dict[str, Any]]:
    return [
        json.loads(line) for line in (project.run_folder(name) / "metrics.jsonl").read_text().splitlines()
    ]


def newest(project: Project, name: str) -> CheckpointReader:
    return CheckpointReader(sorted((project.run_folder(name) / "checkpoints").iterdir())[-1])


def rows_of(shards: Shards, pack: int) -> set[str]:
    """Return `source: origin` of a pack's rows, read in another way than the trainer does."""
    table = pq.read_table(shards.folder / "rows.parquet").to_pylist()
    ids = set(shards.splits["train"].pack(pack).row_ids.tolist())
    return {f"{row['source']}: {row['origin']}" for row in table if row["row_id"] in ids}


def check_one_bad_step(
    project: Project, name: str, *, train: Callable[[str, int, dict[str, Any]], None], **settings: Any
) -> list[dict[str, Any]]:
    """Train on a model that one pack poisons, by `train(name, steps, settings)`; return the run's metrics."""
    shards = open_shards(project.shards)
    seed, token, bad, packs = find_rare_token(shards, num_steps=6)
    model = poison(project, f"model-{name}", token)
    settings |= {"seed": seed, "model": model, "save": {"every_steps": 100, "keep": 9}}
    train(name, 6, settings)
    rows = read_metrics(project, name)
    assert [row["step"] for row in rows if row["train/loss"] is None] == [bad]
    assert [row["health/skipped_steps"] for row in rows] == [int(row["step"] >= bad) for row in rows]
    progress = newest(project, name).progress
    assert (progress.step, progress.skipped_steps, progress.optimizer_step) == (6, 1, 5)
    assert progress.packs_consumed == 6 * PACKS_PER_STEP
    log = "".join(path.read_text() for path in (project.run_folder(name) / "logs").glob("*rank0.log"))
    assert f"step {bad} was skipped: the loss is nan" in log
    assert "skipped 1" in log
    rows_there = set().union(*(rows_of(shards, pack) for pack in packs))
    start = log.index(f"step {bad} was skipped")
    named = [line.strip() for line in log[start:].splitlines()[1 : 1 + min(len(rows_there), MAX_ROWS)]]
    assert set(named) <= rows_there
    assert len(set(named)) == min(len(rows_there), MAX_ROWS)
    return rows


def test_a_poisoned_step_is_skipped_and_counted(tiny: Project) -> None:
    def whole(name: str, steps: int, settings: dict[str, Any]) -> None:
        tiny.train(name, steps=steps, **settings)

    check_one_bad_step(tiny, "poisoned", train=whole)


@pytest.mark.slow
@pytest.mark.parametrize("ds_config", ["zero3", "zero3_offload_optimizer", "zero3_offload_cpu"])
def test_with_a_skipped_step_a_resumed_run_has_the_numbers_of_an_unbroken_one(
    tiny: Project, ds_config: str
) -> None:
    def whole(name: str, steps: int, settings: dict[str, Any]) -> None:
        tiny.train(name, steps=steps, **settings)

    def in_parts(name: str, steps: int, settings: dict[str, Any]) -> None:
        for until in (2, 3, 4, steps):
            tiny.train(name, steps=until, **settings)

    settings = {"deepspeed": str(ROOT / "ds_configs" / f"{ds_config}.json"), "log": {"tensorboard": True}}
    runs = [
        check_one_bad_step(tiny, f"{ds_config}-{train.__name__}", train=train, **settings)
        for train in (whole, in_parts)
    ]
    keys = ("step", "train/loss", "train/grad_norm", "health/skipped_steps")
    unbroken, broken = ([{key: row[key] for key in keys} for row in rows] for rows in runs)
    assert broken == unbroken


@pytest.mark.slow
def test_after_max_bad_steps_the_run_ends_saved_and_names_the_rows(tiny: Project) -> None:
    shards = open_shards(tiny.shards)
    token = int(shards.splits["train"].pack(0).input_ids[0])  # begins every document
    settings = {
        "model": poison(tiny, "model-everywhere", token),
        "max_bad_steps": 2,
        "save": {"every_steps": 100, "keep": 9},
        "steps": 20,
    }
    for start in (1, 2):
        process = tiny.start(tiny.write_run("exhausted", settings))
        output, _ = process.communicate(timeout=300)
        assert process.returncode == 2, output
        assert "max_bad_steps: 2 steps in a row had a loss or a gradient that is not finite" in output
        assert "Traceback" not in output
        status = read_status(tiny.run_folder("exhausted"))
        assert status.why is not None
        assert (status.state, status.why.kind) == ("failed", "bad_steps")
        reader = newest(tiny, "exhausted")
        progress = reader.progress
        assert (progress.step, progress.skipped_steps, progress.optimizer_step) == (2 * start, 2 * start, 0)
        assert progress.packs_consumed == 2 * start * PACKS_PER_STEP, "it goes on with the packs that follow"
        report = output[output.rindex("max_bad_steps:") :].splitlines()
        order = PackOrder(fingerprint=shards.fingerprint, seed=17, num_packs=shards.splits["train"].num_packs)
        last = range((progress.step - 1) * PACKS_PER_STEP, progress.step * PACKS_PER_STEP)
        known = set().union(*(rows_of(shards, order[position]) for position in last))
        assert {line.strip() for line in report[1 : MAX_ROWS + 1]} <= known
        assert len(report) > 2
    before = load_file(Path(settings["model"]) / "model.safetensors")
    for name, weight in before.items():
        assert torch.equal(reader.weight(name), weight), name


def test_the_row_counts_again_after_a_step_that_was_applied() -> None:
    health = Health()
    for applied in (False, False, True, False):
        health = health.after(applied=applied)
    assert health == Health(skipped_steps=3, skipped_in_a_row=1)


def test_a_step_lost_to_the_loss_scale_is_counted_and_not_held_against_the_run() -> None:
    health = Health().after(applied=False)
    for _ in range(20):
        health = health.after(applied=False, rescaled=True)
    assert health == Health(skipped_steps=21, skipped_in_a_row=1)


def test_no_more_than_some_rows_are_named(tiny: Project) -> None:
    shards = open_shards(tiny.shards)
    rows = name_rows(shards, range(shards.splits["train"].num_packs))
    assert len(rows) == MAX_ROWS + 1
    assert rows[-1].startswith("and ")
    assert all(row.split(": ")[0] in {source.name for source in shards.sources} for row in rows[:-1])
    assert describe_skip(3, 1.0, rows).startswith("step 3 was skipped: the gradient's norm is not finite")
