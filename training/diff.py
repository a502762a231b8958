"""`shardtune diff`: what differs between two runs in data, settings, place and loss, from their files alone."""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.table import Table
from rich.text import Text

from data_tools.errors import RunError, ShardError
from data_tools.shard_index import Index, read_index
from training.checkpoint_files import finished_checkpoints, read_progress
from training.metrics import FILE_NAME, read_metrics
from training.run_folder import RunFolder, flatten

# What tells one run from another and means nothing for its numbers.
NAMES = ("name", "runs")
COUNTS = ("rows", "kept", "duplicates", "documents", "packed_tokens", "packed_target_tokens", "cut_tokens")
MISSING = "—"


@dataclass(frozen=True, slots=True)
class Difference:
    """One line of the table: a part of the run, what differs in it, and what it is in each run."""

    part: str
    what: str
    a: str
    b: str


@dataclass(frozen=True, slots=True)
class _Run:
    """What the files of a run say; shards is None where the folder it was trained on is gone or another now."""

    settings: dict[str, Any]
    environment: dict[str, Any]
    ds_config: dict[str, Any]
    shards: Index | None
    metrics: list[dict[str, Any]]
    ledgers: dict[int, str]


def diff_runs(a: Path, b: Path) -> list[Difference]:
    """Return everything that differs between two run folders. Raises RunError."""
    first, second = _read(a), _read(b)
    return [
        *_data(first, second),
        *_pairs("settings", first.settings, second.settings),
        *_pairs("deepspeed", first.ds_config, second.ds_config),
        *_pairs("place", _place(first), _place(second)),
        *_losses(first, second),
    ]


def print_diff(a: Path, b: Path, console: Console) -> None:
    """Print the table of two run folders. Raises RunError."""
    differences = diff_runs(a, b)
    if not differences:
        console.print(f"{a} and {b}: data, settings, place and losses are the same")
        return
    table = Table(title="what differs", title_justify="left")
    for column in ("part", "what", str(a), str(b)):
        table.add_column(column, overflow="fold")
    part = None
    for line in differences:
        if part not in (None, line.part):
            table.add_section()
        table.add_row(line.part if line.part != part else "", Text(line.what), Text(line.a), Text(line.b))
        part = line.part
    console.print(table)


def _read(path: Path) -> _Run:
    run = RunFolder(path)
    try:
        settings = yaml.safe_load(run.config_path.read_text(encoding="utf-8"))
        environment = json.loads(run.environment_path.read_text(encoding="utf-8"))
        ds_config = json.loads(run.ds_config_path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        what = (
            "no such folder"
            if not path.is_dir()
            else f"not a run folder: it has no {Path(error.filename).name}"
        )
        raise RunError(f"{path}: {what}; expected the folder of a run, such as runs/demo") from None
    except (ValueError, yaml.YAMLError) as error:
        raise RunError(f"{path}: a file of the run is damaged: {' '.join(str(error).split())}") from None
    for file, kept in (
        (run.config_path, settings),
        (run.environment_path, environment),
        (run.ds_config_path, ds_config),
    ):
        if not isinstance(kept, dict) or (kept is not ds_config and not kept):
            raise RunError(f"{file}: is damaged: expected keys and values; put it back")
    return _Run(
        settings=flatten({key: value for key, value in settings.items() if key not in NAMES}),
        environment=environment,
        ds_config=flatten(ds_config),
        shards=_shards(Path(settings["shards"]), str(environment["shards_fingerprint"])),
        metrics=read_metrics(path) if (path / FILE_NAME).exists() else [],
        ledgers={
            progress.step: progress.ledger
            for progress in map(read_progress, finished_checkpoints(run.checkpoints))
        },
    )


def _shards(folder: Path, fingerprint: str) -> Index | None:
    try:
        index = read_index(folder)
    except (ShardError, OSError):
        return None
    return index if index.fingerprint == fingerprint else None


def _data(a: _Run, b: _Run) -> Iterator[Difference]:
    """Yield what differs in the shards: whose packs, then how many of what from each source."""
    prints = [str(run.environment["shards_fingerprint"]) for run in (a, b)]
    if prints[0] == prints[1]:
        return
    yield Difference("data", "fingerprint", prints[0][:12], prints[1][:12])
    if a.shards is None or b.shards is None:
        gone = ["the folder is gone, or another now" if run.shards is None else "there" for run in (a, b)]
        yield Difference("data", "shards", *gone)
        return
    yield from _pairs("data", _counts(a.shards), _counts(b.shards))


def _counts(index: Index) -> dict[str, Any]:
    counts: dict[str, Any] = {"seq_len": index.seq_len, "tokenizer": index.tokenizer.fingerprint[:12]}
    for name, split in index.splits.items():
        counts |= {f"split {name}: documents": split.documents, f"split {name}: packs": len(split.tokens)}
    for source in index.sources:
        counts[f"source {source.name}: format"] = source.format
        for key in COUNTS:
            counts[f"source {source.name}: {key}"] = getattr(source, key)
        counts[f"source {source.name}: rejected"] = sum(source.rejected.values())
        counts[f"source {source.name}: left_out"] = sum(source.left_out.values())
    return counts


def _place(run: _Run) -> dict[str, Any]:
    kept = {key: run.environment.get(key) for key in ("host", "cpu_cores", "memory_gib", "python")}
    return kept | flatten({"packages": run.environment.get("packages", {})})


def _losses(a: _Run, b: _Run) -> Iterator[Difference]:
    """Yield the losses of the last step that both have, the last of each, and where their rows part."""
    by_step = [{line["step"]: line for line in run.metrics} for run in (a, b)]
    common = sorted(by_step[0].keys() & by_step[1].keys())
    if common:
        lines = [steps[common[-1]] for steps in by_step]
        yield from _pairs(f"step {common[-1]}", *map(_shown, lines))
    yield from _pairs("end", *(_end(run) for run in (a, b)))
    for step in sorted(a.ledgers.keys() & b.ledgers.keys()):
        if a.ledgers[step] != b.ledgers[step]:
            yield Difference("rows", f"seen up to step {step}", a.ledgers[step][:12], b.ledgers[step][:12])


def _shown(line: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in line.items() if key.endswith(("/loss", "/token_accuracy"))}


def _end(run: _Run) -> dict[str, Any]:
    """Return the number of steps, and of each split the best and the last loss."""
    end: dict[str, Any] = {"steps": run.metrics[-1]["step"] if run.metrics else 0}
    for key in sorted({key for line in run.metrics for key in _shown(line) if key.endswith("/loss")}):
        values = [line[key] for line in run.metrics if line.get(key) is not None]
        if values:
            end[f"{key}, last"] = values[-1]
            end[f"{key}, lowest"] = min(values)
    return end


def _pairs(part: str, a: Mapping[str, Any], b: Mapping[str, Any]) -> Iterator[Difference]:
    for key in {**a, **b}:
        if a.get(key) != b.get(key):
            yield Difference(part, key, *(_text(values.get(key, MISSING)) for values in (a, b)))


def _text(value: Any) -> str:
    if isinstance(value, float) and math.isfinite(value):
        return f"{value:.6g}"
    return f"{value:,}" if type(value) is int else str(value)
